"""Ending the server within ten seconds, whatever runs, and closing idle connections.

When uvicorn is stopped it waits without limit for answers, and for requests that were only begun.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

logger = logging.getLogger(__name__)

GRACE_SECONDS = 4
"""Seconds that answers under way get when the server is to end."""
END_SECONDS = 8.0
"""Seconds after which the process ends, whatever still runs in it."""
IDLE_SECONDS = 30.0
"""Seconds without a byte of a request or an answer after which a connection is closed."""
_LOOK_SECONDS = 2.0


def look_after(on_end: Callable[[], None]) -> None:
    """Take care of the uvicorn server that is starting; does nothing under another one.

    Args:
        on_end: called once when the server is told to end; must not wait.
    """
    server = _server()
    if server is None:
        logger.warning("Not under uvicorn's own signal handlers: the server ends when they say so.")
        return
    server.config.timeout_graceful_shutdown = GRACE_SECONDS
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _ending(signal.getsignal(signum), on_end))
    # The loop refers to the task while it runs; nothing awaits it.
    task = asyncio.get_running_loop().create_task(_close_idle(server))
    server.server_state.tasks.add(task)
    task.add_done_callback(server.server_state.tasks.discard)


def _server() -> uvicorn.Server | None:
    """The server that handles this process' signals, if this is its thread."""
    if threading.current_thread() is not threading.main_thread():
        return None
    owner = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return owner if isinstance(owner, uvicorn.Server) else None


def _ending(before: Any, on_end: Callable[[], None]) -> Callable[[int, FrameType | None], None]:
    told = False

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal told
        if not told:
            told = True
            threading.Thread(target=_end, args=(signum, on_end), name="ending", daemon=True).start()
        before(signum, frame)

    return handle


def _end(signum: int, on_end: Callable[[], None]) -> None:
    until = time.monotonic() + END_SECONDS
    try:
        on_end()
    finally:
        time.sleep(max(0.0, until - time.monotonic()))
        logger.warning("Something still runs %s seconds after the signal; ending without it.", END_SECONDS)
        logging.shutdown()
        os._exit(128 + signum)


async def _close_idle(server: uvicorn.Server) -> None:
    seen: dict[Any, tuple[Any, float]] = {}
    while not server.should_exit:
        await asyncio.sleep(_LOOK_SECONDS)
        seen = closed_idle(set(server.server_state.connections), seen, time.monotonic())


def closed_idle(
    connections: set[Any], seen: dict[Any, tuple[Any, float]], now: float
) -> dict[Any, tuple[Any, float]]:
    """Close the connections on which nothing has moved.

    Args:
        connections: uvicorn's protocols of HTTP.
        seen: what this gave the last time.
        now: the time, in seconds.

    Returns:
        The state of each open connection, and since when it has been so.
    """
    found = {}
    for connection in connections:
        state = _state(connection)
        if state is None:
            continue
        before, since = seen.get(connection, (None, now))
        found[connection] = (state, since if before == state else now)
        if now - found[connection][1] > IDLE_SECONDS:
            logger.info("Closed a connection on which nothing moved for %.0f s", IDLE_SECONDS)
            connection.transport.abort()
            del found[connection]
    return found


def _state(connection: Any) -> tuple[int, int] | None:
    """A value that changes when the connection is used; None while a request is answered or uploaded."""
    cycle, transport = getattr(connection, "cycle", None), getattr(connection, "transport", None)
    if transport is None:
        return None
    unsent = transport.get_write_buffer_size()
    if cycle is not None and not cycle.response_complete and not unsent:
        # The guard counts how long its body takes.
        return None
    return id(cycle), unsent

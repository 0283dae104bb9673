"""Turns to compute: a few requests at once, in threads, for as long as their clients wait."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from ..cancellation import Stopper, within
from .limits import WORKING, Limits
from .line import Line

T = TypeVar("T")


class Turns:
    """Lets a few requests compute while others wait. Belongs to one event loop.

    Args:
        limits: how many may wait, and how long.

    Attributes:
        line: those that wait.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.line = Line(WORKING, limits.queue, limits.timeout)
        self._threads = ThreadPoolExecutor(WORKING, thread_name_prefix="infer")

    async def run(self, request: Request, work: Callable[[], T]) -> T:
        """Run `work` in a thread and return its result; it is ended if the client leaves or it takes too
        long.

        The request's body must have been read.

        Raises:
            BusyError, LeftError: as `Line.turn`.
            Stopped: as `cancellation.check`.
        """
        gone = asyncio.ensure_future(_left(request))
        try:
            async with self.line.turn(gone):
                context = self._ended_with(gone)
                return await asyncio.get_running_loop().run_in_executor(self._threads, context.run, work)
        finally:
            gone.cancel()

    async def beside(self, request: Request, work: Callable[[], T]) -> T:
        """As `run`, without waiting for a turn: for work that reads and stores but does not compute.

        Raises:
            Stopped: as `cancellation.check`.
        """
        gone = asyncio.ensure_future(_left(request))
        try:
            return await run_in_threadpool(self._ended_with(gone).run, work)
        finally:
            gone.cancel()

    def _ended_with(self, gone: asyncio.Future[None]) -> contextvars.Context:
        """A context in which work ends once the client is gone or its time is over."""
        stopper = Stopper(self._limits.timeout)
        gone.add_done_callback(lambda _: stopper.stop())
        with within(stopper):
            return contextvars.copy_context()

    def close(self) -> None:
        """Take no more work."""
        self._threads.shutdown(wait=False, cancel_futures=True)


async def _left(request: Request) -> None:
    """Returns once the client has left."""
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return

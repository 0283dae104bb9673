"""Both protocols in one thread beside the server, each on a port of its own."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

import uvicorn
from starlette.applications import Starlette
from starlette.types import ASGIApp

from ..imaging.volume import Volume
from ..server.guard import UPLOADS, Guard
from ..server.limits import Limits
from ..server.turns import Turns
from . import itksnap, nninteractive
from .conversation import Segment
from .holding import Finished, SessionImage
from .options import ViewerOptions
from .sessions import Budget, Sessions
from .unpacking import Unpacker

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
_STOP_SECONDS = 5
_BACKLOG = 128


@dataclass(frozen=True)
class Served:
    """Where masks come from, and where they go.

    Attributes:
        segment: makes masks.
        forget: drops what was computed from an image that is not used any more.
        licence: of the weights.
        finished: receives the masks of an image; None if they are not learned from.
    """

    segment: Segment
    forget: Callable[[Volume], None]
    licence: str
    finished: Finished | None = None


class Viewers:
    """The protocols that are switched on.

    Args:
        options: which, and what their sessions may take.
        limits: of requests.
        served: what they answer with.

    Attributes:
        addresses: by protocol, of those that are listened to.
        sessions: by protocol.
        budget: of all sessions.
        look_seconds: how often sessions whose time is over are looked for.
    """

    def __init__(self, options: ViewerOptions, limits: Limits, served: Served) -> None:
        self.options, self._limits, self._served = options, limits, served
        self.budget = Budget(options.memory_bytes)
        self.look_seconds = LOOK_SECONDS
        self.addresses: dict[str, str] = {}
        self.sessions: dict[str, Sessions[SessionImage]] = {}
        self._unpacker = Unpacker(options.memory_bytes)
        self._servers: list[uvicorn.Server] = []
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Listen, in a thread of its own.

        If a port is taken the log says so, and the other protocol is served.
        """
        wanted = {"nnInteractive": self.options.nninteractive, "ITK-SNAP": self.options.itksnap}
        listening = {name: self._listen(name, port) for name, port in wanted.items() if port is not None}
        sockets = {name: found for name, found in listening.items() if found is not None}
        if not sockets:
            return
        started = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(sockets, started)), name="viewers", daemon=True
        )
        self._thread.start()
        started.wait()
        for name, found in sockets.items():
            host, port = found.getsockname()[:2]
            self.addresses[name] = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            logger.info("%s is answered at %s", name, self.addresses[name])

    def stop(self) -> None:
        """Stop listening and end all sessions."""
        for server in self._servers:
            server.should_exit = True
        if self._thread is not None:
            self._thread.join(_STOP_SECONDS)
        for sessions in self.sessions.values():
            sessions.close()
        self._unpacker.close()

    def _listen(self, name: str, port: int) -> socket.socket | None:
        try:
            family = socket.getaddrinfo(self.options.host, port, type=socket.SOCK_STREAM)[0][0]
            found = socket.create_server((self.options.host, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            logger.error(
                "%s is not answered: %s:%d can't be listened on (%s)",
                *(name, self.options.host, port, error.strerror or error),
            )
            return None
        return found

    async def _serve(self, sockets: dict[str, socket.socket], started: threading.Event) -> None:
        turns = Turns(self._limits)
        running = []
        for name, found in sockets.items():
            config = uvicorn.Config(self._app(name, turns), log_level="warning", lifespan="off")
            self._servers.append(uvicorn.Server(config))
            running.append(self._servers[-1].serve([found]))
        looking = asyncio.ensure_future(self._look())
        started.set()
        try:
            await asyncio.gather(*running)
        finally:
            looking.cancel()
            turns.close()

    def _app(self, name: str, turns: Turns) -> ASGIApp:
        options = self.options
        is_nninteractive = name == "nnInteractive"

        def hold() -> SessionImage:
            served = self._served
            return SessionImage(served.segment, self.budget, served.forget, served.finished)

        # ITK-SNAP gives no sign of life: one that crashed cannot be told from one whose user looks at slices.
        silent = options.liveness_seconds
        liveness, yields = (silent, None) if is_nninteractive else (None, silent)
        sessions = Sessions(hold, options.sessions, options.idle_seconds, liveness, yields)
        self.sessions[name] = sessions
        self.budget.when_short(sessions.end_longest_idle)
        shared = (sessions, self.budget, self._unpacker, turns)
        app: Starlette
        if is_nninteractive:
            app = nninteractive.NnInteractive(*shared, self._limits, self._served.licence, options.key).app()
            return Guard(app, self._limits, uploads=(*UPLOADS, nninteractive.OCTETS))
        return Guard(itksnap.ItkSnap(*shared).app(), self._limits)

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self.look_seconds)
            for name, sessions in self.sessions.items():
                ended = sessions.end_expired()
                if ended:
                    logger.info("%s: %d sessions ended that were not used any more", name, ended)

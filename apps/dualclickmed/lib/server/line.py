"""The waiting line: a few requests compute, some wait in order, the others get 503."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_FIRST_GUESS_SECONDS = 2.0
_WEIGHT_OF_LAST = 0.2


class BusyError(Exception):
    """The line is full, or the request waited for too long.

    Attributes:
        retry_after: whole seconds after which to try again.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class LeftError(Exception):
    """The client left before its turn came."""


class Line:
    """First come, first served. Belongs to one event loop.

    Args:
        working: requests that may work at once.
        waiting: further requests that may wait.
        patience: seconds that a request waits at most.
    """

    def __init__(self, working: int, waiting: int, patience: float) -> None:
        self.working, self.waiting, self.patience = working, waiting, patience
        self._busy = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._seconds = _FIRST_GUESS_SECONDS
        self._since: dict[object, float] = {}

    def overdue(self, seconds: float) -> int:
        """Requests that have worked for longer than `seconds`."""
        now = time.monotonic()
        return sum(now - since > seconds for since in self._since.values())

    @property
    def queued(self) -> int:
        """Requests that wait now."""
        return len(self._queue)

    @asynccontextmanager
    async def turn(self, gone: asyncio.Future[None]) -> AsyncIterator[None]:
        """Wait for a turn and hold it during the ``async with`` block.

        Args:
            gone: done as soon as the client has left.

        Raises:
            BusyError: the line is full or `patience` ran out.
            LeftError: the client left while it waited.
        """
        await self._enter(gone)
        start, turn = time.monotonic(), object()
        self._since[turn] = start
        try:
            yield
        finally:
            del self._since[turn]
            self._seconds += _WEIGHT_OF_LAST * (time.monotonic() - start - self._seconds)
            self._leave()

    async def _enter(self, gone: asyncio.Future[None]) -> None:
        if self._busy < self.working and not self._queue:
            self._busy += 1
            return
        if len(self._queue) >= self.waiting:
            raise BusyError(
                f"The server is busy: {len(self._queue)} requests wait already.", self._estimate()
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await asyncio.wait({turn, gone}, timeout=self.patience, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise LeftError
            if not turn.done():
                raise BusyError(
                    f"The server is busy: no turn came within {self.patience:.0f} seconds.", self._estimate()
                )
        except BaseException:
            if turn.done():
                self._leave()
            else:
                self._queue.remove(turn)
            raise

    def _leave(self) -> None:
        """Give the turn to the request that has waited longest, if any."""
        if self._queue:
            self._queue.popleft().set_result(None)
        else:
            self._busy -= 1

    def _estimate(self) -> int:
        return max(1, math.ceil(self._seconds * (1 + len(self._queue)) / self.working))

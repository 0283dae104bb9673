"""Sessions of viewers: tokens, time-outs, and a common bound of the memory that they hold."""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ..errors import UserError

logger = logging.getLogger(__name__)

RETRY_SECONDS = 30
"""When to try again where nothing better is known."""


class GoneError(Exception):
    """The session has ended, or never was."""


class FullError(Exception):
    """There are as many sessions, or as many bytes in them, as there may be.

    Attributes:
        retry_after: whole seconds after which to try again.
    """

    def __init__(self, message: str, retry_after: int = RETRY_SECONDS) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Budget:
    """A number of bytes that several owners share. Thread-safe.

    Args:
        most: bytes that all owners hold at most.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._lock = threading.Lock()
        self._held: dict[Hashable, int] = {}
        self._givers: list[Callable[[], bool]] = []

    @property
    def used(self) -> int:
        """Bytes that are held now."""
        return sum(self._held.values())

    def when_short(self, give: Callable[[], bool]) -> None:
        """Call `give` while bytes do not fit, until it returns False, which says that it freed nothing."""
        self._givers.append(give)

    def hold(self, owner: Hashable, nbytes: int) -> None:
        """Set the number of bytes that `owner` holds.

        Raises:
            UserError: they are more than the whole budget.
            FullError: they do not fit now, and no owner frees enough (`when_short`); `owner` keeps its own.
        """
        if nbytes > self.most:
            raise UserError(
                f"Viewers' sessions may hold {self.most} bytes, but this image needs {nbytes} "
                "(--conf viewers_gb)."
            )
        while not self._held_if_it_fits(owner, nbytes):
            if not any(give() for give in self._givers):
                raise FullError("The images of other sessions take the memory that this one needs.")

    def _held_if_it_fits(self, owner: Hashable, nbytes: int) -> bool:
        with self._lock:
            if self.used - self._held.get(owner, 0) + nbytes > self.most:
                return False
            if nbytes:
                self._held[owner] = nbytes
            else:
                self._held.pop(owner, None)
            return True

    @contextmanager
    def held(self, nbytes: int) -> Iterator[None]:
        """Hold a number of bytes during the ``with`` block.

        Raises:
            as `hold`.
        """
        owner = object()
        self.hold(owner, nbytes)
        try:
            yield
        finally:
            self.hold(owner, 0)


class Closing(Protocol):
    """What a session holds."""

    def close(self) -> None:
        """Free everything."""


HeldT = TypeVar("HeldT", bound=Closing)


@dataclass(eq=False)
class _Session(Generic[HeldT]):
    held: HeldT
    used: float
    alive_at: float
    busy: int = 0


class Sessions(Generic[HeldT]):
    """Sessions by token. Thread-safe.

    Args:
        make: makes what a new session holds.
        most: sessions at once.
        idle_seconds: after the last use a session ends.
        liveness_seconds: after the last sign of life a session ends; None where viewers give none.
        yield_seconds: after the last use a session ends if another one needs its place or its memory; None
            where viewers give signs of life, which tell more.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        make: Callable[[], HeldT],
        most: int,
        idle_seconds: float,
        liveness_seconds: float | None = None,
        yield_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._make = make
        self.most, self.idle_seconds, self.liveness_seconds = most, idle_seconds, liveness_seconds
        self._yield_seconds = yield_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: dict[str, _Session[HeldT]] = {}

    def __len__(self) -> int:
        return len(self._sessions)

    def claim(self) -> str:
        """The token of a new session.

        Raises:
            FullError: there are `most` already.
        """
        self.end_expired()
        if len(self) >= self.most:
            self.end_longest_idle()
        with self._lock:
            if len(self._sessions) >= self.most:
                soonest = min(self._kept_for(session) for session in self._sessions.values())
                raise FullError(
                    f"All {self.most} sessions are in use (--conf viewers_sessions).",
                    max(1, math.ceil(soonest)),
                )
            token, now = secrets.token_urlsafe(24), self._clock()
            self._sessions[token] = _Session(self._make(), now, now)
        return token

    @contextmanager
    def using(self, token: str) -> Iterator[HeldT]:
        """What a session holds; it does not expire meanwhile.

        Raises:
            GoneError: there is no such session.
        """
        with self._lock:
            session = self._found(token)
            session.busy += 1
        try:
            yield session.held
        finally:
            with self._lock:
                session.busy -= 1
                session.used = session.alive_at = self._clock()
                ended = self._sessions.get(token) is not session and session.busy == 0
            if ended:
                session.held.close()

    def beat(self, token: str) -> float:
        """Note a sign of life, which does not count as use; returns the seconds until the session expires as
        idle.

        Raises:
            GoneError: there is no such session.
        """
        with self._lock:
            session = self._found(token)
            session.alive_at = self._clock()
            return self._remaining(session)

    def remaining(self, token: str) -> float:
        """The same seconds without noting a sign of life.

        Raises:
            GoneError: there is no such session.
        """
        with self._lock:
            return self._remaining(self._found(token))

    def release(self, token: str) -> None:
        """End a session; one that is being used ends when it is not any more.

        Raises:
            GoneError: there is no such session.
        """
        with self._lock:
            session = self._found(token)
            del self._sessions[token]
            idle = session.busy == 0
        if idle:
            session.held.close()

    def end_expired(self) -> int:
        """End every session whose time is over; how many there were."""
        with self._lock:
            over = [token for token, session in self._sessions.items() if self._is_over(session)]
            ended = [self._sessions.pop(token) for token in over]
        for session in ended:
            session.held.close()
        return len(ended)

    def end_longest_idle(self) -> bool:
        """End the session that was not used for longest, if that is more than `yield_seconds`; whether one
        was ended.
        """
        with self._lock:
            idle = [token for token, session in self._sessions.items() if not session.busy]
            if self._yield_seconds is None or not idle:
                return False
            token = min(idle, key=lambda token: self._sessions[token].used)
            idle_seconds = self._clock() - self._sessions[token].used
            if idle_seconds <= self._yield_seconds:
                return False
            ended = self._sessions.pop(token)
        logger.info(
            "A session that was idle for %.0f s ended: another one needs its place or memory", idle_seconds
        )
        ended.held.close()
        return True

    def close(self) -> None:
        """End all sessions."""
        for token in list(self._sessions):
            try:
                self.release(token)
            except GoneError:
                continue

    def _found(self, token: str) -> _Session[HeldT]:
        session = self._sessions.get(token)
        if session is None or self._is_over(session):
            raise GoneError(
                "This session has ended: it was released, idle for too long, or idle while another viewer "
                "needed its place or memory. Connect again; the image is then sent anew."
            )
        return session

    def _remaining(self, session: _Session[HeldT]) -> float:
        return max(0.0, session.used + self.idle_seconds - self._clock())

    def _is_over(self, session: _Session[HeldT]) -> bool:
        if session.busy:
            return False
        now = self._clock()
        if now > session.used + self.idle_seconds:
            return True
        return self.liveness_seconds is not None and now > session.alive_at + self.liveness_seconds

    def _kept_for(self, session: _Session[HeldT]) -> float:
        """Seconds until a new session may replace this one, if its viewer sends nothing until then."""
        ends = [session.used + self.idle_seconds]
        if self.liveness_seconds is not None:
            ends.append(session.alive_at + self.liveness_seconds)
        if self._yield_seconds is not None:
            ends.append(session.used + self._yield_seconds)
        return min(ends) - self._clock()

"""Ending a computation between two of its stages, because its user has left or it takes too long.

A computation that somebody waits for runs `within` a `Stopper`; code that takes long calls `check` where it
can end without leaving anything half done. Outside of a stopper `check` does nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Stopped(Exception):
    """The computation was ended because nobody waits for it any more, or for too long already."""


class Stopper:
    """Tells one computation to end. Thread-safe.

    Args:
        seconds: the computation may take; None for any.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._stop = threading.Event()
        self._seconds = seconds
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def stop(self) -> None:
        """End the computation at its next `check`."""
        self._stop.set()

    def check(self) -> None:
        """Return, or end the computation.

        Raises:
            Stopped: `stop` was called, or the time is over.
        """
        if self._stop.is_set():
            raise Stopped("Nobody waits for this answer any more.")
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise Stopped(f"The answer was not ready within {self._seconds:.0f} seconds.")


_current: ContextVar[Stopper | None] = ContextVar("stopper", default=None)


@contextmanager
def within(stopper: Stopper) -> Iterator[None]:
    """Everything called in the ``with`` block can be ended by `stopper`."""
    token = _current.set(stopper)
    try:
        yield
    finally:
        _current.reset(token)


def check() -> None:
    """Return, or end the computation that runs here.

    Raises:
        Stopped: see `Stopper.check`.
    """
    stopper = _current.get()
    if stopper is not None:
        stopper.check()

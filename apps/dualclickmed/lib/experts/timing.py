"""How long each part of an answer took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..cancellation import check


class StageTimer(dict[str, float]):
    """Seconds by stage name, summed over everything that ran under that name.

    A stage that a cache made unnecessary is absent. On a GPU work is queued: a stage that hands its result
    to the CPU (``decode``) also waits for what was queued before it.
    """

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time spent in the ``with`` block to stage `name`; a computation may be ended before it.

        Raises:
            Stopped: see `cancellation`.
        """
        check()
        start = time.perf_counter()
        try:
            yield
        finally:
            self[name] = self.get(name, 0.0) + time.perf_counter() - start

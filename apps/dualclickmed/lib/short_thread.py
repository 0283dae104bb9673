"""Work on tensors beside the thread that computes, without slowing that thread down.

OpenMP gives every thread in which PyTorch works on many numbers a team of workers, and keeps it as long as
the thread lives. As soon as a process has more of them than there are processors, all of them sleep between
two loops instead of waiting awake, and small networks take 1.4 times as long. The team ends with its thread.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

T = TypeVar("T")


def in_short_thread(work: Callable[[], T]) -> T:
    """Run `work` in a thread that ends with it, and return its result or raise its error.

    It sees the caller's context variables.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(copy_context().run, work).result()

"""The switch between reading files in this process and in one that can be killed.

Readers pass bytes to native libraries, which may never end, take all memory, or crash. A server lets them run
in a process of their own, see `server.reading`; the command line and trainings read where they are.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

Given = ParamSpec("Given")
Found = TypeVar("Found")
Runner = Callable[[str, tuple[Any, ...]], Any]
"""Runs the reader of that name with these arguments and returns its result."""

READERS: dict[str, Callable[..., Any]] = {}
"""The readers by name, as they run in this process."""
_runner: Runner | None = None


def reader(function: Callable[Given, Found]) -> Callable[Given, Found]:
    """Decorator for a function that reads a file; its first argument is the path.

    Arguments and results have to be plain values, arrays, paths or dataclasses of `imaging`.
    """
    name, signature = function.__name__, inspect.signature(function)
    READERS[name] = function

    @functools.wraps(function)
    def read(*args: Given.args, **kwargs: Given.kwargs) -> Found:
        if _runner is None:
            return function(*args, **kwargs)
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        found: Found = _runner(name, given.args)
        return found

    return read


def run_by(runner: Runner | None) -> None:
    """Let `runner` run all readers of this process from now on; None: run them here."""
    global _runner
    _runner = runner

"""Where files are read: in this process, or in another one that can be killed.

Readers hand bytes to native libraries, which may take for ever, take all memory, or crash. A server lets
them run in a process of their own, see `server.reading`; the command line and trainings read where they are.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

Given = ParamSpec("Given")
Found = TypeVar("Found")
Runner = Callable[[str, tuple[Any, ...]], Any]
"""Runs the reader of that name with these arguments and gives what it found."""

READERS: dict[str, Callable[..., Any]] = {}
"""The readers by name, each as it runs where it is."""
_runner: Runner | None = None


def reader(function: Callable[Given, Found]) -> Callable[Given, Found]:
    """A function that reads files, the first argument being their path.

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
    """Let `runner` run all readers of this process from now on; None for where they are."""
    global _runner
    _runner = runner

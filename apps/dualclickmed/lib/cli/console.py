"""What several commands share: options and output."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..errors import UserError

ModelDir = Annotated[
    Path | None,
    typer.Option(help="Folder of weights (default: $DUALCLICKMED_MODEL_DIR, else the repository's model/)."),
]

Preset = Annotated[
    str | None,
    typer.Option(
        help="Weights of that folder: compact, transformer or paper (default: what 'weights use' chose)."
    ),
]

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]

logger = logging.getLogger(__name__)

LOG_EVERY = 30.0
"""Seconds between lines of progress where there is no terminal."""


def stderr() -> Console:
    """A console that prints to standard error."""
    return Console(stderr=True)


def say(console: Console, text: str) -> None:
    """Print a sentence as it is: without markup, coloured numbers and line breaks, for scripts."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def existing(option: str, path: Path | None, wanted: str) -> None:
    """Refuse a path that is not there before anything is loaded, which takes seconds.

    Raises:
        UserError: a path is given, and nothing has it.
    """
    if path is not None and not path.exists():
        raise UserError(f"{option} takes {wanted}, but there is no '{path}'.")


@contextmanager
def loading(console: Console) -> Iterator[None]:
    """Show that imports are under way, and skip packages that MONAI imports without need.

    A terminal shows it meanwhile; a log gets a line.
    """
    from ..server.starting import import_monai

    if not console.is_terminal:
        say(console, "Loading PyTorch and MONAI")
    with console.status("Loading PyTorch and MONAI"):
        import_monai()
        yield


def pairs(option: str, form: str, texts: Sequence[str]) -> dict[str, str]:
    """Names and values of an option that may be repeated.

    Args:
        option: for the message: --conf.
        form: likewise: KEY=VALUE.
        texts: as they were given; a later one goes before an earlier one of the same name.

    Raises:
        UserError: one has no name or no "=".
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise UserError(f"{option} takes {form}, but '{text}' came.")
        found[key] = value
    return found


class CaseProgress:
    """How many cases are done and how long the rest will take: a bar, or lines where there is no terminal."""

    def __init__(self, console: Console, what: str, total: int) -> None:
        self._what = what
        self._begin = self._told = time.monotonic()
        self._bar = Progress(
            TextColumn(what),
            BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task(what, total=total)

    def __enter__(self) -> CaseProgress:
        self._bar.start()
        if self._bar.disable:
            logger.info(
                "0 of %d %s; a line about every %.0f s", self._bar.tasks[0].total, self._what, LOG_EVERY
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def done(self, number: int, total: int) -> None:
        """Show that `number` of `total` cases are done."""
        self._bar.update(self._task, completed=number, total=total)
        now = time.monotonic()
        if self._bar.disable and (now - self._told > LOG_EVERY or number == total):
            self._told = now
            left = (now - self._begin) / number * (total - number)
            logger.info("%d of %d %s, about %.0f s left", number, total, self._what, left)

"""What several commands share: options, and how they speak to the user."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..errors import UserError

ModelDir = Annotated[
    Path | None,
    typer.Option(help="Folder of weights (default: $DUALCLICKMED_MODEL_DIR, else the repository's model/)."),
]

Preset = Annotated[
    str | None,
    typer.Option(help="Weights of that folder: compact, unet or paper (default: what 'weights use' chose)."),
]

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


def stderr() -> Console:
    return Console(stderr=True)


def say(console: Console, text: str) -> None:
    """A sentence as it is: no markup, no coloured numbers, no line breaks that a script would trip over."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


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

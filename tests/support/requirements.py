"""The lists of packages."""

from __future__ import annotations

from .scripts import ROOT


def lines(file: str) -> list[str]:
    """The requirements of a file, without comments and options."""
    found = (line.strip() for line in (ROOT / file).read_text().splitlines())
    return [line for line in found if line and not line.startswith(("#", "-"))]

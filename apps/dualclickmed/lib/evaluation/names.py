"""The names of an evaluation's methods and starts, without loading the code behind them."""

from __future__ import annotations

from ..errors import UserError
from ..strategies import DEFAULT_STRATEGY, STRATEGIES

OURS = "ours"
CLASSICAL = ("ellipsoid", "graph-cut", "random-walker", "region-growing")
PUBLISHED = ("sam-med3d", "vista3d", "nninteractive")
SEGVOL = "segvol"
DEFAULT = (OURS, *CLASSICAL)
"""The methods that are run where none is named."""
STARTS = ("box", "point", "box2d", "lasso", "scattered")
"""What a user gives first: the exact box, a voxel deep inside, a rectangle in one slice (`drawn_box`), a line
around the object in one slice (`drawn_lasso`), or many voxels all over the object (`scattered_clicks`)."""
TIME_LIMIT = 90.0
"""Seconds for each class of a case over all steps; beyond it every score of the case is 0."""


def known() -> str:
    """Every name of a method, for messages."""
    return ", ".join(
        [
            OURS,
            *STRATEGIES,
            *CLASSICAL,
            *(f"{name}:WEIGHTS" for name in PUBLISHED),
            f"{SEGVOL}=CLONE",
            "NAME=FILE.py",
        ]
    )


def name_of(text: str) -> str:
    """How a method is called in tables and files: without its argument.

    Raises:
        UserError: there is no such method.
    """
    own, equals, _ = text.partition("=")
    if equals and own.isidentifier() and own not in (OURS, *STRATEGIES):
        return own
    name, colon, argument = text.partition(":")
    if name in (OURS, *STRATEGIES, *CLASSICAL) and not colon:
        return DEFAULT_STRATEGY if name == OURS else name
    if name in PUBLISHED:
        if not argument:
            raise UserError(f"The method '{name}' needs its weights: '{name}:PATH'.")
        return name
    raise UserError(f"A method must be one of {known()}, but it is '{text}'.")

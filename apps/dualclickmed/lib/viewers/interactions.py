"""The interactions of viewers as prompts: points, rectangles and boxes, scribbles, lassos.

All in canonical order (z, y, x) of one volume. The order of interactions matters where they contradict one
another: the later one counts, as users expect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import PromptError
from ..imaging.geometry import Box, Index, Position
from ..imaging.lassos import understood
from ..imaging.plane_boxes import joined
from ..imaging.prompts import Click, Prompts

Mask = npt.NDArray[np.bool_]
Voxels = npt.NDArray[np.int32]

MOST_OF_A_STROKE = 2_000
"""Voxels of one scribble that count as clicks; of a longer one as many, evenly spread over it."""
MOST_CLICKS = 10_000
"""Clicks of one object, as for every other client."""


@dataclass(frozen=True, eq=False)
class Interaction:
    """One thing that a user did.

    Attributes:
        positive: whether it shows the object, or else what does not belong to it.
        voxels: (N, 3) clicked; possibly none.
        box: around the object, possibly flat; None without one.
    """

    positive: bool
    voxels: Voxels = field(default_factory=lambda: np.zeros((0, 3), dtype=np.int32))
    box: Box | None = None

    @property
    def nbytes(self) -> int:
        """Memory of the voxels."""
        return self.voxels.nbytes


def point(index: Index, positive: bool) -> Interaction:
    """A click."""
    return Interaction(positive, np.asarray([index], dtype=np.int32))


def box(drawn: Box, positive: bool, shape: Sequence[int]) -> Interaction:
    """A box or, if it is one voxel thick, a rectangle.

    A box around background is drawn loosely and may include some of the object, so it becomes one background
    click in its middle.

    Args:
        drawn: in voxel edges.
        positive: whether it shows the object; otherwise background.
        shape: (D, H, W) of the volume.

    Raises:
        PromptError: it has no part in a volume of `shape`.
    """
    region = drawn.centres(shape)
    if any(side.start >= side.stop for side in region):
        raise PromptError(
            f"A box must overlap the volume of shape {tuple(shape)}, but it spans {drawn.lo} to {drawn.hi}."
        )
    if positive:
        return Interaction(positive, box=drawn)
    middle = [(side.start + side.stop - 1) // 2 for side in region]
    return Interaction(positive, np.asarray([middle], dtype=np.int32))


def scribble(mask: Mask, corner: Index, positive: bool) -> Interaction:
    """A stroke: every voxel of it is a click.

    Args:
        mask: the stroke on the grid of the image, or of a part of it.
        corner: first voxel of that part in the image.
        positive: whether it shows the object; otherwise background.

    Raises:
        PromptError: it is empty.
    """
    return Interaction(positive, _spread(_filled(mask, corner, "scribble"), MOST_OF_A_STROKE))


def lasso(mask: Mask, corner: Index, positive: bool) -> Interaction:
    """A region drawn around something, as a box around it and clicks in its depth.

    A lasso around background gives the clicks only.

    Args:
        mask: the line or the region inside it, on the grid of the image or of a part of it.
        corner: first voxel of that part in the image.
        positive: whether it shows the object; otherwise background.

    Raises:
        PromptError: it is empty.
    """
    _filled(mask, corner, "lasso")
    core, around = understood(mask)
    offset = np.asarray(corner)
    lo, hi = np.asarray(around.lo) + offset, np.asarray(around.hi) + offset
    drawn = Box.between(lo, hi)
    return Interaction(positive, (core + offset).astype(np.int32), drawn if positive else None)


def prompts_of(
    interactions: Sequence[Interaction], spacing: Position, start: Mask | None = None
) -> Prompts | None:
    """All that a user did so far as the prompts of one object.

    Args:
        interactions: the oldest first.
        spacing: of the image, see `joined`.
        start: the mask (D, H, W) that is corrected; None without one.

    Returns:
        None if nothing shows where the object is, or contradicts the mask that is corrected.
    """
    kinds: dict[Index, bool] = {}
    for done in interactions:
        for z, y, x in done.voxels.tolist():
            # A repeated click counts as new, so that it overrides what contradicts it.
            kinds.pop((z, y, x), None)
            kinds[z, y, x] = done.positive
    boxes = [done.box for done in interactions if done.box is not None]
    if not boxes and not any(kinds.values()) and (start is None or not any(start[index] for index in kinds)):
        return None
    clicks = [Click(index, positive) for index, positive in kinds.items()]
    if len(clicks) > MOST_CLICKS:
        clicks = [clicks[at] for at in _evenly(len(clicks), MOST_CLICKS)]
    return Prompts(tuple(clicks), joined(boxes, spacing) if boxes else None)


def _filled(mask: Mask, corner: Index, what: str) -> Voxels:
    voxels = np.argwhere(mask)
    if not len(voxels):
        raise PromptError(f"A {what} must have voxels, but this one is empty.")
    return (voxels + np.asarray(corner)).astype(np.int32)


def _spread(voxels: npt.NDArray[Any], most: int) -> npt.NDArray[Any]:
    return voxels if len(voxels) <= most else voxels[_evenly(len(voxels), most)]


def _evenly(count: int, most: int) -> npt.NDArray[np.int64]:
    return np.linspace(0, count - 1, most).round().astype(np.int64)

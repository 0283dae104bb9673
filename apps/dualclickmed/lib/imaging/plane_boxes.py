"""Rectangles drawn in planes of a viewer, joined to the box of one object.

A rectangle is a box that is one voxel thick. It gives two sides; the third one is estimated from them until
a rectangle in another plane gives it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .geometry import Box, Position

THICKNESS = 1.25
"""The third side, as a multiple of the geometric mean of the two that were drawn, in millimetres.

Of labelled objects in the slice where they are largest the median is 1.27 (quartiles 0.93 and 1.78), and no
other mean of the two sides is closer. Masks of `fused` change little from 1.0 to 1.6 (docs/evaluation.md).
"""
FLAT = 1.0
"""A box with a side of at most this many voxels is a rectangle."""


def joined(boxes: Sequence[Box], spacing: Position) -> Box:
    """The box of an object of which rectangles and boxes were drawn, in any order.

    Along each axis it covers all boxes. An axis along which every box is flat gets a side of `THICKNESS`,
    centred on the drawn planes, or the planes' distance if that is more, in whole voxels.

    Args:
        boxes: in voxel edges (z, y, x); at least one.
        spacing: millimetres between voxels along (z, y, x).

    Returns:
        Possibly larger than the image.
    """
    drawn = boxes[0]
    for box in boxes[1:]:
        drawn = drawn.union(box)
    told = [[box.sides[axis] > FLAT for box in boxes] for axis in range(3)]
    lo, hi = list(drawn.lo), list(drawn.hi)
    lengths = [(b - a) * step for a, b, step, known in zip(lo, hi, spacing, told, strict=True) if any(known)]
    if not lengths:
        return drawn
    guess = THICKNESS * math.prod(lengths) ** (1 / len(lengths))
    for axis in range(3):
        if not any(told[axis]):
            middle = (lo[axis] + hi[axis]) / 2
            side = max(hi[axis] - lo[axis], guess / spacing[axis])
            lo[axis], hi[axis] = math.floor(middle - side / 2), math.ceil(middle + side / 2)
    return Box.between(lo, hi)

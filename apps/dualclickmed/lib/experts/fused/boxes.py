"""Boxes of `strategy=fused`: what clicks make of a drawn one, and one for clicks without any."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from ...imaging.geometry import Box, Index
from .random_walker import Field
from .refinement import Mask, RegionFeatures

LEAST_FILL = 0.05
"""Share of a box that an answer to the box alone has to fill; otherwise the ellipsoid in it is the answer."""


def widened(box: Box, foreground: Sequence[Index]) -> Box:
    """The box, enlarged for foreground clicks outside it.

    A click is taken to lie in the middle of what the box misses, so a side moves by twice its distance to it.

    Args:
        box: in voxel edges.
        foreground: clicked voxels.
    """
    lo, hi = list(box.lo), list(box.hi)
    for index in foreground:
        for axis, voxel in enumerate(index):
            at = voxel + 0.5
            lo[axis] = min(lo[axis], 2 * at - box.lo[axis])
            hi[axis] = max(hi[axis], 2 * at - box.hi[axis])
    return Box.between(lo, hi)


def proposed_box(found: Mask, features: RegionFeatures, clicked: Sequence[Index]) -> Box | None:
    """The box around those parts of a mask that were clicked, or around the largest if none was.

    Args:
        found: mask on the grid of the region.
        features: of the region.
        clicked: foreground clicks, in voxels of the image.

    Returns:
        In voxel edges of the image; None for an empty mask.
    """
    parts, count = ndimage.label(found)
    if count == 0:
        return None
    roi = features.roi
    wanted = {int(parts[features.cell(index)]) for index in clicked if roi.box.contains(index)} - {0}
    if not wanted:
        wanted = {int(np.bincount(parts.ravel())[1:].argmax()) + 1}
    around = Box.of_mask(np.isin(parts, list(wanted)))
    return roi.box_to_voxel(around)


def is_nearly_empty(probability: Field, features: RegionFeatures, box: Box) -> bool:
    """Whether the mask is as good as empty: a box promises an object that reaches its faces."""
    cells = math.prod(s / c for s, c in zip(box.sides, features.roi.spacing, strict=True))
    return float(np.count_nonzero(probability > 0.5)) < LEAST_FILL * cells

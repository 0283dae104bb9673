"""Where a training window lies, and which of its cells lie in the image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..imaging.geometry import Box, Index, Roi, crop_to_grid

JITTER = 6
# Windows about a click: side in longest sides of the object, the least in finest voxels, and how far the
# click is off the middle, in sides.
WINDOW_SIDES, LEAST_WINDOW, WINDOW_JITTER = (1.15, 5.0), 8.0, 0.1


def inside(shape: Sequence[int], roi: Roi) -> Tensor:
    """Which cells of a region lie in an image of that shape."""
    return crop_to_grid(np.broadcast_to(np.uint8(1), shape), roi) > 0.5


def window_about(
    mask: npt.NDArray[np.bool_],
    click: Index,
    spacing: Sequence[float],
    grid: int,
    rng: np.random.Generator,
) -> Roi:
    """A cube in space about a click, from hardly larger than the object to much larger.

    Args:
        mask: (D, H, W) of the object.
        click: voxel of the mask.
        spacing: (z, y, x) of its voxels.
        grid: cells of the region along each axis.
        rng: source of the choices.
    """
    step = np.asarray(spacing, dtype=float)
    longest = float((np.asarray(Box.of_mask(mask).sides) * step).max())
    least, most = (math.log(v) for v in WINDOW_SIDES)
    side = longest * math.exp(rng.uniform(least, most))
    side = max(side, LEAST_WINDOW * float(step.min()))
    middle = (np.asarray(click) + 0.5) * step + rng.uniform(-1, 1, size=3) * WINDOW_JITTER * side
    lo, hi = (((middle + end * side / 2) / step).tolist() for end in (-1, 1))
    return Roi(Box.between(lo, hi), (grid,) * 3)


def jittered(centre: Index, rng: np.random.Generator) -> Index:
    """A window's centre as it is, or, every other time, up to `JITTER` voxels off along each axis."""
    shift = rng.integers(-JITTER, JITTER + 1, size=3) if rng.random() < 0.5 else np.zeros(3, dtype=int)
    z, y, x = (int(v) for v in np.asarray(centre) + shift)
    return z, y, x

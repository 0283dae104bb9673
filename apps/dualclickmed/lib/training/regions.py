"""Where a training window lies, and which of its cells lie in the image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..imaging.geometry import Index, Roi, crop_to_grid

JITTER = 6


def inside(shape: Sequence[int], roi: Roi) -> Tensor:
    """Which cells of a region lie in an image of that shape."""
    return crop_to_grid(np.broadcast_to(np.uint8(1), shape), roi) > 0.5


def jittered(centre: Index, rng: np.random.Generator) -> Index:
    """A window's centre as it is, or, every other time, up to `JITTER` voxels off along each axis."""
    shift = rng.integers(-JITTER, JITTER + 1, size=3) if rng.random() < 0.5 else np.zeros(3, dtype=int)
    z, y, x = (int(v) for v in np.asarray(centre) + shift)
    return z, y, x

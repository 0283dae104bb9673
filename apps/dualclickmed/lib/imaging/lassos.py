"""A closed line that was drawn around an object in a plane, as clicks and a rectangle.

Viewers send what the line encloses, or the line alone. It is drawn loosely, so that what lies near it may not
belong to the object; what lies deep inside does.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from .geometry import Box

Mask = npt.NDArray[np.bool_]
CORE = 0.5
"""How deep, as a part of the deepest voxel's depth, a voxel surely belongs to the object."""
MOST_OF_A_CORE = 16
"""Voxels of that core that count as clicks (docs/evaluation.md has what other numbers measured)."""


def understood(
    mask: Mask, core: float = CORE, most: int = MOST_OF_A_CORE
) -> tuple[npt.NDArray[np.int32], Box]:
    """What a lasso tells about an object.

    Args:
        mask: (D, H, W), the line or all that it encloses, with a voxel at least. Several slices are taken as
            they are.
        core: least depth of clicks, as a part of the deepest voxel's.
        most: clicks.

    Returns:
        (N, 3) voxels inside the object, the deepest one among them; and the box around the lasso, flat where
        the lasso is.
    """
    around = Box.of_mask(mask)
    z, y, x = around.voxels(mask.shape)
    part = mask[z, y, x]
    # In a plane the depth is that in the plane: the voxels beside it are not known.
    flat = tuple(axis for axis in range(3) if part.shape[axis] == 1)[:2]
    inside = np.pad(ndimage.binary_fill_holes(part.squeeze(flat)), 1)
    depth = np.expand_dims(ndimage.distance_transform_edt(inside)[(slice(1, -1),) * inside.ndim], flat)
    deep = np.argwhere(depth > core * depth.max())
    if len(deep) > most - 1:
        deep = deep[np.linspace(0, len(deep) - 1, most - 1).round().astype(np.int64)]
    deepest = np.asarray(np.unravel_index(depth.argmax(), depth.shape))
    corner = np.asarray([z.start, y.start, x.start])
    found = np.unique(np.vstack([deep, deepest]), axis=0) + corner
    return found.astype(np.int32), around

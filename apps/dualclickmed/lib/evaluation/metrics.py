"""Scores of one mask against the truth, and where the challenge's annotator clicks next."""

from __future__ import annotations

import cc3d
import edt
import numpy as np
import numpy.typing as npt

from ..prompts import Click

Mask = npt.NDArray[np.bool_]


def dice(mask: Mask, truth: Mask) -> float:
    """Dice similarity coefficient of two (D, H, W) boolean masks; 1 when both are empty."""
    total = int(mask.sum()) + int(truth.sum())
    return 1.0 if total == 0 else 2.0 * int((mask & truth).sum()) / total


def next_click(mask: Mask, truth: Mask, seed: int = 42) -> Click | None:
    """The challenge's next click: inside the largest error component, as far from its surface as possible.

    Components are 26-connected; the distance is Euclidean in voxels; ties are drawn by a generator seeded
    with `seed`.

    Returns:
        A click, positive where the truth is foreground, or None when there is no error.
    """
    wrong = mask != truth
    if not wrong.any():
        return None
    components = cc3d.connected_components(wrong, connectivity=26)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    largest = components == int(sizes.argmax())
    depth = edt.edt(np.ascontiguousarray(largest), black_border=True)
    deepest = np.argwhere(depth == depth.max())
    z, y, x = (int(v) for v in deepest[np.random.default_rng(seed).integers(len(deepest))])
    return Click((z, y, x), bool(truth[z, y, x]))


def ellipsoid_in_box(shape: tuple[int, ...], lo: tuple[float, ...], hi: tuple[float, ...]) -> Mask:
    """The ellipsoid inscribed in a half-open box of voxel edges: the guess of whoever sees the box alone.

    Args:
        shape: (D, H, W) of the volume.
        lo, hi: the box, (z, y, x).
    """
    total = np.zeros(shape, dtype=np.float32)
    for axis in range(3):
        centre, half = (lo[axis] + hi[axis]) / 2, (hi[axis] - lo[axis]) / 2
        scaled = ((np.arange(shape[axis], dtype=np.float32) + 0.5 - centre) / half) ** 2
        total += scaled.reshape([-1 if a == axis else 1 for a in range(3)])
    return total <= 1

"""Scores of a mask against the truth, and where the challenge's annotator clicks next.

Everything agrees with the challenge's own evaluation to rounding: Dice, surface Dice with its surface
elements, the area under the curve of the click steps, and the position of the next click.
"""

from __future__ import annotations

from collections.abc import Sequence

import cc3d
import edt
import numpy as np
import numpy.typing as npt
from monai.metrics.utils import create_table_neighbour_code_to_surface_area
from scipy import integrate, ndimage
from scipy.spatial import KDTree

from ..imaging.geometry import Box, Position
from ..imaging.prompts import Click

Mask = npt.NDArray[np.bool_]

TOLERANCE = 2.0
"""How far two surfaces may be apart to count as the same, in the unit of the spacing (the challenge: mm)."""
SEED = 42
"""Of the challenge's choice among voxels that are equally deep."""
_CORNERS = np.array([[[128, 64], [32, 16]], [[8, 4], [2, 1]]], dtype=np.uint8)
"""What each voxel of a 2x2x2 neighbourhood adds to the code by which areas are looked up."""
_SLACK = 1 + 1e-6


def dice(mask: Mask, truth: Mask) -> float:
    """Dice similarity coefficient of two (D, H, W) boolean masks; 1 when both are empty."""
    total = np.count_nonzero(mask) + np.count_nonzero(truth)
    return 1.0 if total == 0 else 2.0 * np.count_nonzero(mask & truth) / total


def surface_dice(mask: Mask, truth: Mask, spacing: Position, tolerance: float = TOLERANCE) -> float:
    """Normalised surface Dice (NSD): the share of both surfaces that lies within `tolerance` of the other
    one.

    Surface elements sit at the corners between voxels, one for each 2x2x2 neighbourhood that is neither full
    nor empty; their areas come from the table of Nikolov et al. (arXiv:1809.04430), as in the challenge.

    Args:
        mask, truth: (D, H, W) bool.
        spacing: distance between voxels along the three axes, as the challenge takes it from the case file.
        tolerance: in the unit of `spacing`.

    Returns:
        In [0, 1]; 0 if one mask is empty, 1 if both are.
    """
    either = mask | truth
    if not either.any():
        return 1.0
    region = Box.of_mask(either).voxels(mask.shape)
    if not mask[region].any() or not truth[region].any():
        return 0.0
    table, _ = create_table_neighbour_code_to_surface_area(spacing)
    areas = table.double().numpy()
    (at_mask, area_mask), (at_truth, area_truth) = (_surface(m[region], areas) for m in (mask, truth))
    near_mask = _near(at_mask, at_truth, spacing, tolerance)
    near_truth = _near(at_truth, at_mask, spacing, tolerance)
    return float(
        (area_mask[near_mask].sum() + area_truth[near_truth].sum()) / (area_mask.sum() + area_truth.sum())
    )


def _surface(
    mask: Mask, areas: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Positions (N, 3) of a mask's surface elements, in corners of voxels, and their areas (N,)."""
    padded = np.pad(mask, ((0, 1), (0, 1), (0, 1))).astype(np.uint8)
    codes = ndimage.correlate(padded, _CORNERS, mode="constant", cval=0)
    at = np.argwhere((codes != 0) & (codes != 255))
    return at, areas[codes[tuple(at.T)]]


def _near(
    points: npt.NDArray[np.int64], others: npt.NDArray[np.int64], spacing: Position, tolerance: float
) -> Mask:
    """Which of the points have one of the others within `tolerance`."""
    step = np.asarray(spacing, dtype=np.float64)
    _, nearest = KDTree(others * step).query(points * step, distance_upper_bound=tolerance * _SLACK)
    near = nearest < len(others)
    # From whole differences, as a distance transform has it: "exactly 2 mm" must not depend on the position.
    offsets = (points[near] - others[nearest[near]]) * step
    near[near] = np.sqrt(np.square(offsets).sum(axis=1)) <= tolerance
    return near


def next_click(mask: Mask, truth: Mask) -> Click | None:
    """The challenge's next click: inside the largest error component, as far from its surface as possible.

    Components are 26-connected; the distance is Euclidean in voxels; ties are drawn by a generator that is
    seeded anew for each click.

    Returns:
        A click, positive where the truth is foreground, or None when there is no error.
    """
    wrong = mask != truth
    if not wrong.any():
        return None
    region = Box.of_mask(wrong).voxels(wrong.shape)
    # As bytes: of some boolean lines, such as 1 0 1, cc3d 4.1 counts the pieces wrongly and raises.
    components = cc3d.connected_components(wrong[region].astype(np.uint8), connectivity=26)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    largest = components == int(sizes.argmax())
    # Squared: whole numbers, so that equal depths are equal.
    depth = edt.edtsq(largest, black_border=True)
    deepest = np.argwhere(depth == depth.max())
    # The legacy generator is the challenge's.
    chosen = deepest[np.random.RandomState(SEED).choice(len(deepest))]
    z, y, x = (int(p) + s.start for p, s in zip(chosen, region, strict=True))
    return Click((z, y, x), bool(truth[z, y, x]))


def area_under_curve(scores: Sequence[float]) -> float:
    """The challenge's AUC: trapezoids over the scores after each click, one step apart (five clicks: at most
    4).
    """
    return float(integrate.trapezoid(scores))


def ellipsoid_in_box(shape: tuple[int, ...], lo: tuple[float, ...], hi: tuple[float, ...]) -> Mask:
    """The ellipsoid inscribed in a half-open box of voxel edges: the best guess from the box alone.

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

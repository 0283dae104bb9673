"""Lines around objects as clicks and rectangles."""

from __future__ import annotations

import numpy as np
import pytest
from dualclickmed.imaging.lassos import MOST_OF_A_CORE, understood
from scipy import ndimage

SHAPE = (9, 30, 40)


def disc(centre: tuple[int, int] = (14, 18), radius: int = 9) -> np.ndarray:
    y, x = np.ogrid[: SHAPE[1], : SHAPE[2]]
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


@pytest.mark.parametrize("axis", range(3))
def test_clicks_lie_deep_inside_and_the_box_is_flat(axis: int) -> None:
    mask = np.zeros(SHAPE, np.bool_)
    mask[4] = disc()
    mask = np.moveaxis(mask, 0, axis)
    voxels, box = understood(mask)
    assert len(voxels) <= MOST_OF_A_CORE
    assert box.sides[axis] == 1 and sorted(box.sides) == [1, 19, 19]
    depth = np.zeros(SHAPE)
    depth[4] = ndimage.distance_transform_edt(mask.take(4, axis))
    at = np.moveaxis(depth, 0, axis)[tuple(voxels.T)]
    assert at.min() > 0.5 * depth.max() and at.max() == depth.max()


def test_the_line_alone_means_what_it_encloses() -> None:
    filled, line = np.zeros(SHAPE, np.bool_), np.zeros(SHAPE, np.bool_)
    filled[4] = disc()
    line[4] = disc() & ~ndimage.binary_erosion(disc())
    (voxels, box), (expected, around) = understood(line), understood(filled)
    np.testing.assert_array_equal(voxels, expected)
    assert box == around


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 5), (3, 1, 1), (1, 2, 2), (2, 2, 2)])
def test_a_lasso_as_small_as_it_can_be_is_a_click_in_it(shape: tuple[int, int, int]) -> None:
    mask = np.zeros(SHAPE, np.bool_)
    mask[2 : 2 + shape[0], 3 : 3 + shape[1], 4 : 4 + shape[2]] = True
    voxels, box = understood(mask)
    assert mask[tuple(voxels.T)].all() and len(voxels)
    assert tuple(box.sides) == shape


def test_at_the_border_of_the_image_the_depth_is_that_to_the_border() -> None:
    mask = np.zeros(SHAPE, np.bool_)
    mask[0, :9, :9] = True
    voxels, _ = understood(mask)
    assert [0, 4, 4] in voxels.tolist() and voxels[:, 1:].min() >= 2

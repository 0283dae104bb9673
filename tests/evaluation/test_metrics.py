"""Dice, the challenge's click and the ellipsoid, against literal forms."""

from __future__ import annotations

import numpy as np
import pytest
from dualclickmed.evaluation.metrics import dice, ellipsoid_in_box, next_click
from scipy import ndimage


def test_dice_values() -> None:
    a, b = np.zeros((2, 2, 2), bool), np.zeros((2, 2, 2), bool)
    assert dice(a, b) == 1.0
    a[0] = True
    assert dice(a, b) == 0.0
    b[:, 0] = True
    assert dice(a, b) == 0.5


def literal_click_candidates(mask: np.ndarray, truth: np.ndarray) -> set[tuple[int, int, int]]:
    wrong = mask != truth
    components, count = ndimage.label(wrong, np.ones((3, 3, 3)))
    sizes = [int((components == i).sum()) for i in range(1, count + 1)]
    best: set[tuple[int, int, int]] = set()
    for label, size in enumerate(sizes, start=1):
        if size < max(sizes):
            continue
        padded = np.pad(components == label, 1)
        depth = ndimage.distance_transform_edt(padded)[1:-1, 1:-1, 1:-1]
        best |= {tuple(int(v) for v in p) for p in np.argwhere(np.isclose(depth, depth.max()))}
    return best


@pytest.mark.parametrize("seed", range(12))
def test_click_is_at_the_heart_of_the_largest_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask, truth = (ndimage.gaussian_filter(rng.normal(size=(14, 12, 10)), 1.2) > 0.1 for _ in range(2))
    click = next_click(mask, truth)
    assert click is not None
    assert click.index in literal_click_candidates(mask, truth)
    assert click.positive == bool(truth[click.index])


def test_no_error_no_click_and_the_same_click_each_time() -> None:
    truth = np.zeros((5, 5, 5), bool)
    assert next_click(truth, truth) is None
    truth[1:3, 1:3, 1:3] = True
    assert next_click(np.zeros_like(truth), truth) == next_click(np.zeros_like(truth), truth)


def test_ellipsoid_touches_its_box_and_has_its_volume() -> None:
    mask = ellipsoid_in_box((40, 50, 60), (5.0, 10.0, 12.0), (35.0, 40.0, 52.0))
    where = np.argwhere(mask)
    assert where.min(axis=0).tolist() == [5, 10, 12]
    assert where.max(axis=0).tolist() == [34, 39, 51]
    assert mask.sum() == pytest.approx(np.pi / 6 * 30 * 30 * 40, rel=0.01)

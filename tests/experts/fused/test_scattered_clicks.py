from __future__ import annotations

import numpy as np
import pytest
from dualclickmed.experts.fused.refinement import RegionFeatures, logit
from dualclickmed.experts.fused.scattered_clicks import (
    EMPTINESS,
    FEW,
    MOST_TAKEN,
    NEAR,
    without_empty_places,
)
from dualclickmed.imaging.geometry import Box
from dualclickmed.imaging.volume import from_array

SIDE = 40
GRID = np.stack(np.mgrid[:SIDE, :SIDE, :SIDE], axis=-1)
BALL = np.linalg.norm(GRID - 14.5, axis=-1) < 9.5
SPREAD_TOO_FAR = np.where(GRID[..., 0] < 36, np.float32(0.9), np.float32(0.1))


@pytest.fixture(scope="module")
def features() -> RegionFeatures:
    noise = np.random.default_rng(0).integers(0, 200, (SIDE, SIDE, SIDE)).astype(np.uint8)
    return RegionFeatures.of(from_array(noise), Box((0, 0, 0), (SIDE, SIDE, SIDE)))


def scattered(count: int) -> list[tuple[int, int, int]]:
    """So many different voxels of the ball."""
    inside = np.argwhere(BALL)
    chosen = inside[np.random.default_rng(1).choice(len(inside), count, replace=False)]
    return [(int(z), int(y), int(x)) for z, y, x in chosen]


def test_a_mask_that_spread_too_far_goes_back_to_where_the_clicks_are(features):
    found = without_empty_places(features, SPREAD_TOO_FAR, scattered(200)) > 0.5
    # All of it stays but some of its surface; of the 16 times as many voxels around it 5 % stay.
    assert found[BALL].mean() > 0.99
    assert found[~BALL & (SPREAD_TOO_FAR > 0.5)].mean() < 0.06


def test_every_click_keeps_its_voxel_and_nothing_is_added(features):
    clicks = scattered(60)
    found = without_empty_places(features, SPREAD_TOO_FAR, clicks)
    np.testing.assert_allclose([found[c] for c in clicks], 0.9, atol=1e-6)
    assert (found <= SPREAD_TOO_FAR + 1e-6).all()


def test_what_is_taken_grows_with_the_cube_of_the_distance_from_near_to_a_limit(features):
    # Clicks on every second voxel of a diagonal: the nearest one along every axis is two voxels away on each.
    clicks = [(2 * n, 2 * n, 2 * n) for n in range(FEW + 2)]
    taken = logit(SPREAD_TOO_FAR) - logit(without_empty_places(features, SPREAD_TOO_FAR, clicks))
    share = 1 - FEW / len(clicks)
    for cell, square in (((4, 4, 5), 1), ((4, 4, 6), 4), ((4, 4, 7), 9), ((4, 4, 9), 17)):
        expected = EMPTINESS * share * max(square**1.5 / 12**1.5 - NEAR, 0)
        assert taken[cell] == pytest.approx(expected, rel=1e-3, abs=1e-5)
    assert taken[4, 4, 6] == pytest.approx(0, abs=1e-5) and taken[4, 4, 7] > 0.01
    assert taken[0, 39, 0] == pytest.approx(MOST_TAKEN, rel=1e-3)


def test_few_clicks_change_nothing(features):
    assert without_empty_places(features, SPREAD_TOO_FAR, scattered(FEW)) is SPREAD_TOO_FAR
    assert without_empty_places(features, SPREAD_TOO_FAR, []) is SPREAD_TOO_FAR


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_scribble_in_one_plane_says_nothing_about_others(features, axis):
    in_plane = [(14, 8 + n // 2, 8 + n % 13) for n in range(24)]
    clicks = [tuple(int(p) for p in np.roll(index, axis)) for index in in_plane]
    assert without_empty_places(features, SPREAD_TOO_FAR, clicks) is SPREAD_TOO_FAR

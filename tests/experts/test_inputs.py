from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from dualclickmed.experts.fused.refinement import CellClick
from dualclickmed.experts.inputs import (
    MAX_CLICKS,
    NETWORK_CLICKS,
    global_input,
    local_input,
    map_at_points,
    map_in_box,
    point_prompts,
    representative_clicks,
    thinned,
)
from dualclickmed.imaging.geometry import Box, Roi, crop_to_grid, window_at
from dualclickmed.imaging.intensity import IntensityMap, normalise_global
from dualclickmed.imaging.prompts import Click
from dualclickmed.imaging.volume import from_array
from hypothesis import given
from hypothesis import strategies as st

ROI = Roi(Box((10, 20, 30), (26, 52, 38)), (64, 64, 64))
INDICES = st.tuples(st.integers(0, 63), st.integers(0, 63), st.integers(0, 63))


@pytest.mark.parametrize(
    ("index", "grid"),
    [
        ((10, 20, 30), (1.5, 0.5, 3.5)),
        ((25, 51, 37), (61.5, 62.5, 59.5)),
        ((18, 36, 34), (33.5, 32.5, 35.5)),
    ],
)
def test_a_click_reaches_the_network_at_its_voxels_centre(index, grid):
    points, labels = point_prompts(ROI, [Click(index, True)])
    np.testing.assert_array_equal(points[0].numpy(), [grid])
    assert labels.tolist() == [[1]]
    assert (points.dtype, labels.dtype) == (torch.float32, torch.int64)


def test_clicks_outside_the_region_are_left_out_not_moved():
    clicks = [Click((9, 30, 33), False), Click((18, 52, 34), False), Click((18, 36, 34), False)]
    points, labels = point_prompts(ROI, clicks)
    np.testing.assert_array_equal(points[0].numpy(), [(33.5, 32.5, 35.5)])
    assert labels.tolist() == [[0]]


def test_no_clicks_make_empty_prompts():
    points, labels = point_prompts(ROI, [])
    assert (points.shape, labels.shape) == ((1, 0, 3), (1, 0))


@given(st.lists(st.tuples(INDICES, st.booleans()), max_size=200, unique_by=lambda c: c[0]), st.randoms())
def test_the_order_of_clicks_plays_no_part(clicks, random):
    roi = Roi(Box((0, 0, 0), (64, 64, 64)), (64, 64, 64))
    given_clicks = [Click(index, positive) for index, positive in clicks]
    shuffled = list(given_clicks)
    random.shuffle(shuffled)
    for one, other in zip(point_prompts(roi, given_clicks), point_prompts(roi, shuffled), strict=True):
        assert torch.equal(one, other)


@given(st.sets(INDICES, min_size=1, max_size=300), st.integers(2, 40))
def test_thinning_keeps_some_of_the_points_and_all_when_few(points, limit):
    kept = thinned(sorted(points), limit)
    assert set(kept) <= points
    assert 1 <= len(kept) <= limit
    if len(points) <= limit:
        assert kept == sorted(points)


@pytest.mark.parametrize("side", [12, 60])
@pytest.mark.parametrize("count", [9, 12, 40, 500])
def test_one_click_more_than_the_limit_does_not_cost_most_of_them(side, count):
    """Cells of twice the size held eight times as many: nine clicks in a small object became two to four."""
    for seed in range(20):
        drawn = np.random.default_rng(seed).integers(0, side, (count, 3))
        kept = thinned([(z, y, x) for z, y, x in drawn.tolist()], 8)
        assert 5 <= len(kept) <= 8, (seed, kept)


def test_a_scribble_is_thinned_evenly_and_both_kinds_stay():
    roi = Roi(Box((0, 0, 0), (64, 64, 64)), (64, 64, 64))
    line = [Click((5, y, x), True) for y in (10, 11) for x in range(64)]
    few, kinds = point_prompts(roi, [*line, Click((6, 10, 30), False)])
    assert 2 <= few.shape[1] <= NETWORK_CLICKS and kinds[0].tolist().count(0) == 1
    points, labels = point_prompts(roi, [*line, Click((6, 10, 30), False)], MAX_CLICKS)
    assert points.shape[1] <= MAX_CLICKS
    assert labels[0].tolist().count(0) == 1
    columns = np.sort(points[0, labels[0] == 1, 2].numpy())
    assert columns.min() < 4
    assert columns.max() > 59
    assert np.diff(columns).max() <= 4


def test_few_clicks_all_speak_and_know_the_way_to_the_other_kind():
    clicks = [CellClick((0, 0, 0), True), CellClick((9, 9, 9), True), CellClick((0, 3, 2), False)]
    found = {click.cell: rival for click, rival in representative_clicks(clicks, (2.0, 1.0, 2.0))}
    assert found == {
        (0, 0, 0): 5.0,
        (9, 9, 9): pytest.approx(math.sqrt(18**2 + 6**2 + 14**2)),
        (0, 3, 2): 5.0,
    }
    assert representative_clicks(clicks[:2], (2.0, 1.0, 2.0)) == [(click, math.inf) for click in clicks[:2]]
    assert representative_clicks([], (1.0, 1.0, 1.0)) == []


def test_of_a_scribble_few_clicks_of_each_kind_speak_but_all_are_rivals():
    inside = [CellClick((z, y, 10), True) for z in range(40) for y in range(60)]
    outside = [CellClick((z, y, 13), False) for z in range(40) for y in range(60)]
    found = representative_clicks([*inside, *outside], (1.0, 1.0, 2.0), limit=20)
    for kind, given_clicks in ((True, inside), (False, outside)):
        spoken = [click for click, _ in found if click.positive == kind]
        assert 4 <= len(spoken) <= 20
        assert set(spoken) <= set(given_clicks)
    # The nearest of the other kind, three cells away, need not be among those that speak.
    assert {rival for _, rival in found} == {6.0}
    shuffled = [*outside, *inside]
    random.Random(0).shuffle(shuffled)
    assert representative_clicks(shuffled, (1.0, 1.0, 2.0), limit=20) == found


def test_the_global_input_is_grey_levels_then_z_score_with_zeros_outside():
    rng = np.random.default_rng(0)
    stored = rng.integers(-1000, 1000, (12, 14, 16)).astype(np.int16)
    volume = from_array(stored, modality="ct")
    roi = Roi(Box((-4, 2, 3), (10, 9, 20)), (8, 8, 8))
    soft_tissue = IntensityMap(-160, 240)
    grey = np.clip((stored.astype(np.float64) + 160) / 400, 0, 1) * 255
    expected = normalise_global(crop_to_grid(grey, roi))
    torch.testing.assert_close(global_input(volume, roi, soft_tissue)[0, 0], expected)


def test_the_local_input_spans_the_percentiles_and_leaves_zeros_outside():
    stored = np.tile(np.linspace(0, 4000, 100).astype(np.int16), (4, 4, 1))
    volume = from_array(stored, modality="mr")
    low, high = volume.percentile(1), volume.percentile(99)
    image = local_input(volume, window_at((1, 1, 2), (8, 8, 8)), IntensityMap(low - 5, high + 5))[0, 0]
    expected = np.zeros((8, 8, 8))
    # The window begins at voxel (-3, -3, -2).
    expected[3:7, 3:7, 2:8] = np.clip((stored[0, 0, :6].astype(float) - low) / (high - low), 0, 1)
    np.testing.assert_allclose(image.numpy(), expected, atol=1e-6)


def test_in_ct_the_local_input_has_the_contrast_of_the_window():
    stored = np.full((20, 20, 20), -1000, dtype=np.int16)
    stored[:, :, 10:] = 1000
    stored[5, 5, 5], stored[5, 5, 6] = 0, 100
    volume = from_array(stored, modality="ct")
    image = local_input(volume, window_at((5, 5, 5), (4, 4, 4)), IntensityMap(-160, 240))[0, 0]
    assert image[2, 2, 2].item() == pytest.approx(160 / 400, abs=1e-5)
    assert image[2, 2, 3].item() == pytest.approx(260 / 400, abs=1e-5)
    assert image[0, 0, 0].item() == 0


@pytest.mark.parametrize(("value", "window"), [(-850, (-910, 590)), (40, (-160, 240)), (900, (-500, 1300))])
def test_the_ct_window_follows_what_is_in_the_middle_of_the_box(value, window):
    stored = np.full((20, 20, 20), -1000, dtype=np.int16)
    stored[0, 0, 0] = 1500
    stored[6:14, 6:14, 6:14] = value
    volume = from_array(stored, modality="ct")
    assert map_in_box(volume, Box((2, 2, 2), (18, 18, 18)), "auto") == IntensityMap(*window)
    assert map_at_points(volume, [(7, 7, 7)], "auto") == IntensityMap(*window)
    assert map_in_box(volume, Box((2, 2, 2), (18, 18, 18)), "brain") == IntensityMap(0, 80)


def test_the_values_next_to_a_click_count_too():
    stored = np.full((9, 9, 9), 40, dtype=np.int16)
    stored[4, 4, 4] = -1000
    stored[0, 0, 0] = 1500
    volume = from_array(stored, modality="ct")
    assert map_at_points(volume, [(4, 4, 4)], "auto") == IntensityMap(-160, 240)


def test_a_click_in_the_corner_of_a_thin_image_has_values_too():
    volume = from_array(np.full((1, 5, 5), -900, dtype=np.int16), modality="ct")
    assert map_at_points(volume, [(0, 4, 4)], "auto") == IntensityMap(-910, 590)
    assert map_in_box(volume, Box((0, 0, 0), (1, 1, 1)), "auto") == IntensityMap(-910, 590)

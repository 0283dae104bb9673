"""Where the object that one click means is looked for, and which of the objects found it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dualclickmed.byte_cache import ByteCache
from dualclickmed.experts import GlobalExpert
from dualclickmed.experts.fused.window_search import Candidate, agreements, candidates, searched, windows
from dualclickmed.experts.timing import StageTimer
from dualclickmed.imaging.geometry import Box, Roi
from dualclickmed.imaging.prompts import Click
from dualclickmed.imaging.volume import Volume, from_array

CENTRE = (20, 24, 22)
AWAY = np.linalg.norm(np.stack(np.mgrid[:40, :48, :44], axis=-1) - CENTRE, axis=-1)


def looking(fakes, field) -> GlobalExpert:
    network = fakes.Network(field, size=32, answers_clicks_alone=True)
    network.config.hold_edges = True
    return GlobalExpert(network, "cpu", ByteCache(1 << 28))


def bright(image, points, labels):
    """The object is what is brighter than half."""
    return image - (image.max() + image.min()) / 2


@pytest.fixture(scope="module")
def volume() -> Volume:
    return from_array(np.where(AWAY < 9, 200, 50).astype(np.uint8))


def test_windows_are_cubes_in_space_about_the_click_that_double_until_one_holds_the_image():
    volume = from_array(np.zeros((10, 20, 30), np.uint8), (4.0, 1.0, 2.0))
    found = windows((3, 5, 7), volume, 16)
    sides = [[side * mm for side, mm in zip(w.box.sides, volume.spacing, strict=True)] for w in found]
    np.testing.assert_allclose(sides, [[12] * 3, [24] * 3, [48] * 3, [96] * 3])
    for window in found:
        assert window.box.centre == pytest.approx((3.5, 5.5, 7.5))
        assert window.grid == (16, 16, 16)
    assert sides[-1][0] >= 1.3 * max(10 * 4, 20 * 1, 30 * 2) > sides[-2][0]


def test_every_window_finds_the_part_that_was_clicked(fakes):
    two = np.where(AWAY < 9, 200, 50).astype(np.uint8)
    two[2:6, 2:6, 2:6] = 200
    expert = looking(fakes, bright)
    found = candidates(expert, from_array(two), Click((21, 24, 22)), "auto", StageTimer())
    first, *wider = (candidate.box(two.shape) for candidate in found)
    # The smallest window cuts the ball.
    assert first.sides == pytest.approx((12, 12, 12), abs=0.5)
    assert len(wider) == 3
    for box in wider:
        # A cell of the widest window has three voxels along each axis.
        np.testing.assert_allclose(box.lo, np.array(CENTRE) - 8.5, atol=2)
        np.testing.assert_allclose(box.hi, np.array(CENTRE) + 9.5, atol=2)


def test_windows_that_find_nothing_at_the_click_propose_nothing(fakes, volume):
    expert = looking(fakes, fakes.constant(-1.0))
    assert candidates(expert, volume, Click(CENTRE), "auto", StageTimer()) == []
    assert searched(expert, volume, Click(CENTRE), "auto", StageTimer()).box() is None


def test_a_candidate_holds_the_voxels_of_its_cells():
    mask = np.zeros((8, 8, 8), bool)
    mask[2:5, 1:8, 0:4] = True
    candidate = Candidate(Roi(Box((-4, 0, 10), (12, 16, 26)), (8, 8, 8)), mask)
    assert [candidate.holds((z, 4, 12)) for z in (0, 5, 6)] == [True, True, False]
    assert [candidate.holds((2, 4, x)) for x in (9, 10, 17, 18)] == [False, True, True, False]


def test_background_voxels_leave_the_next_object(fakes, volume):
    # Every window finds a ball of half its side, and the network is equally sure of all.
    expert = looking(fakes, fakes.balls(8.0))
    found = searched(expert, volume, Click(CENTRE), "auto", StageTimer())
    sides = [round(max(box.sides)) for box in found.boxes]
    assert len(sides) == 4 and found.box() == found.boxes[0]
    z, y, x = CENTRE
    for away in (4, 8, 16):
        left = [box for box, side in zip(found.boxes, sides, strict=True) if side / 2 < away]
        assert found.box([(z, y, x + away)]) == left[0]
    assert found.box([CENTRE]) is None


def test_the_box_of_a_candidate_ends_where_the_image_does():
    mask = np.zeros((8, 8, 8), bool)
    mask[2:5, 1:8, 0:4] = True
    window = Roi(Box((-4, 0, 10), (12, 16, 26)), (8, 8, 8))
    assert Candidate(window, mask).volume == 3 * 7 * 4 * 8
    assert Candidate(window, mask).box((9, 12, 40)) == Box((0, 2, 10), (6, 12, 18))
    assert Candidate(window, mask).box((4, 12, 15)) == Box((0, 2, 10), (4, 12, 15))


def test_agreement_is_the_mean_dice_of_what_candidates_share():
    narrow, wide = (Roi(Box((c, c, c), (16 - c,) * 3), (8, 8, 8)) for c in (4, 0))
    small, same, half = (np.zeros((8, 8, 8), bool) for _ in range(3))
    small[2:6, 2:6, 2:6] = True
    same[3:5, 3:5, 3:5] = True
    half[3:5, 3:5, 3:4] = True
    one, two, three = Candidate(narrow, small), Candidate(wide, same), Candidate(wide, half)
    assert (one.volume, two.volume, three.volume) == (64, 64, 32)
    # Interpolated to the narrow window's cells, the wide one's cubes lose the cells at their corners.
    assert one.overlap(two) == pytest.approx(2 * (64 - 8) / 128)
    assert one.overlap(three) == pytest.approx(2 * (32 - 8) / 96)
    assert two.overlap(three) == pytest.approx(2 / 3)
    expected = [(1 + 7 / 8 + 1 / 2) / 3, (7 / 8 + 1 + 2 / 3) / 3, (1 / 2 + 2 / 3 + 1) / 3]
    assert agreements([one, two, three]).tolist() == pytest.approx(expected)
    assert len(agreements([])) == 0


def test_the_object_is_the_one_that_most_windows_find(fakes, volume):
    # The network is equally sure of every box; the smallest window shows the inside of the ball alone.
    certain = looking(fakes, lambda image, points, labels: 8 * (bright(image, points, labels) > 0) - 4.0)
    box = searched(certain, volume, Click(CENTRE), "auto", StageTimer()).box()
    np.testing.assert_allclose(box.sides, [17] * 3, atol=1.5)


@pytest.mark.parametrize("width", [10.0, 20.0, 40.0])
def test_the_object_is_the_one_whose_box_is_answered_with_most_certainty(fakes, volume, width):
    # Without a box each window finds a ball of half its side. The network is sure of boxes of one size alone.
    sizes = []

    def field(image, points, labels):
        if (labels == 2).any():
            return torch.full(image.shape, 4.0 if 0.7 < sizes.pop(0) / width < 1.5 else 0.1)
        return fakes.balls(8.0)(image, points, labels)

    class Watching(GlobalExpert):
        def boxes_logits(self, volume, boxes, *arguments):
            sizes.extend(max(box.sides) for box in boxes)
            return super().boxes_logits(volume, boxes, *arguments)

    network = fakes.Network(field, size=32, answers_clicks_alone=True)
    expert = Watching(network, "cpu", ByteCache(1 << 28))
    box = searched(expert, volume, Click(CENTRE), "auto", StageTimer()).box()
    assert 0.7 < max(box.sides) / width < 1.5

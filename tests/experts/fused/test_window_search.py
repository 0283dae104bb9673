"""Where the object that one click means is looked for, and which of the objects found it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dualclickmed.byte_cache import ByteCache
from dualclickmed.experts import GlobalExpert
from dualclickmed.experts.fused.window_search import (
    MOST_CANDIDATES,
    Candidate,
    agreements,
    candidates,
    searched,
    windows,
)
from dualclickmed.experts.timing import StageTimer
from dualclickmed.imaging.geometry import Box, Roi
from dualclickmed.imaging.prompts import Click
from dualclickmed.imaging.volume import Volume, from_array

SHAPE, CENTRE = (40, 48, 44), (20, 24, 22)
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


def test_every_window_finds_the_part_that_was_clicked(fakes, volume):
    found = candidates(looking(fakes, bright), volume, CENTRE, "auto", StageTimer())
    ball = 4 / 3 * np.pi * 9**3
    # The smallest window cuts the ball; a cell of the widest one covers three voxels along each axis.
    assert [c.volume for c in found] == pytest.approx([12**3, ball, ball, ball], rel=0.3)
    assert all(c.mask[16, 16, 16] for c in found)


def test_a_window_that_finds_nothing_at_the_click_has_no_candidate(fakes, volume):
    assert candidates(looking(fakes, fakes.constant(-1.0)), volume, CENTRE, "auto", StageTimer()) == []
    assert (
        searched(looking(fakes, fakes.constant(-1.0)), volume, Click(CENTRE), "auto", StageTimer()).box
        is None
    )


def test_the_box_of_a_candidate_lies_in_the_image():
    mask = np.zeros((8, 8, 8), bool)
    mask[2:5, 1:8, 0:4] = True
    window = Roi(Box((-4, 0, 10), (12, 16, 26)), (8, 8, 8))
    assert Candidate(window, mask).volume == 3 * 7 * 4 * 8
    assert Candidate(window, mask).box((9, 12, 40)) == Box((0, 2, 10), (6, 12, 18))


def test_agreement_is_the_mean_dice_of_the_volumes_that_candidates_share():
    narrow, wide = (Roi(Box((c, c, c), (16 - c,) * 3), (8, 8, 8)) for c in (4, 0))
    inner, outer, half = (np.zeros((8, 8, 8), bool) for _ in range(3))
    inner[:] = True
    outer[2:6, 2:6, 2:6] = True
    half[2:6, 2:6, 2:4] = True
    same, part = Candidate(narrow, inner), Candidate(wide, half)
    assert same.volume == Candidate(wide, outer).volume == 512
    # The wide window's cells are interpolated on the narrow one's grid: beyond their outermost centres one is
    # half in and half out, which is not inside.
    assert same.overlap(Candidate(wide, outer)) == pytest.approx(1, abs=0.2)
    one, other = agreements([same, part])
    assert one == other == pytest.approx((1 + 2 / 3) / 2, abs=0.1)
    assert agreements([same]) == [1]


def test_the_object_is_the_one_that_most_windows_find(fakes, volume):
    # Narrow windows see nothing but the inside of the ball and find a ball of their own size there.
    box = searched(looking(fakes, bright), volume, Click((22, 23, 25)), "auto", StageTimer()).box
    np.testing.assert_allclose(box.lo, np.array(CENTRE) - 8.5, atol=1.5)
    np.testing.assert_allclose(box.hi, np.array(CENTRE) + 9.5, atol=1.5)


def test_of_those_that_agree_the_one_is_taken_whose_own_box_is_answered_with_most_certainty(fakes, volume):
    # Without a box each window finds a ball of half its side: as different as can be. Only to boxes of
    # about twenty voxels the network answers with certainty.
    sizes = []

    def field(image, points, labels):
        if (labels == 2).any():
            return torch.full(image.shape, 4.0 if 15 < sizes[-1] < 30 else 0.1)
        return fakes.balls(8.0)(image, points, labels)

    class Watching(GlobalExpert):
        def logits(self, volume, prompts, *arguments, **options):
            sizes.append(max(prompts.box.sides))
            return super().logits(volume, prompts, *arguments, **options)

    network = fakes.Network(field, size=32, answers_clicks_alone=True)
    expert = Watching(network, "cpu", ByteCache(1 << 28))
    box = searched(expert, volume, Click(CENTRE), "auto", StageTimer()).box
    assert 15 < max(box.sides) < 30
    assert len(sizes) == MOST_CANDIDATES

"""What users of viewers do, as prompts."""

from __future__ import annotations

import numpy as np
import pytest
from dualclickmed.errors import PromptError
from dualclickmed.imaging.geometry import Box
from dualclickmed.imaging.lassos import MOST_OF_A_CORE
from dualclickmed.imaging.plane_boxes import joined
from dualclickmed.imaging.prompts import Click
from dualclickmed.viewers.interactions import (
    MOST_CLICKS,
    MOST_OF_A_STROKE,
    Interaction,
    box,
    lasso,
    point,
    prompts_of,
    scribble,
)

SHAPE = (20, 30, 40)
UNIT = (1.0, 1.0, 1.0)


def test_points_keep_their_order() -> None:
    prompts = prompts_of([point((1, 2, 3), True), point((4, 5, 6), False), point((7, 8, 9), True)], UNIT)
    assert prompts is not None
    assert prompts.clicks == (Click((1, 2, 3)), Click((4, 5, 6), False), Click((7, 8, 9)))


def test_of_two_clicks_at_one_voxel_the_later_one_counts() -> None:
    prompts = prompts_of([point((1, 2, 3), True), point((4, 5, 6), True), point((1, 2, 3), False)], UNIT)
    assert prompts is not None
    assert prompts.clicks == (Click((4, 5, 6)), Click((1, 2, 3), False))


def test_without_anything_that_shows_the_object_there_are_no_prompts() -> None:
    assert prompts_of([], UNIT) is None
    assert prompts_of([point((1, 2, 3), False)], UNIT) is None


def test_a_background_click_in_the_mask_that_is_corrected_is_a_prompt() -> None:
    start = np.zeros(SHAPE, dtype=np.bool_)
    start[1, 2, 3] = True
    assert prompts_of([point((1, 2, 4), False)], UNIT, start) is None
    prompts = prompts_of([point((1, 2, 3), False)], UNIT, start)
    assert prompts is not None and prompts.clicks == (Click((1, 2, 3), False),)


def test_rectangles_and_boxes_are_joined() -> None:
    flat, other = Box((10, 5, 5), (11, 15, 25)), Box((4, 5, 5), (16, 15, 6))
    prompts = prompts_of([box(flat, True, SHAPE), box(other, True, SHAPE)], UNIT)
    assert prompts is not None and prompts.box == joined([flat, other], UNIT)


def test_a_box_around_what_does_not_belong_is_a_click_in_its_middle() -> None:
    done = box(Box((10, 4, 4), (11, 15, 25)), False, SHAPE)
    assert done.box is None and done.voxels.tolist() == [[10, 9, 14]]


def test_a_box_beside_the_image_is_refused() -> None:
    for positive in (True, False):
        with pytest.raises(PromptError, match="overlap"):
            box(Box((30, 4, 4), (31, 15, 25)), positive, SHAPE)


def test_every_voxel_of_a_scribble_is_a_click_where_it_lies_in_the_image() -> None:
    mask = np.zeros((1, 3, 5), dtype=np.bool_)
    mask[0, 1, 1:4] = True
    done = scribble(mask, (7, 10, 20), False)
    assert done.voxels.tolist() == [[7, 11, 21], [7, 11, 22], [7, 11, 23]] and not done.positive


def test_a_long_scribble_is_thinned_from_end_to_end() -> None:
    done = scribble(np.ones((1, 100, 100), dtype=np.bool_), (0, 0, 0), True)
    assert len(done.voxels) == MOST_OF_A_STROKE
    assert done.voxels[0].tolist() == [0, 0, 0] and done.voxels[-1].tolist() == [0, 99, 99]


def test_clicks_of_an_object_are_bounded() -> None:
    whole = [scribble(np.ones((1, 50, 50), dtype=np.bool_), (at, 0, 0), True) for at in range(6)]
    prompts = prompts_of(whole, UNIT)
    assert prompts is not None and len(prompts.clicks) == MOST_CLICKS
    assert {click.index[0] for click in prompts.clicks} == set(range(6))


def test_a_lasso_is_a_rectangle_and_clicks_where_it_is_deep() -> None:
    mask = np.zeros((1, 20, 20), dtype=np.bool_)
    mask[0, 2:17, 4:15] = True
    done = lasso(mask, (6, 5, 10), True)
    assert done.box == Box((6, 7, 14), (7, 22, 25))
    assert 1 <= len(done.voxels) <= MOST_OF_A_CORE
    z, y, x = done.voxels.T
    assert set(z.tolist()) == {6}
    assert y.min() >= 7 + 3 and y.max() < 22 - 3 and x.min() >= 14 + 3 and x.max() < 25 - 3


def test_a_lasso_in_any_plane_and_in_several_slices_is_understood() -> None:
    mask = np.zeros((20, 20, 20), dtype=np.bool_)
    mask[4:9, 10, 3:8] = True
    assert lasso(mask, (0, 0, 0), True).voxels.tolist()[0][1] == 10
    mask[4:9, 10:15, 3:8] = True
    deep = lasso(mask, (0, 0, 0), True)
    assert deep.box == Box((4, 10, 3), (9, 15, 8))
    assert [6, 12, 5] in deep.voxels.tolist()


def test_a_lasso_around_what_does_not_belong_has_no_box() -> None:
    mask = np.zeros(SHAPE, dtype=np.bool_)
    mask[3, 5:12, 5:12] = True
    done = lasso(mask, (0, 0, 0), False)
    assert done.box is None and not done.positive and [3, 8, 8] in done.voxels.tolist()


@pytest.mark.parametrize("make", [scribble, lasso])
def test_nothing_drawn_is_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(PromptError, match="empty"):
        make(np.zeros((1, 4, 4), dtype=np.bool_), (0, 0, 0), True)


def test_an_interaction_counts_its_voxels() -> None:
    assert point((1, 2, 3), True).nbytes == 12
    assert Interaction(True).nbytes == 0

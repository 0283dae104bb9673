"""The interactive protocol with methods whose answers are known."""

from __future__ import annotations

import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dualclickmed.errors import UserError
from dualclickmed.evaluation.cases import Task, find_cases
from dualclickmed.evaluation.protocol import (
    SCATTERED,
    drawn_box,
    drawn_lasso,
    predict_together,
    run_object,
    run_task,
    scattered_clicks,
)
from dualclickmed.evaluation.records import rows_of
from dualclickmed.imaging.geometry import Box
from dualclickmed.imaging.prompts import Prompts
from dualclickmed.imaging.volume import Volume, from_array


def block(shape: tuple[int, int, int], *sides: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(lo, hi) for lo, hi in sides)] = True
    return mask


TRUTH = block((12, 14, 16), (3, 9), (4, 10), (2, 12))
VOLUME = from_array(np.zeros((12, 14, 16), np.int16))


def test_the_exact_box_is_given_first_and_clicks_add_up() -> None:
    seen = []

    def method(volume, prompts):
        seen.append(prompts)
        return np.zeros(volume.shape, bool)

    scores, _ = run_object(method, VOLUME, TRUTH, 3, "box")
    assert scores == [0.0] * 4
    assert seen[0].box.lo == (3.0, 4.0, 2.0) and seen[0].box.hi == (9.0, 10.0, 12.0)
    # The mask stays empty, so every click is the same voxel; it is given once, and not asked for again.
    assert [len(p.clicks) for p in seen] == [0, 1]
    assert seen[-1].clicks[0].positive and TRUTH[seen[-1].clicks[0].index]


def test_a_point_start_has_no_box() -> None:
    def method(volume, prompts):
        assert prompts.box is None and TRUTH[prompts.clicks[0].index] and prompts.clicks[0].positive
        return TRUTH

    scores, _ = run_object(method, VOLUME, TRUTH, 5, "point")
    assert scores == [1.0] * 6


def write_case(folder: Path, labels: np.ndarray, affine: np.ndarray | None = None) -> None:
    folder.mkdir(parents=True)
    grid = np.diag([1.0, 1.0, 2.0, 1.0])
    image = np.random.default_rng(0).normal(100, 5, labels.shape).astype(np.int16)
    nib.save(nib.Nifti1Image(image, grid), folder / "image.nii.gz")
    nib.save(nib.Nifti1Image(labels, grid if affine is None else affine), folder / "label.nii.gz")


def test_cases_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        find_cases(tmp_path / "absent")
    with pytest.raises(UserError, match="no case"):
        find_cases(tmp_path)
    labels = np.ones((6, 6, 6), np.uint8)
    write_case(tmp_path / "x" / "shifted", labels, np.diag([1.0, 1.0, 3.0, 1.0]))
    with pytest.raises(UserError, match="'x/shifted'"):
        find_cases(tmp_path)[0].load()


# Whole cases ---------------------------------------------------------------------------------------------

LABELS = np.zeros((12, 14, 16), np.uint8)
LABELS[2:6, 3:9, 3:9], LABELS[7:11, 4:10, 4:12], LABELS[0, 0, 0] = 3, 200, 9


def task(boxes: bool = True) -> Task:
    whole = Task.of_objects(from_array(np.zeros(LABELS.shape, np.int16)), LABELS, (3, 9, 200))
    return whole if boxes else Task(whole.volume, whole.labels, whole.values, None, whole.spacing)


class Oracle:
    """Right about the classes it knows; counts its calls."""

    def __init__(self, known: set[int]) -> None:
        self.known, self.seen = known, []

    def together(self, volume, prompts):
        self.seen.append({value: (len(p.clicks), p.box is not None) for value, p in prompts.items()})
        return np.where(np.isin(LABELS, list(self.known)), LABELS, 0)

    def __call__(self, volume, prompts):
        raise AssertionError("several objects are asked for together")


def test_classes_with_gaps_and_of_one_voxel_score_by_their_values() -> None:
    method = Oracle({3, 200})
    outcome = run_task(method, task(), clicks=2)
    # The class of one voxel is missed: its click is the same each time, and the method is asked no more.
    assert method.seen == [
        {3: (0, True), 9: (0, True), 200: (0, True)},
        {3: (0, True), 9: (1, True), 200: (0, True)},
    ]
    assert [s.dice for s in outcome.steps] == [(1.0, 0.0, 1.0)] * 3
    assert [s.nsd for s in outcome.steps] == [(1.0, 0.0, 1.0)] * 3
    assert [s.clicks for s in outcome.steps] == [0, 1, 1]
    assert not outcome.over_time


def test_without_boxes_the_first_step_scores_nothing_and_is_not_asked() -> None:
    method = Oracle({3, 9, 200})
    outcome = run_task(method, task(boxes=False), clicks=2)
    assert method.seen == [{3: (1, False), 9: (1, False), 200: (1, False)}]
    assert [s.dice for s in outcome.steps] == [(0.0,) * 3, (1.0,) * 3, (1.0,) * 3]
    assert outcome.steps[0].seconds < 1e-3
    rows = rows_of("ct", "a", "oracle", task(boxes=False), outcome)
    assert [r.note for r in rows if r.label == "all"] == ["no box", "", ""]


def test_a_step_that_fails_counts_as_empty_and_the_clicks_go_on() -> None:
    calls = []

    def method(volume, prompts):
        calls.append(len(prompts.clicks))
        if len(calls) == 1:
            raise ValueError("out of ideas")
        return LABELS == 200

    one = Task.of_objects(task().volume, LABELS, (200,))
    outcome = run_task(method, one, clicks=1)
    assert [s.dice for s in outcome.steps] == [(0.0,), (1.0,)] and calls == [0, 1]
    notes = [r.note for r in rows_of("ct", "a", "m", one, outcome) if r.label == "all"]
    assert notes == ["ValueError: out of ideas", ""]
    with pytest.raises(ValueError, match="out of ideas"):
        calls.clear()
        run_task(method, one, clicks=1, strict=True)


def test_a_mask_of_another_shape_is_a_failure() -> None:
    one = Task.of_objects(task().volume, LABELS, (200,))
    outcome = run_task(lambda volume, prompts: np.zeros((2, 2, 2), bool), one, clicks=0)
    assert outcome.steps[0].dice == (0.0,) and "shape (2, 2, 2)" in outcome.steps[0].failure


def test_over_the_time_limit_every_score_is_0_and_the_case_ends() -> None:
    calls = []

    def slow(volume, prompts):
        calls.append(1)
        time.sleep(0.06)
        return LABELS == 3

    two = Task.of_objects(task().volume, LABELS, (3, 200))
    outcome = run_task(slow, two, clicks=4, limit=0.11)
    # Two classes have 0.22 s together; a step takes 0.12 s.
    assert outcome.over_time and len(calls) == 4
    assert [s.dice for s in outcome.steps] == [(0.0, 0.0)] * 5
    assert sum(s.seconds for s in outcome.steps) > 0.22
    assert {r.note for r in rows_of("ct", "a", "m", two, outcome)} == {"over time"}
    assert not run_task(slow, two, clicks=1, limit=0).over_time


def test_surfaces_count_nothing_where_the_mean_dice_is_low() -> None:
    far = np.zeros(LABELS.shape, np.uint8)
    far[2:6, 3:9, 3:9], far[8:12, 6:12, 8:16] = 3, 4
    two = Task.of_objects(task().volume, far, (3, 4))

    def only(value: int, part: slice):
        mask = np.zeros(far.shape, bool)
        mask[part] = far[part] == value
        return lambda volume, prompts: mask if prompts.box.lo == two.boxes[value].lo else ~(mask | True)

    half = run_task(only(3, slice(2, 4)), two, clicks=0).steps[0]
    assert half.dice[0] == pytest.approx(2 / 3) and half.nsd[0] > 0
    little = run_task(only(3, slice(2, 3)), two, clicks=0).steps[0]
    assert little.dice == (pytest.approx(0.4), 0.0) and little.nsd == (0.0, 0.0)


def test_overlaps_of_single_answers_go_to_the_higher_score() -> None:
    def sure(volume, prompts):
        scores = np.full(volume.shape, -1, np.float32)
        _, y, x = prompts.box.voxels(volume.shape)
        scores[:, y, x] = 1 / prompts.box.sides[2]
        return scores

    boxes = {1: Box((0, 0, 0), (12, 14, 16)), 2: Box((0, 4, 4), (12, 8, 6))}
    labels = predict_together(sure, VOLUME, {v: Prompts(box=b) for v, b in boxes.items()})
    assert (labels[:, 4:8, 4:6] == 2).all() and (labels == 2).sum() == 12 * 4 * 2
    assert (labels == 1).sum() == labels.size - 12 * 4 * 2


def test_a_rectangle_is_drawn_where_the_object_is_largest() -> None:
    truth = np.zeros((20, 30, 30), dtype=np.bool_)
    truth[4:12, 10:14, 10:14] = True
    truth[9, 8:18, 10:20] = True
    box = drawn_box(truth, (1.0, 1.0, 1.0))
    assert box.lo[1:] == (8, 10) and box.hi[1:] == (18, 20)
    # 1.25 x 10, about the middle of slice 9, in whole voxels.
    assert (box.lo[0], box.hi[0]) == (3, 16)


def test_a_lasso_is_drawn_loosely_where_the_object_is_largest() -> None:
    truth = np.zeros((12, 40, 40), dtype=bool)
    truth[3, 10:20, 12:20] = True
    truth[4, 10:30, 12:30] = True
    clicks, box = drawn_lasso(truth, (1.0, 1.0, 1.0))
    assert {click.index[0] for click in clicks} == {4} and all(truth[click.index] for click in clicks)
    assert (box.lo[1:], box.hi[1:]) == ((8, 10), (32, 32))
    # As deep as a rectangle of 24 x 22 voxels is taken to be.
    assert box.sides[0] == 29


def test_a_start_with_a_lasso_gives_clicks_and_a_box_and_corrections_follow() -> None:
    truth = np.zeros((12, 40, 40), dtype=np.uint8)
    truth[2:9, 10:30, 12:30] = 1
    asked = []

    def method(volume: Volume, prompts: Prompts) -> np.ndarray:
        asked.append(prompts)
        return np.zeros(volume.shape, dtype=bool)

    run_task(method, Task.of_objects(from_array(truth), truth, (1,)), clicks=1, start="lasso", limit=0)
    first, second = asked
    assert first.box is not None and len(first.clicks) > 1
    assert second.clicks[: len(first.clicks)] == first.clicks and len(second.clicks) == len(first.clicks) + 1


@pytest.mark.parametrize(("side", "count"), [(1, 1), (5, 13), (12, 173), (20, SCATTERED)])
def test_scattered_clicks_lie_all_over_the_object_and_repeat(side: int, count: int) -> None:
    truth = block((30, 30, 30), (4, 4 + side), (5, 5 + side), (6, 6 + side))
    clicks = scattered_clicks(truth)
    assert len(set(clicks)) == count and all(truth[c.index] and c.positive for c in clicks)
    assert scattered_clicks(truth) == clicks
    if count == SCATTERED:
        spread = np.asarray([c.index for c in clicks])
        np.testing.assert_allclose(spread.mean(0), (13.5, 14.5, 15.5), atol=1.5)
        assert (np.ptp(spread, axis=0) >= side - 2).all()


def test_a_start_with_scattered_clicks_gives_them_first() -> None:
    asked = []

    def method(volume: Volume, prompts: Prompts) -> np.ndarray:
        asked.append(prompts)
        return np.zeros(volume.shape, dtype=bool)

    task = Task.of_objects(VOLUME, TRUTH.astype(np.uint8), (1,))
    run_task(method, task, clicks=1, start="scattered", limit=0)
    assert asked[0].box is None and asked[0].clicks == scattered_clicks(TRUTH)
    assert asked[1].clicks[:-1] == asked[0].clicks

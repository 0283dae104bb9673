from __future__ import annotations

import csv

import numpy as np
import pytest
from dualclickmed.evaluation import calibration
from dualclickmed.evaluation.calibration import BINS, Reliability
from dualclickmed.evaluation.cases import Task
from dualclickmed.experts.dual import Result
from dualclickmed.experts.fused.strategy import Refined
from dualclickmed.imaging.geometry import Box, Roi
from dualclickmed.imaging.volume import from_array

SHAPE = (8, 10, 12)
TRUTH = np.zeros(SHAPE, np.uint8)
TRUTH[2:6, 3:8, 4:9] = 3


def test_a_probability_that_means_what_it_says_has_no_error():
    rng = np.random.default_rng(0)
    likely = rng.random(200_000)
    one = Reliability()
    one.add(likely, rng.random(200_000) < likely)
    assert one.cells.sum() == 200_000
    assert one.error() == pytest.approx(0, abs=0.01)


def test_the_error_is_the_mean_distance_of_probability_and_share():
    one = Reliability()
    one.add(np.array([0.75, 0.75, 0.05, 1.0, -1e-4]), np.array([1.0, 0.0, 0.0, 0.5, 0.0]))
    np.testing.assert_array_equal(np.flatnonzero(one.cells), [0, 7, 9])
    # Sums of (probability - inside) by bin: 0.05, 0.5, 0.5.
    assert one.error() == pytest.approx((0.05 + 0.5 + 0.5) / 5)
    assert one.error(ends=False) == pytest.approx(0.25)
    assert Reliability().error() == 0


class Sure:
    """Says 0.8 inside the box, and so for ever; after a click it is right everywhere."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def segment(self, volume, prompts, strategy):
        given = prompts["object"]
        self.asked.append(len(given.clicks))
        probability = np.zeros(SHAPE, np.float32)
        probability[given.box.voxels(SHAPE)] = 0.8
        labels = (probability > 0.5).astype(np.uint8)
        if not given.clicks:
            labels[2, 3, 4] = 0
        roi = Roi(Box((0, 0, 0), tuple(map(float, SHAPE))), SHAPE)
        return Result(labels, {"object": 1}, {}, [], {}, {"object": Refined([], roi, probability, [])})


class Case:
    group = "ct"


def test_box_and_last_click_are_counted_for_each_object(tmp_path):
    volume = from_array(np.zeros(SHAPE, np.uint8))
    task = Task.of_objects(volume, TRUTH, (3,))
    expert = Sure()
    found = calibration.measure(expert, [Case()], lambda case: task, clicks=5)
    # After one click nothing is wrong any more: that answer stands for five clicks.
    assert expert.asked == [0, 1]
    assert sorted(found) == [("ct", 0), ("ct", 5)]
    for one in found.values():
        assert one.cells[8] == 100
        assert one.inside[8] == pytest.approx(100)
        assert one.error(ends=False) == pytest.approx(0.2)
    written = list(csv.DictReader(calibration.write(tmp_path, found).open()))
    assert [(r["clicks"], r["from"], r["cells"], r["share_inside"]) for r in written] == [
        (clicks, start, cells, share)
        for clicks in ("0", "5")
        for start, cells, share in (("0.0", str(TRUTH.size - 100), "0.0000"), ("0.8", "100", "1.0000"))
    ]
    assert calibration.rows(found)[0] == ("ct", "0", f"{20 / TRUTH.size:.3f}", "0.200")


def test_an_object_without_probabilities_or_box_is_left_out():
    volume = from_array(np.zeros(SHAPE, np.uint8))
    task = Task(volume, TRUTH, (3,), None, (1.0, 1.0, 1.0))
    assert calibration.measure(Sure(), [Case()], lambda case: task, clicks=1) == {}
    assert BINS == 10

"""Objects inside objects: generated volumes, and what is counted on them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from dualclickmed.evaluation.nested import SMALLEST, NestedScore, nested_volumes, write_nested
from dualclickmed.imaging.geometry import Box


def test_every_volume_has_an_inner_object_in_the_box_of_an_outer_one() -> None:
    volumes = list(nested_volumes(3))
    assert len(volumes) == 3
    for nested in volumes:
        assert nested.labels.shape == nested.volume.shape
        assert nested.inner
        outer = set(nested.boxes) - nested.inner
        assert outer
        for name, box in nested.boxes.items():
            truth = nested.truth(name)
            assert truth.sum() >= SMALLEST
            assert Box.of_mask(truth).union(box) == box
        for name in nested.inner:
            assert any(nested.boxes[o].union(nested.boxes[name]) == nested.boxes[o] for o in outer)


def test_the_volumes_are_the_same_each_time() -> None:
    first, second = (next(iter(nested_volumes(1))) for _ in range(2))
    np.testing.assert_array_equal(first.labels, second.labels)
    assert first.volume.key == second.volume.key


def test_an_object_is_lost_that_was_found_alone(tmp_path: Path) -> None:
    scores = [
        NestedScore("a", "1", False, 0.8, 0.79),
        NestedScore("a", "2", True, 0.4, 0.0),
        NestedScore("a", "3", True, 0.2, 0.0),
    ]
    assert [s.lost for s in scores] == [False, True, False]
    write_nested(tmp_path / "nested.csv", scores)
    with (tmp_path / "nested.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["lost"] for row in rows] == ["0", "1", "0"]
    assert rows[0]["dice alone"] == "0.8000"

"""The interactive protocol with methods whose answers are known."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dualclickmed.errors import UserError
from dualclickmed.evaluation.cases import find_cases
from dualclickmed.evaluation.protocol import (
    ellipsoid_method,
    run_cases,
    run_object,
    summarise,
    write_scores,
)
from dualclickmed.volume import from_array


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


def test_means_are_by_group_and_over_groups(tmp_path: Path) -> None:
    labels = np.zeros((16, 14, 12), np.uint8)
    labels[2:12, 4:10, 3:9] = 3
    labels[13, 13, 11] = 7  # too small to count
    write_case(tmp_path / "ct" / "a", labels)
    write_case(tmp_path / "ct" / "b", labels)
    write_case(tmp_path / "mri" / "c", labels)

    def half(volume, prompts):
        box = prompts.enclosing_box()
        mask = np.zeros(volume.shape, bool)
        z, y, x = box.voxels(volume.shape)
        mask[z, y, slice(x.start, (x.start + x.stop) // 2)] = True
        return mask

    scores = run_cases(
        find_cases(tmp_path), {"half": half, "ellipsoid": ellipsoid_method}, 1, "box", 50, None
    )
    assert [(s.case, s.label, s.voxels) for s in scores[::2]] == [
        ("ct/a", 3, 360),
        ("ct/b", 3, 360),
        ("mri/c", 3, 360),
    ]
    rows = {(r.group, r.method): r for r in summarise(scores)}
    assert rows["ct", "half"].dice[0] == pytest.approx(2 / 3)
    assert rows["ct", "half"].count == 2 and rows["all objects", "half"].count == 3
    # A click widens nothing here, and no click is harmful.
    assert rows["mean of groups", "half"].harmful == 0
    write_scores(tmp_path / "scores.csv", scores)
    with (tmp_path / "scores.csv").open() as file:
        table = list(csv.DictReader(file))
    assert np.mean([float(r["dice_0"]) for r in table if r["method"] == "half"]) == pytest.approx(
        rows["all objects", "half"].dice[0], abs=1e-6
    )


def test_cases_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder"):
        find_cases(tmp_path / "absent")
    with pytest.raises(UserError, match="no case"):
        find_cases(tmp_path)
    labels = np.ones((6, 6, 6), np.uint8)
    write_case(tmp_path / "x" / "shifted", labels, np.diag([1.0, 1.0, 3.0, 1.0]))
    with pytest.raises(UserError, match="'x/shifted'"):
        find_cases(tmp_path)[0].load()

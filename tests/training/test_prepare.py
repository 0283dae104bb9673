"""Crops on disk: what they hold, when they are made again, and what is left after an interruption."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from dualclickmed.errors import UserError
from dualclickmed.imaging.geometry import Box, global_roi
from dualclickmed.training import prepare as module
from dualclickmed.training.case_samples import global_crop
from dualclickmed.training.opened import OpenedCases, open_case
from dualclickmed.training.prepare import INDEX, PreparedCrops, prepare, read_crop
from dualclickmed.training.samples import Samples
from dualclickmed.training.sources import WeightedSource, folder_cases

from tests.support.cases import decathlon, volume_and_labels, write_nifti
from tests.support.recipes import RECIPE

EXACT = dataclasses.replace(RECIPE["global"], exact_boxes=True, targets=2, scenes=1, affine=0.0, flip=0.0)


def test_a_prepared_crop_is_the_crop(tmp_path: Path) -> None:
    [case] = folder_cases(decathlon(tmp_path / "set", 1))
    assert prepare([case], tmp_path / "crops", EXACT) == {}
    opened = open_case(case, EXACT)
    [folder] = [p for p in (tmp_path / "crops").iterdir() if p.is_dir()]
    assert sorted(p.name for p in folder.iterdir()) == ["1-0.npz", "3-0.npz", "case.json"]
    for found in opened.objects:
        expected = global_crop(
            opened,
            found,
            Box.of_mask(opened.labels == found.value),
            global_roi(Box.of_mask(opened.labels == found.value), grid=(EXACT.grid,) * 3),
            EXACT.hold_edges,
        )
        crop = read_crop(folder / f"{found.value}-0.npz")
        assert torch.equal(crop.truth, expected.truth) and torch.equal(crop.valid, expected.valid)
        assert float((crop.image - expected.image).abs().max()) <= 1 / 16


def test_training_with_crops_sees_the_same_batches_and_opens_no_volume(tmp_path: Path, monkeypatch) -> None:
    cases = folder_cases(decathlon(tmp_path / "set", 3))
    prepare(cases, tmp_path / "crops", EXACT)
    data = [WeightedSource(cases)]
    plain = Samples(EXACT, data, seed=1)[4].batch
    monkeypatch.setattr(OpenedCases, "get", None)
    fast = Samples(EXACT, data, seed=1, prepared=PreparedCrops(tmp_path / "crops", EXACT))[4].batch
    assert torch.equal(fast.truth, plain.truth) and torch.allclose(fast.image, plain.image, atol=0.02)


def test_nothing_is_made_twice_and_changed_files_are_made_anew(tmp_path: Path, monkeypatch) -> None:
    cases = folder_cases(decathlon(tmp_path / "set", 2))
    prepare(cases, tmp_path / "crops", EXACT)
    opened = []
    monkeypatch.setattr(
        module, "open_case", lambda case, recipe: opened.append(case.id) or open_case(case, recipe)
    )
    prepare(cases, tmp_path / "crops", EXACT)
    assert opened == []
    # The same content under another name is known; other content is not, nor are other rules.
    os.utime(cases[0].image)
    assert PreparedCrops(tmp_path / "crops", EXACT).crops(cases[0], np.random.default_rng(0), 1) is None
    prepare(cases, tmp_path / "crops", EXACT)
    assert opened == []
    assert PreparedCrops(tmp_path / "crops", EXACT).crops(cases[0], np.random.default_rng(0), 1)
    write_nifti(cases[1].label, volume_and_labels()[1] // 2)
    prepare(cases, tmp_path / "crops", EXACT)
    assert opened == ["set/case_01"]
    drawn = dataclasses.replace(EXACT, exact_boxes=False)
    assert PreparedCrops(tmp_path / "crops", drawn).crops(cases[0], np.random.default_rng(0), 1) is None
    prepare(cases, tmp_path / "crops", drawn, boxes=3)
    assert len(opened) == 3


def test_an_interruption_leaves_no_half_case(tmp_path: Path, monkeypatch) -> None:
    cases = folder_cases(decathlon(tmp_path / "set", 1))
    write, written = module._write_crop, []

    def interrupted(path, crop):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(path, crop)

    monkeypatch.setattr(module, "_write_crop", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(cases, tmp_path / "crops", EXACT)
    assert list((tmp_path / "crops").iterdir()) == []
    with pytest.raises(UserError, match="holds no prepared crops"):
        PreparedCrops(tmp_path / "crops", EXACT)


def test_bad_cases_are_named_and_the_others_made(tmp_path: Path) -> None:
    cases = folder_cases(decathlon(tmp_path / "set", 3))
    cases[0].label.write_bytes(b"")
    cases[2].image.unlink()
    told = []
    troubles = prepare(cases, tmp_path / "crops", EXACT, told=lambda done, of: told.append((done, of)))
    assert sorted(troubles) == ["set/case_00", "set/case_02"] and told[-1] == (3, 3)
    assert len(json.loads((tmp_path / "crops" / INDEX).read_text())) == 1


def test_damaged_crops_are_reported(tmp_path: Path) -> None:
    [case] = folder_cases(decathlon(tmp_path / "set", 1))
    prepare([case], tmp_path / "crops", EXACT)
    for file in (tmp_path / "crops").rglob("*.npz"):
        file.write_bytes(file.read_bytes()[:1000])
    loaded = Samples(EXACT, [WeightedSource([case])], prepared=PreparedCrops(tmp_path / "crops", EXACT))[0]
    assert "can't be read" in loaded.troubles[case.id]
    (tmp_path / "crops" / INDEX).write_text("{")
    with pytest.raises(UserError, match="remove it and prepare again"):
        PreparedCrops(tmp_path / "crops", EXACT)

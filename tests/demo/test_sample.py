"""The sample study: the same bytes every time, organs where they belong, attenuation as in a contrast CT."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
from dualclickmed.demo import sample
from dualclickmed.demo.trunk import ORGANS
from dualclickmed.imaging.volume import load_volume
from dualclickmed.training.sources import find_training_cases, load_case
from scipy import ndimage

Trunk = tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8], npt.NDArray[np.float64]]
VOXEL_ML = 2 * 2 * 3 / 1000

# Least and greatest median in HU, least and greatest volume in ml.
EXPECTED = {
    "liver": (100, 115, 700, 1900),
    "spleen": (112, 130, 70, 350),
    "right kidney": (150, 205, 80, 250),
    "left kidney": (150, 205, 80, 250),
    "stomach": (-970, 90, 150, 700),
    "gallbladder": (0, 30, 10, 70),
    "pancreas": (80, 102, 30, 130),
    "aorta": (145, 165, 50, 200),
    "inferior vena cava": (130, 155, 40, 160),
    "heart": (105, 155, 250, 800),
    "right lung": (-900, -800, 700, 2500),
    "left lung": (-900, -800, 600, 2300),
    "spine": (150, 520, 400, 1000),
    "urinary bladder": (-5, 20, 100, 400),
}


@pytest.fixture(scope="module")
def trunk() -> Trunk:
    return sample.make_trunk(0)


def centre(trunk: Trunk, organ: str) -> npt.NDArray[np.float64]:
    """Of an organ, in RAS millimetres."""
    _, labels, affine = trunk
    voxel = np.argwhere(labels == ORGANS.index(organ) + 1).mean(axis=0)
    return affine[:3, :3] @ voxel + affine[:3, 3]


def test_grid(trunk: Trunk) -> None:
    volume, labels, affine = trunk
    assert volume.shape == labels.shape == (192, 160, 128)
    assert (volume.dtype, labels.dtype) == (np.int16, np.uint8)
    assert nib.aff2axcodes(affine) == ("L", "P", "S")
    np.testing.assert_allclose(np.diag(affine), [-2, -2, 3, 1])


def test_every_organ_is_there_in_one_piece(trunk: Trunk) -> None:
    labels = trunk[1]
    assert set(EXPECTED) == set(ORGANS)
    assert np.unique(labels).tolist() == list(range(len(ORGANS) + 1))
    for value in range(1, len(ORGANS) + 1):
        assert ndimage.label(labels == value)[1] == 1


@pytest.mark.parametrize("organ", ORGANS)
def test_attenuation_and_size(trunk: Trunk, organ: str) -> None:
    volume, labels, _ = trunk
    voxels = volume[labels == ORGANS.index(organ) + 1]
    darkest, brightest, smallest, largest = EXPECTED[organ]
    assert darkest <= np.median(voxels) <= brightest
    assert smallest <= voxels.size * VOXEL_ML <= largest


def test_air_around_fat_and_muscle_in_the_wall_bone_above_all(trunk: Trunk) -> None:
    volume, labels, _ = trunk
    assert volume.min() >= -1024 and 500 < volume.max() < 1500
    for corner in itertools.product((slice(0, 8), slice(-8, None)), (slice(0, 8),), (slice(0, 8),)):
        assert abs(np.median(volume[corner]) + 1000) < 15
    unlabelled = volume[labels == 0]
    for low, high in ((-115, -85), (40, 75)):
        assert ((unlabelled > low) & (unlabelled < high)).mean() > 0.05


def test_organs_lie_where_they_belong(trunk: Trunk) -> None:
    right, front, up = 0, 1, 2
    for organ in ("liver", "gallbladder", "right kidney", "right lung", "inferior vena cava"):
        assert centre(trunk, organ)[right] > 0
    for organ in ("spleen", "left kidney", "left lung", "heart"):
        assert centre(trunk, organ)[right] < 0
    for organ in ("aorta", "heart", "pancreas", "urinary bladder"):
        assert centre(trunk, organ)[front] > centre(trunk, "spine")[front]
    assert centre(trunk, "left kidney")[front] < centre(trunk, "stomach")[front]
    upwards = [centre(trunk, organ)[up] for organ in ("urinary bladder", "left kidney", "liver", "heart")]
    assert upwards == sorted(upwards)


def test_neighbours_touch(trunk: Trunk) -> None:
    labels = trunk[1]
    liver = ndimage.binary_dilation(labels == ORGANS.index("liver") + 1)
    for organ in ("stomach", "gallbladder", "pancreas", "inferior vena cava"):
        assert (liver & (labels == ORGANS.index(organ) + 1)).sum() > 100


def test_files(trunk: Trunk, tmp_path: Path) -> None:
    files = sample.write_sample(tmp_path / "studies" / "sample")
    assert sorted(
        path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()
    ) == [
        "studies/sample-truth/labels.json",
        "studies/sample-truth/trunk_ct.nii.gz",
        "studies/sample/trunk_ct.nii.gz",
    ]
    volume = load_volume(files.image)
    assert (volume.modality, volume.shape, volume.spacing) == ("ct", (128, 160, 192), (3.0, 2.0, 2.0))
    # A second run with the same seed: equal voxel for voxel.
    np.testing.assert_array_equal(volume.to_raw_array(volume.array), trunk[0])
    truth = nib.load(files.truth)
    np.testing.assert_array_equal(np.asarray(truth.dataobj), trunk[1])
    np.testing.assert_array_equal(truth.affine, trunk[2])
    names = json.loads(files.names.read_text())
    assert names == {organ: value for value, organ in enumerate(ORGANS, 1)}


def test_files_do_not_depend_on_the_time(
    trunk: Trunk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "make_trunk", lambda seed: trunk)
    first = sample.write_sample(tmp_path / "a")
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 1000)
    second = sample.write_sample(tmp_path / "b")
    assert first.image.read_bytes() == second.image.read_bytes()
    assert first.truth.read_bytes() == second.truth.read_bytes()


def test_another_seed_is_another_patient(trunk: Trunk) -> None:
    volume, labels, _ = sample.make_trunk(1)
    assert set(np.unique(labels)) == set(range(len(ORGANS) + 1))
    liver = ORGANS.index("liver") + 1
    both = ((labels == liver) & (trunk[1] == liver)).sum()
    dice = 2 * both / ((labels == liver).sum() + (trunk[1] == liver).sum())
    assert 0.5 < dice < 0.95
    assert (volume != trunk[0]).mean() > 0.9


def test_labelled_cases_are_read_by_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trunk: Trunk
) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(sample, "make_trunk", lambda seed: (seeds.append(seed), trunk)[1])
    sample.write_cases(tmp_path / "trunks", 2, seed=7)
    assert seeds == [7, 8]
    first, second = find_training_cases(tmp_path / "trunks")
    assert (first.id, second.id) == ("trunks/trunk_000", "trunks/trunk_001")
    assert first.modality == "ct"
    assert first.names == dict(enumerate(ORGANS, 1))
    volume, labels = load_case(first)
    assert volume.spacing == (3.0, 2.0, 2.0)
    assert np.array_equal(np.bincount(labels.ravel()), np.bincount(trunk[1].ravel()))

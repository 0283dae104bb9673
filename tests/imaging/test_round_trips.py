"""A stored label comes back whole, however often it is stored and read."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dualclickmed.imaging.dicom_seg import converted
from dualclickmed.imaging.label_files import read_labels
from dualclickmed.imaging.label_map import LabelMap
from dualclickmed.imaging.mask_files import LabelledMask, Segment, write
from dualclickmed.imaging.volume import Volume, load_volume
from nibabel.eulerangles import euler2mat

from tests.support import volume_files
from tests.support.volume_files import RAS_FROM_LPS, dicom_slices, save_dicom

KNOWN = LabelMap(("liver", "spleen"))
NAMES = {"liver": 1, "spleen": 2}
CYCLES = 10
SHAPE = (11, 9, 13)
PLACES = [
    # Steps and angles that no binary or decimal number of a header holds exactly.
    ((0.0, 0.0, 0.0), (0.7, 0.7, 3.0)),
    ((0.0, 0.0, 0.0), (1 / 3, 0.9765625, 1.1)),
    ((0.05, 0.03, 0.02), (0.9766, 0.9766, 3.27)),
    ((0.3, -0.4, 0.35), (0.6641, 0.6641, 1.5)),
    ((1.57, 0.02, -0.9), (0.1, 0.37, 7.3)),
    ((2.1, 0.7, 0.1), (1.0, 1.0, 0.3)),
]


def a_place(angles: tuple[float, ...], steps: tuple[float, ...]) -> np.ndarray:
    lps = np.eye(4)
    lps[:3, :3] = euler2mat(*angles) @ np.diag(steps)
    lps[:3, 3] = (-123.456789, 87.6543, 1201.30001)
    return lps


def a_mask(seed: int) -> np.ndarray:
    """Two labels, with voxels in the first and the last slice of each axis."""
    rng = np.random.default_rng(seed)
    mask = np.where(rng.random(SHAPE) < 0.3, rng.integers(1, 3, SHAPE), 0).astype(np.uint8)
    mask[[0, -1]], mask[:, [0, -1]], mask[:, :, [0, -1]] = 1, 2, 1
    return mask


def read_back(path: Path, volume: Volume) -> np.ndarray:
    found = read_labels(path, volume, {"label_names": NAMES}, KNOWN)
    whole = np.zeros(SHAPE, np.uint8)
    for name, value in NAMES.items():
        whole[volume.to_raw_array(found.mask(name))] = value
    assert found.notes == []
    return whole


def cropped(mask: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Without what is empty around it, as 3D Slicer and most writers of DICOM SEG store a label."""
    where = np.argwhere(mask)
    low, high = where.min(axis=0), where.max(axis=0) + 1
    moved = np.array(affine, float)
    moved[:3, 3] = (affine @ [*low, 1])[:3]
    return mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))], moved


@pytest.mark.parametrize(("angles", "steps"), PLACES)
def test_ten_cycles_through_dicom_seg_change_no_voxel(
    tmp_path: Path, angles: tuple[float, ...], steps: tuple[float, ...]
) -> None:
    array = np.zeros(SHAPE, np.int16)
    series = save_dicom(tmp_path / "series", *dicom_slices(array, a_place(angles, steps)))
    volume = load_volume(series)
    for full in (True, False):
        mask = a_mask(1)
        if not full:
            mask[:, :, :3] = mask[:, :, 9:] = mask[:2] = 0
        stored = tmp_path / "label.nii.gz"
        nib.save(nib.Nifti1Image(mask, np.asarray(volume.affine)), stored)
        info = [{"name": name} for name in NAMES]
        for _ in range(CYCLES):
            segmentation = Path(converted(series, stored, info, KNOWN))
            try:
                found = read_back(segmentation, volume)
            finally:
                segmentation.unlink()
            np.testing.assert_array_equal(found, mask)
            nib.save(nib.Nifti1Image(found, np.asarray(volume.affine)), stored)


@pytest.mark.parametrize(("angles", "steps"), PLACES)
@pytest.mark.parametrize("ending", [".seg.nrrd", ".nrrd", ".nii.gz"])
def test_ten_cycles_of_cropped_files_change_no_voxel(
    tmp_path: Path, angles: tuple[float, ...], steps: tuple[float, ...], ending: str
) -> None:
    lps = a_place(angles, steps)
    (tmp_path / "image.nii").write_bytes(volume_files.nifti(np.zeros(SHAPE, np.int16), lps))
    volume = load_volume(tmp_path / "image.nii")
    mask = a_mask(2)
    mask[:, :, 10:] = mask[:1] = 0
    found = mask
    segments = [Segment(name, value, (1, 2, 3)) for name, value in NAMES.items()]
    for _ in range(CYCLES):
        part, moved = cropped(found, RAS_FROM_LPS @ lps)
        path = write(LabelledMask(np.asfortranarray(part), moved, segments), ending)
        try:
            found = read_back(path, volume)
        finally:
            path.unlink()
        np.testing.assert_array_equal(found, mask)

"""Labels that ITK's and nibabel's programs draw on one NIfTI image come back on the same voxels."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dualclickmed.errors import UserError
from dualclickmed.imaging.label_files import read_labels
from dualclickmed.imaging.mask_files import LabelledMask, Segment, write
from dualclickmed.imaging.volume import Volume, load_volume

from tests.support import volume_files
from tests.support.volume_files import RAS_FROM_LPS

SHAPE = (7, 6, 5)
ARRAY = np.random.default_rng(3).integers(0, 900, SHAPE).astype(np.int16)
MASK = np.zeros(SHAPE, np.uint8)
MASK[2:5, 1:4, 3] = MASK[6, 5, 4] = 1
LPS = np.array([[0.8, 0, 0, -31], [0, 1.1, 0, 12], [0, 0, 2.5, 400], [0, 0, 0, 1]])
AWAY = LPS + np.array([[0, 0, 0, 14.0], [0] * 4, [0, 0, 0, -58], [0] * 4])
TURNED = np.diag([-1.0, -1, 1, 1]) @ LPS
SHEARED = LPS @ np.array([[1, 0.2, 0, 0], [0, 1, 0.3, 0], [0, 0, 1, 0], [0, 0, 0, 1]])

IMAGES = {
    "forms that agree": (volume_files.nifti(ARRAY, LPS), ""),
    # ITK takes the sform where its code is 1 (scanner), nibabel where it has any.
    "forms 58 mm apart, a scanner's sform": (volume_files.nifti(ARRAY, LPS, qform=AWAY), ""),
    "forms 58 mm apart": (volume_files.nifti(ARRAY, LPS, codes=(2, 1), qform=AWAY), "two places"),
    "forms that are turned": (volume_files.nifti(ARRAY, LPS, codes=(4, 1), qform=TURNED), "two places"),
    "no form": (volume_files.nifti(ARRAY, LPS, codes=(0, 0)), "neither sform nor qform"),
    "a qform alone": (volume_files.nifti(ARRAY, AWAY, codes=(0, 1), qform=LPS), ""),
    "a sheared sform, a sound qform": (volume_files.nifti(ARRAY, SHEARED, qform=LPS), "two places"),
    "micrometres": (volume_files.nifti(ARRAY, LPS, unit=3), "micrometres"),
    "metres": (volume_files.nifti(ARRAY, LPS, unit=1), "metres"),
    "most significant byte first": (
        volume_files.nifti(ARRAY, LPS, codes=(2, 1), big=True, qform=AWAY),
        "two places",
    ),
}


@pytest.fixture(params=IMAGES)
def image(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A file, and what its note tells."""
    data, note = IMAGES[request.param]
    (tmp_path / "image.nii").write_bytes(data)
    return tmp_path / "image.nii", note


def read_back(path: Path, volume: Volume) -> np.ndarray:
    found = read_labels(path, volume, {"label_names": {"organ": 1}})
    return volume.to_raw_array(found.mask("organ")).astype(np.uint8)


def test_a_note_tells_of_two_places(image: tuple[Path, str]) -> None:
    path, told = image
    notes = load_volume(path).notes
    assert len(notes) == bool(told)
    assert all(told in note for note in notes)


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".nii.gz"])
def test_a_label_of_an_itk_program_is_on_its_voxels(image: tuple[Path, str], ending: str) -> None:
    path, _ = image
    drawn = sitk.GetImageFromArray(MASK.T.copy())
    drawn.CopyInformation(sitk.ReadImage(str(path), imageIO="NiftiImageIO"))
    sitk.WriteImage(drawn, str(path.with_name(f"label{ending}")))
    np.testing.assert_array_equal(read_back(path.with_name(f"label{ending}"), load_volume(path)), MASK)


@pytest.mark.parametrize("header", ["with the image's header", "with its affine alone"])
def test_a_label_of_a_nibabel_program_is_on_its_voxels(image: tuple[Path, str], header: str) -> None:
    path, _ = image
    read = nib.load(path)
    kept = read.header if header.startswith("with the image") else None
    nib.save(type(read)(MASK, read.affine, kept), path.with_name("label.nii"))
    np.testing.assert_array_equal(read_back(path.with_name("label.nii"), load_volume(path)), MASK)


@pytest.mark.parametrize("ending", [".nrrd", ".seg.nrrd", ".nii", ".nii.gz"])
def test_an_answer_lies_where_each_program_puts_the_image(image: tuple[Path, str], ending: str) -> None:
    path, _ = image
    volume = load_volume(path)
    answer = write(LabelledMask(MASK, volume.affine, [Segment("organ", 1, (1, 2, 3))]), ending)
    try:
        by_itk, of_image = sitk.ReadImage(str(answer)), sitk.ReadImage(str(path), imageIO="NiftiImageIO")
        assert by_itk.GetSpacing() == pytest.approx(of_image.GetSpacing(), rel=1e-4)
        for index in ((0, 0, 0), (6, 5, 4)):
            place = by_itk.TransformIndexToPhysicalPoint(index)
            assert place == pytest.approx(of_image.TransformIndexToPhysicalPoint(index), abs=1e-3, rel=1e-4)
        if ending.startswith(".nii"):
            mask, read = nib.load(answer), nib.load(path)
            np.testing.assert_array_equal(mask.affine, read.affine)
            for field in ("sform_code", "qform_code", "xyzt_units"):
                assert mask.header[field] == read.header[field]
        np.testing.assert_array_equal(read_back(answer, volume), MASK)
    finally:
        answer.unlink()


def test_a_nifti2_is_answered_in_nifti1(tmp_path: Path) -> None:
    """ITK reads no NIfTI-2; what nibabel makes of the image, both make of the answer."""
    for unit in (2, 1):
        (tmp_path / "image.nii").write_bytes(volume_files.nifti(ARRAY, LPS, version=2, unit=unit))
        with pytest.raises(RuntimeError):
            sitk.ReadImage(str(tmp_path / "image.nii"), imageIO="NiftiImageIO")
        volume = load_volume(tmp_path / "image.nii")
        assert len(volume.notes) == 1 and "NIfTI-2" in volume.notes[0]
        answer = write(LabelledMask(MASK, volume.affine, [Segment("organ", 1, (1, 2, 3))]), ".nii")
        try:
            mask = nib.load(answer)
            assert isinstance(mask, nib.Nifti1Image) and mask.header["xyzt_units"] == unit
            np.testing.assert_allclose(mask.affine, RAS_FROM_LPS @ LPS, atol=1e-5)
            place = sitk.ReadImage(str(answer)).TransformIndexToPhysicalPoint((6, 5, 4))
            factor = {1: 1000, 2: 1}[unit]
            assert place == pytest.approx(factor * (LPS[:3] @ [6, 5, 4, 1]), rel=1e-5)
            np.testing.assert_array_equal(read_back(answer, volume), MASK)
        finally:
            answer.unlink()
    apart = volume_files.nifti(ARRAY, LPS, version=2, codes=(2, 1), qform=AWAY)
    (tmp_path / "image.nii").write_bytes(apart)
    with pytest.raises(UserError, match="another place"):
        write(LabelledMask(MASK, load_volume(tmp_path / "image.nii").affine, []), ".nii")


def test_a_grid_that_itk_cannot_read_is_not_answered_in_nifti(tmp_path: Path) -> None:
    (tmp_path / "image.nii").write_bytes(volume_files.nifti(ARRAY, SHEARED, codes=(1, 0)))
    volume = load_volume(tmp_path / "image.nii")
    assert len(volume.notes) == 1 and "sheared" in volume.notes[0]
    mask = LabelledMask(MASK, volume.affine, [Segment("organ", 1, (1, 2, 3))])
    with pytest.raises(UserError, match="sheared"):
        write(mask, ".nii.gz")
    answer = write(mask, ".nrrd")
    try:
        place = SHEARED[:3] @ [6, 5, 4, 1]
        found = sitk.ReadImage(str(answer)).TransformIndexToPhysicalPoint((6, 5, 4))
        assert found == pytest.approx(place, abs=1e-4)
    finally:
        answer.unlink()

"""DICOM series and multi-frame files: values and places of every slice, by what was written into them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dualclickmed.errors import VolumeError
from dualclickmed.imaging.series_nifti import series_to_nifti
from dualclickmed.imaging.volume import Volume, load_volume
from pydicom.dataset import Dataset

from tests.support.volume_files import RAS_FROM_LPS, dicom_frames, dicom_slices, save_dicom

LPS = np.array([[0.9, 0, 0, -10], [0, 0.8, 0, -20], [0, 0, 2, 5], [0, 0, 0, 1.0]])
ARRAY = np.random.default_rng(1).integers(-900, 900, (6, 5, 4)).astype(np.int16)


def real(volume: Volume) -> np.ndarray:
    return volume.to_raw_array(volume.array) * volume.slope + volume.intercept


def test_interleaved_frames_take_their_values_and_slopes_along(tmp_path: Path) -> None:
    order, slopes = [0, 2, 1, 3], [1, 2, 3, 4]
    frames = dicom_frames(ARRAY[:, :, order], LPS, [float(k) for k in order], slopes)
    found = load_volume(save_dicom(tmp_path / "a", frames))
    wanted = ARRAY * np.array([1, 3, 2, 4])
    # Values reach 3,600 in float32 and are held with 16 bits.
    np.testing.assert_allclose(real(found), wanted, atol=0.1)
    np.testing.assert_allclose(found.affine, RAS_FROM_LPS @ LPS, atol=1e-6)
    assert any("sorted" in note for note in found.notes)


@pytest.mark.parametrize("degrees", [-12.0, 7.5, 25.0])
def test_slices_of_a_tilted_gantry_lie_where_their_files_say(tmp_path: Path, degrees: float) -> None:
    angle = np.radians(degrees)
    lps = LPS.copy()
    lps[:3, 1] = np.array([0, np.cos(angle), -np.sin(angle)]) * 0.8
    slices = dicom_slices(ARRAY, lps)
    found = load_volume(save_dicom(tmp_path / "a", *slices[::-1]))
    assert np.array_equal(real(found), ARRAY)
    np.testing.assert_allclose(found.affine, RAS_FROM_LPS @ lps, atol=1e-6)
    assert len(found.notes) == 1 and f"{abs(degrees):.1f} degrees" in found.notes[0]


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"), [(1, -1024, "int16"), (1, 0, "int16"), (0.25, 3, "int16")]
)
def test_a_series_as_nifti_is_the_series(tmp_path: Path, slope: float, intercept: int, dtype: str) -> None:
    """By nibabel and by ITK, voxel for voxel, at the places that the slices tell."""
    slices = dicom_slices(ARRAY, LPS, RescaleSlope=slope, RescaleIntercept=intercept)
    target = tmp_path / "a.nii.gz"
    assert series_to_nifti(save_dicom(tmp_path / "a", *slices), target) == []
    wanted = ARRAY * slope + intercept
    image = nib.load(target)
    assert image.get_data_dtype() == dtype
    np.testing.assert_array_equal(image.get_fdata(), wanted)
    np.testing.assert_allclose(image.affine, RAS_FROM_LPS @ LPS, atol=1e-5)
    itk = sitk.ReadImage(str(target))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(itk).T, wanted)
    np.testing.assert_allclose(
        itk.TransformIndexToPhysicalPoint((1, 2, 3)), LPS[:3] @ [1, 2, 3, 1], atol=1e-5
    )


def test_slopes_of_each_slice_and_a_tilt_reach_the_nifti(tmp_path: Path) -> None:
    lps = LPS.copy()
    lps[1, 2] = 0.7
    slices = dicom_slices(ARRAY, lps)
    for k, one in enumerate(slices):
        one.RescaleSlope = 1 + 9 * k
    target = tmp_path / "a.nii.gz"
    notes = series_to_nifti(save_dicom(tmp_path / "a", *slices), target)
    assert len(notes) == 1 and "slanted" in notes[0]
    image = nib.load(target)
    np.testing.assert_allclose(image.get_fdata(), ARRAY * (1 + 9 * np.arange(4)))
    np.testing.assert_allclose(image.affine, RAS_FROM_LPS @ lps, atol=1e-5)


def test_an_irregular_series_makes_no_nifti(tmp_path: Path) -> None:
    slices = dicom_slices(ARRAY, LPS)
    with pytest.raises(VolumeError, match="are missing"):
        series_to_nifti(save_dicom(tmp_path / "a", slices[0], slices[1], slices[3]), tmp_path / "a.nii.gz")
    assert not (tmp_path / "a.nii.gz").exists()


def without_groups(**tags: object) -> Dataset:
    """A multi-frame file of the older kind, with these tags."""
    data = dicom_frames(ARRAY, LPS)
    del data.PerFrameFunctionalGroupsSequence, data.SharedFunctionalGroupsSequence
    for name, value in tags.items():
        setattr(data, name, value)
    return data


@pytest.mark.parametrize("step", [4, -4])
def test_frames_of_nuclear_medicine_run_the_way_of_their_distance(tmp_path: Path, step: int) -> None:
    detector = Dataset()
    detector.ImagePositionPatient, detector.ImageOrientationPatient = [-5, 7, 31], [1, 0, 0, 0, 1, 0]
    data = without_groups(
        Modality="NM",
        PixelSpacing=[3, 2],
        SpacingBetweenSlices=step,
        DetectorInformationSequence=[detector],
    )
    found = load_volume(save_dicom(tmp_path / "a", data))
    np.testing.assert_array_equal(real(found), ARRAY)
    wanted = RAS_FROM_LPS @ [[2, 0, 0, -5], [0, 3, 0, 7], [0, 0, step, 31], [0, 0, 0, 1]]
    np.testing.assert_allclose(found.affine, wanted)


@pytest.mark.parametrize(
    "tags",
    [{"FrameTime": 33}, {"FrameIncrementPointer": 0x00181063}, {"FrameIncrementPointer": [0x00181065]}],
)
def test_frames_that_follow_in_time_are_no_volume(tmp_path: Path, tags: dict[str, object]) -> None:
    with pytest.raises(VolumeError, match="film"):
        load_volume(save_dicom(tmp_path / "a", without_groups(Modality="XA", **tags)))


@pytest.mark.parametrize(
    ("directions", "offsets", "step"),
    [
        ([1, 0, 0, 0, 1, 0], [0, 2, 4, 6], (0, 0, 2)),
        ([1, 0, 0, 0, 1, 0], [0, -2, -4, -6], (0, 0, -2)),
        ([1, 0, 0, 0, 0, -1], [0, 2, 4, 6], (0, 2, 0)),
        ([1, 0, 0, 0, 1, 0], [5, 7.5, 10, 12.5], (0, 0, 2.5)),
        ([1, 0, 0, 0, -1, 0], [5, 7.5, 10, 12.5], (0, 0, 2.5)),
    ],
    ids=["up", "down", "coronal", "places", "places, turned over"],
)
def test_frames_at_listed_offsets_lie_there(
    tmp_path: Path, directions: list[int], offsets: list[float], step: tuple[float, ...]
) -> None:
    """From the first frame along the normal, as dose grids and multi-frame captures list them."""
    data = without_groups(
        ImagePositionPatient=[-10, -20, 5],
        PixelSpacing=[0.8, 0.9],
        ImageOrientationPatient=directions,
        GridFrameOffsetVector=[float(offset) for offset in offsets],
    )
    found = load_volume(save_dicom(tmp_path / "a", data))
    np.testing.assert_array_equal(real(found), ARRAY)
    row, column = np.reshape(directions, (2, 3))
    wanted = np.column_stack([0.9 * row, 0.8 * column, step, [-10, -20, 5]])
    np.testing.assert_allclose(found.affine[:3], RAS_FROM_LPS[:3, :3] @ wanted)
    assert found.notes == ()


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"GridFrameOffsetVector": [0.0, 2, 4, 6]}, "where the first one is"),
        ({"GridFrameOffsetVector": [0.0, 2, 4]}, "4 finite numbers"),
        ({"GridFrameOffsetVector": [3.0, 5, 7, 9], "ImagePositionPatient": [0, 0, 5]}, "must start with 0"),
        ({"GridFrameOffsetVector": [0.0, 2, 5, 6], "ImagePositionPatient": [0, 0, 5]}, "equally far apart"),
        ({"GridFrameOffsetVector": [0.0, 2, 6, 8], "ImagePositionPatient": [0, 0, 5]}, "missing"),
        ({"GridFrameOffsetVector": [0.0, 2, 2, 4], "ImagePositionPatient": [0, 0, 5]}, "at each position"),
    ],
)
def test_offsets_that_make_no_grid_are_refused(tmp_path: Path, tags: dict[str, object], message: str) -> None:
    place = {} if len(tags) == 1 else {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
    with pytest.raises(VolumeError, match=message):
        load_volume(save_dicom(tmp_path / "a", without_groups(PixelSpacing=[1, 1], **place, **tags)))


@pytest.mark.parametrize(
    ("keyword", "values", "told"),
    [
        ("EchoNumbers", (1, 2), "echo 1, echo 2"),
        ("EchoTime", (4.6, 9.2), "echo time 4.6, echo time 9.2"),
        ("TemporalPositionIdentifier", (1, 2), "time point 1, time point 2"),
        ("DiffusionBValue", (0.0, 1000.0), "b-value 0.0, b-value 1000.0"),
    ],
)
@pytest.mark.parametrize("order", [(0, 1, 0, 1), (0, 0, 1, 1)], ids=["interleaved", "one behind the other"])
def test_two_images_at_regular_positions_are_not_one(
    tmp_path: Path, keyword: str, values: tuple[float, float], told: str, order: tuple[int, ...]
) -> None:
    slices = dicom_slices(ARRAY, LPS)
    for one, which in zip(slices, order, strict=True):
        setattr(one, keyword, values[which])
    with pytest.raises(VolumeError, match=told):
        load_volume(save_dicom(tmp_path / "a", *slices))


def test_two_echoes_in_one_file_are_not_one_image(tmp_path: Path) -> None:
    frames = dicom_frames(ARRAY, LPS)
    for k, group in enumerate(frames.PerFrameFunctionalGroupsSequence):
        echo = Dataset()
        echo.EffectiveEchoTime = [4.6, 9.2][k % 2]
        group.MREchoSequence = [echo]
    with pytest.raises(VolumeError, match=r"echo time 4\.6, echo time 9\.2"):
        load_volume(save_dicom(tmp_path / "a", frames))


def test_a_number_that_every_slice_has_for_itself_splits_nothing(tmp_path: Path) -> None:
    slices = dicom_slices(ARRAY, LPS, EchoTime=4.6)
    for k, one in enumerate(slices):
        one.TemporalPositionIdentifier = k + 1
    found = load_volume(save_dicom(tmp_path / "a", *slices))
    assert np.array_equal(real(found), ARRAY) and found.notes == ()


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000", "JPEGLS"])
def test_packed_pixels_are_what_was_packed(tmp_path: Path, compressor: str) -> None:
    values = np.random.default_rng(1).integers(0, 255, (32, 24), np.uint8)
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(tmp_path / "a.dcm"))
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.Execute(sitk.GetImageFromArray(values[None]))
    assert pydicom.dcmread(tmp_path / "a.dcm").file_meta.TransferSyntaxUID.is_encapsulated
    found = load_volume(tmp_path)
    np.testing.assert_array_equal(real(found)[:, :, 0], values.T)

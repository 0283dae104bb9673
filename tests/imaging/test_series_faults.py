"""DICOM series with something wrong: refused with the reason, or read with a note of what was left out."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dualclickmed.errors import TooLargeError, VolumeError
from dualclickmed.imaging.volume import Volume, load_volume
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from tests.support.volume_files import RAS_FROM_LPS, dicom_frames, dicom_slices, save_dicom

LPS = np.array([[0.9, 0, 0, -10], [0, 0.8, 0, -20], [0, 0, 2, 5], [0, 0, 0, 1.0]])
ARRAY = np.random.default_rng(1).integers(0, 900, (6, 5, 8)).astype(np.int16)
Slices = list[Dataset]


def series() -> Slices:
    return dicom_slices(ARRAY, LPS)


def real(volume: Volume) -> np.ndarray:
    return volume.to_raw_array(volume.array) * volume.slope + volume.intercept


def turned(slices: Slices, *which: int) -> Slices:
    for k in which:
        slices[k].ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    return slices


def moved(slices: Slices, k: int, by: Sequence[float]) -> Slices:
    place = np.asarray(slices[k].ImagePositionPatient, float) + by
    slices[k].ImagePositionPatient = [f"{v:.12g}" for v in place]
    return slices


def repeated(slices: Slices, same_number: bool) -> Slices:
    again = [pydicom.Dataset(one) for one in dicom_slices(ARRAY, LPS)]
    for one, other in zip(slices, again, strict=True):
        other.file_meta = one.file_meta
        other.SeriesInstanceUID, other.FrameOfReferenceUID = one.SeriesInstanceUID, one.FrameOfReferenceUID
        other.SOPInstanceUID = generate_uid()
        other.InstanceNumber = one.InstanceNumber if same_number else one.InstanceNumber + len(slices)
    return [*slices, *again]


def without(slices: Slices, keyword: str, *which: int) -> Slices:
    for k in which:
        delattr(slices[k], keyword)
    return slices


def given(slices: Slices, keyword: str, value: object, *which: int) -> Slices:
    for k in which:
        setattr(slices[k], keyword, value)
    return slices


REFUSED: dict[str, tuple[Callable[[], Slices], str]] = {
    "one is missing": (lambda: [one for k, one in enumerate(series()) if k != 3], "are missing.*4 mm"),
    "several are missing": (
        lambda: [one for k, one in enumerate(series()) if k not in (2, 3, 6)],
        "are missing.*2 mm apart",
    ),
    "one lies between two places": (lambda: moved(series(), 3, (0, 0, 0.7)), "equally far apart.*2.7 mm"),
    "the last one is farther": (lambda: moved(series(), 7, (0, 0, 1)), "equally far apart"),
    "one lies aside": (lambda: moved(series(), 4, (1.5, 0, 0)), "not on one line"),
    "all are there twice": (lambda: repeated(series(), False), "one slice at each position.*8 more"),
    "all twice, with one number": (lambda: repeated(series(), True), "one slice at each position"),
    "one is turned": (lambda: turned(series(), 5), "one orientation, but 1 of the 8"),
    "half are turned": (lambda: turned(series(), 0, 1, 2), "one orientation, but 3 of the 8"),
    "one has no position": (lambda: without(series(), "ImagePositionPatient", 2), "needs its position"),
    "one has no size of pixels": (lambda: without(series(), "PixelSpacing", 2), "needs its PixelSpacing"),
    "sizes of pixels differ": (lambda: given(series(), "PixelSpacing", [0.8, 1.9], 2), "one PixelSpacing"),
    "one is larger": (lambda: given(series(), "Rows", 4, 6), "one size"),
    "one is of another series": (
        lambda: given(series(), "SeriesInstanceUID", "1.2.3", 6),
        "exactly one image series.*holds 2",
    ),
    "one has no pixels": (lambda: without(series(), "PixelData", 6), "has pixels, but 006.dcm has none"),
    "axes that are not at right angles": (
        lambda: given(series(), "ImageOrientationPatient", [1, 0, 0, 0.5, 1, 0], *range(8)),
        "right angles",
    ),
    "a slope of 0": (lambda: given(series(), "RescaleSlope", 0, 3), "must not be 0"),
    "a table of values": (lambda: given(series(), "ModalityLUTSequence", [Dataset()], 3), "Modality LUT"),
    "a position of nan": (
        lambda: given(series(), "ImagePositionPatient", ["nan", "0", "0"], 3),
        "finite numbers",
    ),
    "colours": (
        lambda: given(given(series(), "SamplesPerPixel", 3, *range(8)), "PlanarConfiguration", 0, *range(8)),
        "one real number",
    ),
    "more bits than there are": (
        lambda: given(series(), "BitsStored", 99, 3),
        "header of 003.dcm is damaged",
    ),
    "bits below the lowest": (
        lambda: given(given(series(), "BitsStored", 12, 3), "HighBit", 3, 3),
        "of 16 bits it uses 12",
    ),
    "two patients": (lambda: given(series(), "PatientID", "other", 3, 4), "one patient"),
    "positions that cannot be compared": (
        lambda: given(series(), "FrameOfReferenceUID", "1.2.3", 3, 4),
        "one frame of reference",
    ),
    "two phases of the heart": (
        lambda: given(
            given(series(), "NominalPercentageOfCardiacPhase", 0, 0, 2, 4, 6),
            "NominalPercentageOfCardiacPhase",
            50,
            *(1, 3, 5, 7),
        ),
        "cardiac phase 0.*cardiac phase 50",
    ),
    "a second file of frames": (lambda: [dicom_frames(ARRAY, LPS) for _ in range(2)], "exactly one"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_series_with_a_fault_is_refused_with_the_reason(tmp_path: Path, fault: str) -> None:
    make, reason = REFUSED[fault]
    with pytest.raises(VolumeError, match=reason):
        load_volume(save_dicom(tmp_path / "a", *make()))


def test_positions_that_differ_in_the_last_digits_are_one_grid(tmp_path: Path) -> None:
    slices = series()
    for k, noise in enumerate(np.random.default_rng(0).normal(0, 2e-4, (8, 3))):
        moved(slices, k, noise)
    found = load_volume(save_dicom(tmp_path / "a", *slices))
    assert np.array_equal(real(found), ARRAY) and found.notes == ()
    np.testing.assert_allclose(found.affine, RAS_FROM_LPS @ LPS, atol=2e-3)


def test_directions_that_differ_in_the_last_digits_are_one_orientation(tmp_path: Path) -> None:
    slices = series()
    for k, noise in enumerate(np.random.default_rng(0).normal(0, 1e-6, (8, 6))):
        slices[k].ImageOrientationPatient = [f"{v:.9g}" for v in np.array([1, 0, 0, 0, 1, 0]) + noise]
    found = load_volume(save_dicom(tmp_path / "a", *slices))
    assert np.array_equal(real(found), ARRAY) and found.notes == ()


def test_what_is_left_out_is_named(tmp_path: Path) -> None:
    slices = series()
    folder = save_dicom(tmp_path / "a", *slices)
    localizer = turned(dicom_slices(ARRAY[:, :, :1], LPS), 0)[0]
    localizer.SeriesInstanceUID = slices[0].SeriesInstanceUID
    localizer.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    localizer.save_as(folder / "scout.dcm", enforce_file_format=True)
    result = dicom_slices(ARRAY[:, :, :1], LPS, Modality="SEG")[0]
    result.save_as(folder / "result.dcm", enforce_file_format=True)
    slices[2].save_as(folder / "zcopy.dcm", enforce_file_format=True)
    (folder / "notes.txt").write_text("for the archive")
    (folder / ".hidden").write_text("")
    found = load_volume(folder)
    assert np.array_equal(real(found), ARRAY)
    told = " ".join(found.notes)
    for name in ("scout.dcm", "result.dcm (SEG)", "zcopy.dcm", "notes.txt"):
        assert name in told
    assert ".hidden" not in told and len(found.notes) == 4


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: given(series(), "ConvolutionKernel", "B70", 3, 4, 5), "several kernels"),
        (
            lambda: given(series(), "ImageType", ["DERIVED", "PRIMARY", "P"], 3, 4),
            "several types of image.*DERIVED/PRIMARY/P",
        ),
        (lambda: without(without(series(), "RescaleSlope", 2), "RescaleIntercept", 2), r"\(002\.dcm\)"),
        (
            lambda: without(
                given(series(), "ImagerPixelSpacing", [0.8, 0.9], *range(8)), "PixelSpacing", *range(8)
            ),
            "at the detector alone",
        ),
    ],
)
def test_what_slices_should_share_is_noted_where_they_do_not(
    tmp_path: Path, make: Callable[[], Slices], told: str
) -> None:
    found = load_volume(save_dicom(tmp_path / "a", *make()))
    assert np.array_equal(real(found), ARRAY)
    np.testing.assert_allclose(found.affine, RAS_FROM_LPS @ LPS, atol=1e-6)
    assert len(found.notes) == 1
    assert re.search(told, found.notes[0])


def test_pet_slopes_of_each_slice_are_those_of_its_values(tmp_path: Path) -> None:
    """The first slice's slope is 1 and the next 10; none of it is truncated."""
    slopes = np.array([1, 10, 0.5, 250.25, 1e-4, 3, 7.5, 1200])
    slices = series()
    for one, slope in zip(slices, slopes.tolist(), strict=True):
        one.Modality, one.RescaleSlope = "PT", slope
    found = load_volume(save_dicom(tmp_path / "a", *slices))
    wanted = ARRAY * slopes
    # Held with 16 bits over the range of all slices.
    np.testing.assert_allclose(real(found), wanted, atol=wanted.max() / 65535)
    assert found.modality == "pt"


@pytest.mark.parametrize("slope", [1e-4, 3.7e-9, 0.25, 65536.0])
@pytest.mark.parametrize("frames", [False, True])
def test_slopes_of_any_size_are_kept(tmp_path: Path, slope: float, frames: bool) -> None:
    if frames:
        made: Slices = [dicom_frames(ARRAY, LPS, slopes=[slope] * 8)]
    else:
        made = dicom_slices(ARRAY, LPS, RescaleSlope=f"{slope:.10g}", RescaleIntercept="0")
    found = load_volume(save_dicom(tmp_path / "a", *made))
    np.testing.assert_allclose(real(found), ARRAY * slope, rtol=1e-6)


def test_unsigned_values_with_a_negative_intercept_do_not_overflow(tmp_path: Path) -> None:
    array = np.random.default_rng(2).integers(0, 65536, ARRAY.shape).astype(np.uint16)
    array[0, 0, :2] = 0, 65535
    made = dicom_slices(array, LPS, RescaleSlope=2, RescaleIntercept=-1024)
    folder = save_dicom(tmp_path / "a", *made)
    found = load_volume(folder)
    wanted = array.astype(np.int64) * 2 - 1024
    assert np.array_equal(real(found), wanted)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    assert np.array_equal(sitk.GetArrayFromImage(reader.Execute()).T, wanted)


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("NumberOfFrames", "2147483647"), ("NumberOfFrames", "20001"), ("Rows", 65535)],
)
def test_more_than_there_can_be_is_refused_before_anything_is_made_of_it(
    tmp_path: Path, keyword: str, value: object
) -> None:
    one = given(given(series()[:1], "Columns", 65535, 0), keyword, value, 0)
    folder = save_dicom(tmp_path / "a", *one)
    begun = time.monotonic()
    with pytest.raises(TooLargeError):
        load_volume(folder)
    # A list of so many frames would take minutes.
    assert time.monotonic() - begun < 20

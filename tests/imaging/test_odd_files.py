"""Files that are odd but lawful, or nearly so: as ITK, nibabel and pydicom read them, or with a sentence."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dualclickmed.errors import VolumeError
from dualclickmed.imaging.label_files import read_labels
from dualclickmed.imaging.volume import Volume, load_volume

from tests.support import volume_files
from tests.support.volume_files import RAS_FROM_LPS, dicom_slices, save_dicom

ARRAY = np.random.default_rng(0).integers(-90, 90, (4, 5, 6)).astype(np.int16)
LPS = np.array([[2.0, 0, 0, -5], [0, 3, 0, 7], [0, 0, 4, 11], [0, 0, 0, 1]])


def real(volume: Volume) -> np.ndarray:
    return volume.to_raw_array(volume.array) * volume.slope + volume.intercept


def patched(data: bytes, *fields: tuple[Any, ...]) -> bytes:
    """With other numbers in the header: (offset, format, numbers...)."""
    changed = bytearray(data)
    for offset, form, *numbers in fields:
        struct.pack_into(form, changed, offset, *numbers)
    return bytes(changed)


NIFTI = volume_files.nifti(ARRAY, LPS)
QFORM = volume_files.nifti(ARRAY, LPS, codes=(0, 1))
COMMENT = (
    patched(NIFTI[:352], (108, "<f", 384), (348, "<4b", 1, 0, 0, 0)) + struct.pack("<2i24s", 32, 6, b"x")
    + NIFTI[352:]
)  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [
        patched(NIFTI, (68, "<h", 1002)),
        patched(NIFTI, (40, "<5h", 4, 4, 5, 6, 1)),
        patched(NIFTI, (40, "<6h", 5, 4, 5, 6, 1, 1), (68, "<h", 1007)),
        patched(NIFTI, (112, "<2f", np.nan, np.nan)),
        patched(NIFTI, (112, "<2f", 2, -3)),
        COMMENT,
        NIFTI + b"behind the voxels",
        patched(QFORM, (76, "<f", 0)),
        patched(QFORM, (76, "<f", 7)),
        patched(QFORM, (76, "<f", -1)),
    ],
    ids=[
        *("label", "one time", "vector", "no scale", "scale", "extension", "rest", "qfac 0", "qfac 7"),
        "qfac -1",
    ],
)
def test_nifti_is_read_as_nibabel_and_itk_do(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.nii").write_bytes(data)
    found, image = load_volume(tmp_path / "a.nii"), nib.load(tmp_path / "a.nii")
    np.testing.assert_allclose(real(found), image.get_fdata().reshape(ARRAY.shape))
    np.testing.assert_allclose(found.affine, image.affine, atol=1e-5)
    itk = sitk.ReadImage(str(tmp_path / "a.nii"))
    place = RAS_FROM_LPS[:3, :3] @ itk.TransformIndexToPhysicalPoint((3, 4, 5))
    np.testing.assert_allclose((found.affine @ [3, 4, 5, 1])[:3], place, atol=1e-4)
    assert found.notes == ()


def test_an_intercept_without_a_slope_is_noted(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(patched(NIFTI, (112, "<2f", 0, 5)))
    found = load_volume(tmp_path / "a.nii")
    np.testing.assert_array_equal(real(found), nib.load(tmp_path / "a.nii").get_fdata())
    assert len(found.notes) == 1 and "intercept (5)" in found.notes[0]


def test_a_slope_that_itk_passes_over_is_noted(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(patched(NIFTI, (112, "<2f", 1e-18, 0)))
    found = load_volume(tmp_path / "a.nii")
    np.testing.assert_allclose(real(found), nib.load(tmp_path / "a.nii").get_fdata(), rtol=1e-6)
    assert np.abs(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.nii")))).max() > 1
    assert len(found.notes) == 1 and "so small (1e-18)" in found.notes[0]


def test_voxels_that_are_said_to_start_at_byte_0_start_behind_the_header(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(patched(NIFTI, (108, "<f", 0)))
    found = load_volume(tmp_path / "a.nii")
    assert np.array_equal(real(found), ARRAY)
    assert len(found.notes) == 1 and "vox_offset 0" in found.notes[0]


@pytest.mark.parametrize("line", ["Origin = 1 2 3", "Position = -5 7 11.5", "Rotation = 0 1 0 1 0 0 0 0 1"])
def test_a_metaimage_of_two_places_is_refused(tmp_path: Path, line: str) -> None:
    header, voxels = volume_files.meta(ARRAY, LPS)
    (tmp_path / "a.mha").write_bytes(header.replace(b"DimSize", line.encode() + b"\nDimSize") + voxels)
    with pytest.raises(VolumeError, match="its place twice"):
        load_volume(tmp_path / "a.mha")
    same = {"O": "Origin = -5 7 11", "P": "Position = -5 7 11", "R": "Rotation = 1 0 0 0 1 0 0 0 1"}[line[0]]
    (tmp_path / "a.mha").write_bytes(header.replace(b"DimSize", same.encode() + b"\nDimSize") + voxels)
    _same_as_itk(tmp_path / "a.mha")


@pytest.mark.parametrize(
    ("ending", "line", "told"),
    [
        (".nrrd", 'space units: "um" "um" "um"', "um"),
        (".nrrd", 'space units: "mm" "mm" "mm"', ""),
        (".mha", "DistanceUnits = um", "um"),
        (".mha", "DistanceUnits = mm", ""),
    ],
)
def test_a_unit_that_itk_does_not_heed_is_noted(tmp_path: Path, ending: str, line: str, told: str) -> None:
    if ending == ".nrrd":
        header, voxels = volume_files.nrrd(ARRAY, LPS, encoding="raw")
        data = header + line.encode() + b"\n\n" + voxels
    else:
        header, voxels = volume_files.meta(ARRAY, LPS)
        data = header.replace(b"DimSize", line.encode() + b"\nDimSize") + voxels
    (tmp_path / f"a{ending}").write_bytes(data)
    _same_as_itk(tmp_path / f"a{ending}")
    notes = load_volume(tmp_path / f"a{ending}").notes
    assert len(notes) == bool(told)
    assert all(f"counts in {told}" in note for note in notes)


def test_a_metaimage_of_two_byte_orders_is_refused(tmp_path: Path) -> None:
    header, voxels = volume_files.meta(ARRAY, LPS)
    both = header.replace(b"DimSize", b"ElementByteOrderMSB = True\nDimSize")
    (tmp_path / "a.mha").write_bytes(both + voxels)
    with pytest.raises(VolumeError, match="two byte orders"):
        load_volume(tmp_path / "a.mha")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("CenterOfRotation = 0 0 0", "CenterOfRotation = 5 6 7"),
        ("DimSize", "ElementNumberOfChannels = 1\nDimSize"),
        ("ElementSpacing", "ElementSize"),
        ("DimSize", "ElementSize = 1 1 1\nDimSize"),
        ("TransformMatrix = .*", "Rotation = 0 1 0 1 0 0 0 0 1"),
        ("TransformMatrix = .*", "TransformMatrix = 2 0 0 0 1 0 0 0 1"),
        ("ElementSpacing = .*", "ElementSpacing = 2 -3 4"),
    ],
)
def test_metaimages_lie_where_itk_puts_them(tmp_path: Path, before: str, after: str) -> None:
    header, voxels = volume_files.meta(ARRAY, LPS)
    changed = re.sub(before, after, header.decode(), count=1)
    assert changed != header.decode()
    (tmp_path / "a.mha").write_bytes(changed.encode() + voxels)
    _same_as_itk(tmp_path / "a.mha")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("space directions:.*\n", ""),
        ("space: .*\nsizes", "space: RAS\nsizes"),
        ("kinds", "measurement frame: (0,1,0) (1,0,0) (0,0,1)\nkinds"),
        ("kinds", "centers: cell cell cell\nkinds"),
        ("(?s)space: .*?\n(.*)space directions:.*?\n(.*)space origin.*", r"\1spacings: 2 nan 4\n\2"),
    ],
)
def test_nrrds_lie_where_itk_puts_them(tmp_path: Path, before: str, after: str) -> None:
    header, voxels = volume_files.nrrd(ARRAY, LPS, encoding="raw")
    changed = re.sub(before, after, header.decode(), count=1).rstrip()
    assert changed != header.decode().rstrip()
    (tmp_path / "a.nrrd").write_bytes(changed.encode() + b"\n\n" + voxels)
    _same_as_itk(tmp_path / "a.nrrd")


@pytest.mark.parametrize(
    ("lines", "notes"),
    [
        ("", ["distance"]),
        ("axis mins: 1 2 3\n", ["distance", "axis mins"]),
        ("axis mins: nan 2 3\n", ["distance", "axis mins"]),
        ("axis mins: 1 2 3\ncenters: node node node\n", ["distance", "axis mins"]),
        ("axis mins: 1 2 3\nspacings: 2 nan 4\n", ["distance", "axis mins"]),
        ("axis mins: nan 2 3\nspacings: 2 3 4\n", ["axis mins"]),
        ("axis mins: 1 2 3\nspacings: 2 3 4\n", []),
        ("axis mins: 1 2 3\nspacings: 2 3 4\ncenters: node cell node\n", []),
        ("axis mins: 1 2 3\nspacings: 2 -3 4\n", []),
        ("axis mins: 1 2 3\naxis maxs: 9 8 7\nspacings: 2 3 4\n", []),
        ("space: left-posterior-superior\nspace origin: (1,2,3)\n", ["distance"]),
    ],
)
def test_nrrds_of_which_little_is_told_lie_where_itk_puts_them_with_a_note(
    tmp_path: Path, lines: str, notes: list[str]
) -> None:
    head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 4 5 6\nencoding: raw\nendian: little\n"
    (tmp_path / "a.nrrd").write_bytes(f"{head}{lines}\n".encode() + ARRAY.tobytes("F"))
    _same_as_itk(tmp_path / "a.nrrd")
    found = load_volume(tmp_path / "a.nrrd").notes
    assert len(found) == len(notes)
    assert all(word in note for word, note in zip(notes, found, strict=True))


def test_a_metaimage_without_a_spacing_is_noted(tmp_path: Path) -> None:
    header, voxels = volume_files.meta(ARRAY, LPS)
    (tmp_path / "a.mha").write_bytes(re.sub(rb"ElementSpacing.*\n", b"", header) + voxels)
    _same_as_itk(tmp_path / "a.mha")
    assert ["distance" in note for note in load_volume(tmp_path / "a.mha").notes] == [True]


@pytest.mark.parametrize("ending", [".nhdr", ".mhd"])
def test_a_file_beside_the_header_may_be_named_with_its_folder(tmp_path: Path, ending: str) -> None:
    """'./x', as some programs write it; nothing else that looks like a path."""
    header, voxels = (
        volume_files.nrrd(ARRAY, LPS, encoding="raw")
        if ending == ".nhdr"
        else volume_files.meta(ARRAY, LPS, data="NAME")
    )
    told = header + b"data file: NAME\n" if ending == ".nhdr" else header
    (tmp_path / "x.raw").write_bytes(voxels)
    path = tmp_path / f"a{ending}"
    path.write_bytes(told.replace(b"NAME", b"./x.raw"))
    _same_as_itk(path)
    for name in (b".//x.raw", b"././x.raw", b"./../x.raw", b"./.x.raw", b"a/x.raw", b"./a/../x.raw"):
        path.write_bytes(told.replace(b"NAME", name))
        with pytest.raises(VolumeError, match="may name a file that lies beside it"):
            load_volume(path)


def _same_as_itk(path: Path) -> None:
    found, itk = load_volume(path), sitk.ReadImage(str(path))
    np.testing.assert_array_equal(real(found), sitk.GetArrayFromImage(itk).T)
    for index in ((0, 0, 0), (3, 0, 0), (0, 4, 0), (0, 0, 5)):
        place = RAS_FROM_LPS[:3, :3] @ itk.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose((found.affine @ [*index, 1])[:3], place, atol=1e-5)


def test_numbers_of_colours_are_refused(tmp_path: Path) -> None:
    slices = dicom_slices(ARRAY, LPS, PhotometricInterpretation="PALETTE COLOR")
    with pytest.raises(VolumeError, match="PALETTE"):
        load_volume(save_dicom(tmp_path / "a", *slices))


def test_inverted_grey_is_noted(tmp_path: Path) -> None:
    slices = dicom_slices(ARRAY, LPS, PhotometricInterpretation="MONOCHROME1")
    found = load_volume(save_dicom(tmp_path / "a", *slices))
    np.testing.assert_array_equal(real(found), ARRAY)
    assert len(found.notes) == 1 and "MONOCHROME1" in found.notes[0]


def test_what_a_label_has_outside_its_image_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.nii").write_bytes(NIFTI)
    label = np.ones((4, 5, 7), np.uint8)
    nib.save(nib.Nifti1Image(label, RAS_FROM_LPS @ LPS), tmp_path / "l.nii")
    found = read_labels(tmp_path / "l.nii", load_volume(tmp_path / "a.nii"), {"label_names": {"liver": 1}})
    assert found.voxels == {"liver": 4 * 5 * 6}
    assert found.notes == ["20 voxels of l.nii lie outside the image and were left out."]

"""Damaged files: an error, or the voxels as they were; never something in between."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from dualclickmed.errors import VolumeError
from dualclickmed.imaging.volume import Volume, load_volume
from pydicom.uid import DeflatedExplicitVRLittleEndian, RLELossless

from tests.support import volume_files
from tests.support.volume_files import dicom_bytes, dicom_frames, dicom_slices, save_dicom

ARRAY = np.random.default_rng(4).integers(-90, 90, (9, 8, 7)).astype(np.int16)
LPS = np.diag([1.0, 2.0, 3.0, 1.0])


def _nrrd(encoding: str) -> bytes:
    header, voxels = volume_files.nrrd(ARRAY, LPS, encoding=encoding)
    return header + b"\n" + voxels


PACKED = {
    "a.nii.gz": gzip.compress(volume_files.nifti(ARRAY, LPS)),
    "gzip.nrrd": _nrrd("gzip"),
    "bzip2.nrrd": _nrrd("bzip2"),
    "a.mha": b"".join(volume_files.meta(ARRAY, LPS, packed=True)),
}


def same(found: Volume, wanted: Volume) -> bool:
    return np.array_equal(found.array, wanted.array) and np.array_equal(found.affine, wanted.affine)


def unless_refused(path: Path, wanted: Volume) -> bool:
    """Whether a file is refused; one that is read has to be the same image."""
    try:
        found = load_volume(path)
    except VolumeError as error:
        assert str(error).endswith(".")
        return True
    assert same(found, wanted), path.name
    return False


@pytest.mark.parametrize("name", PACKED)
def test_a_flipped_bit_in_a_packed_file_is_noticed(tmp_path: Path, name: str) -> None:
    """Every bit of some bytes all over the stream; what it packs has a checksum, which is read."""
    data, path = PACKED[name], tmp_path / name
    path.write_bytes(data)
    wanted = load_volume(path)
    begin = 12 if name.endswith(".gz") else data.index(b"\n\n") + 2 if b"\n\n" in data else 0
    begin = data.index(b"LOCAL") + 6 if name == "a.mha" else begin
    places = np.linspace(begin, len(data) - 1, 40).astype(int)
    refused = 0
    for at in places.tolist():
        for bit in (0, 3, 7):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            path.write_bytes(bytes(changed))
            refused += unless_refused(path, wanted)
    # Some bits of a gzip header say when and where it was packed.
    assert refused >= 3 * len(places) - 12


@pytest.mark.parametrize("name", PACKED)
def test_a_cut_stream_is_refused_wherever_it_ends(tmp_path: Path, name: str) -> None:
    data, path = PACKED[name], tmp_path / name
    for length in (*range(0, len(data), 29), *range(len(data) - 12, len(data))):
        path.write_bytes(data[:length])
        with pytest.raises(VolumeError):
            load_volume(path)


def _rle() -> list[bytes]:
    slices = dicom_slices(ARRAY, LPS)
    for one in slices:
        one.compress(RLELossless)
    return [dicom_bytes(one) for one in slices]


SERIES: dict[str, Callable[[], list[bytes]]] = {
    "plain": lambda: [dicom_bytes(one) for one in dicom_slices(ARRAY, LPS)],
    "run-length": _rle,
    "deflated": lambda: [
        dicom_bytes(one) for one in dicom_slices(ARRAY, LPS, syntax=DeflatedExplicitVRLittleEndian)
    ],
    "frames": lambda: [dicom_bytes(dicom_frames(ARRAY, LPS))],
}


@pytest.mark.parametrize("kind", SERIES)
def test_a_dicom_file_that_is_cut_short_is_refused(tmp_path: Path, kind: str) -> None:
    files = SERIES[kind]()
    for number, data in enumerate(files):
        (tmp_path / f"{number}.dcm").write_bytes(data)
    # One whose loss would leave no gap.
    path = tmp_path / f"{len(files) - 1}.dcm"
    data = path.read_bytes()
    # From the pixels backwards to the header.
    for length in (len(data) - 3, len(data) - 40, len(data) - 100, len(data) // 2, 200, 133, 100, 0):
        path.write_bytes(data[:length])
        with pytest.raises(VolumeError, match=path.name.replace(".", r"\.")):
            load_volume(tmp_path)


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000", "JPEGLS"])
def test_damaged_pictures_give_an_error_or_the_same_values_each_time(tmp_path: Path, compressor: str) -> None:
    """These have no checksum: a flipped bit may change values, but nothing comes out of memory that is not
    of the file."""
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetFileName(str(tmp_path / "whole.dcm"))
    writer.UseCompressionOn()
    writer.SetCompressor(compressor)
    writer.Execute(sitk.GetImageFromArray(np.random.default_rng(1).integers(0, 255, (1, 32, 32), np.uint8)))
    data = (tmp_path / "whole.dcm").read_bytes()
    folder, rng = tmp_path / "series", np.random.default_rng(2)
    folder.mkdir()
    read = 0
    for _ in range(40):
        changed = bytearray(data)
        changed[len(data) - 20 - int(rng.integers(0, 500))] ^= 1 << int(rng.integers(8))
        (folder / "a.dcm").write_bytes(bytes(changed))
        found = []
        for value in (0, 255):
            # What is freed here is what a reader would find in its memory.
            spare = [np.full(32 * 32, value, np.uint8) for _ in range(50)]
            del spare
            try:
                found.append(load_volume(folder).array)
            except VolumeError:
                found.append(None)
        assert (found[0] is None) == (found[1] is None)
        read += found[0] is not None and np.array_equal(found[0], found[1])
        assert found[0] is None or np.array_equal(found[0], found[1])
    assert read > 0


def test_a_short_slice_is_named_whatever_its_place(tmp_path: Path) -> None:
    slices = dicom_slices(ARRAY, LPS)
    slices[3].PixelData = slices[3].PixelData[:-4]
    with pytest.raises(VolumeError, match=r"003\.dcm is cut short: its pixels have 140 of 144 bytes"):
        load_volume(save_dicom(tmp_path / "a", *slices))

"""The look at headers: what no header may do, whatever it says."""

from __future__ import annotations

import gzip
import os
import struct
import time
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dualclickmed.errors import TooLargeError, UserError, VolumeError
from dualclickmed.imaging.facts import ReadLimits
from dualclickmed.imaging.headers import check_header
from dualclickmed.imaging.reading import read_volume

GEOMETRY = (
    "space: left-posterior-superior\nspace directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n"
)
LIMITS = ReadLimits(image_bytes=1 << 26)


def nrrd(extra: str = "", sizes: str = "5 4 3", dimension: int = 3, encoding: str = "raw") -> bytes:
    head = f"NRRD0005\ntype: uchar\ndimension: {dimension}\nsizes: {sizes}\nencoding: {encoding}\n"
    return (head + extra + "\n").encode()


def meta(extra: str = "", sizes: str = "5 4 3", dims: str = "3", data: str = "LOCAL") -> bytes:
    head = (
        f"ObjectType = Image\nNDims = {dims}\nBinaryData = True\nDimSize = {sizes}\nElementType = MET_UCHAR\n"
    )
    return (head + extra + f"ElementDataFile = {data}\n").encode()


def nifti(**changed: tuple[int, str, tuple[float, ...]]) -> bytes:
    """A NIfTI of 5 x 4 x 3 bytes with numbers of its header replaced: offset, format and the numbers."""
    data = bytearray(nib.Nifti1Image(np.zeros((5, 4, 3), "u1"), np.eye(4)).to_bytes())
    for offset, form, numbers in changed.values():
        struct.pack_into(form, data, offset, *numbers)
    return bytes(data)


BAD = {
    "negative.nii": nifti(dim=(40, "<4h", (3, -20, 24, 16))),
    "huge.nii": nifti(dim=(40, "<4h", (3, 30000, 30000, 30000))),
    "huge.nii.gz": gzip.compress(nifti(dim=(40, "<4h", (3, 30000, 30000, 30000)))),
    "overflow.nii": nifti(dim=(40, "<8h", (7, *(32767,) * 7))),
    "axes.nii": nifti(dim=(40, "<4h", (99, 5, 4, 3))),
    "offset.nii": nifti(offset=(108, "<f", (4.0 * (1 << 30),))),
    "offset.nii.gz": gzip.compress(nifti(offset=(108, "<f", (4.0 * (1 << 30),)))),
    "offset_nan.nii": nifti(offset=(108, "<f", (float("nan"),))),
    "offset_in_header.nii": nifti(offset=(108, "<f", (100.0,))),
    "rgb.nii": nifti(type=(70, "<2h", (128, 24))),
    "bits.nii": nifti(type=(70, "<2h", (2, 64))),
    "short.nii": nifti()[:-1],
    "pair.nii": nifti(magic=(344, "<4s", (b"ni1\0",))),  # type: ignore[arg-type]
    "empty.nii": b"",
    "no_gzip.nii.gz": nifti(),
    "axes16.nrrd": nrrd(dimension=16, sizes=" ".join(["1"] * 16)) + bytes(60),
    "axes11.nrrd": nrrd(dimension=11, sizes="5 4 3 " + " ".join(["1"] * 8)) + bytes(60),
    "axes2.nrrd": nrrd(dimension=2, sizes="5 4") + bytes(60),
    "huge.nrrd": nrrd(sizes="100000 100000 100000", encoding="gzip") + gzip.compress(bytes(60)),
    "overflow.nrrd": nrrd(sizes="4294967296 4294967296 4294967296") + bytes(60),
    "long_number.nrrd": nrrd(sizes=f"{'9' * 4000} 4 3") + bytes(60),
    "lines.nrrd": nrrd(extra="".join(f"k{n}:=v\n" for n in range(100_000))) + bytes(60),
    "endless.nrrd": b"NRRD0005\n" + b"x" * (20 << 20),
    "absolute.nrrd": nrrd(extra="data file: /etc/passwd\n"),
    "above.nrrd": nrrd(extra="data file: ../secret.raw\n"),
    "list.nrrd": nrrd(extra="data file: LIST\na.raw\nb.raw\n"),
    "pattern.nrrd": nrrd(extra="data file: slice%03d.raw 1 3 1\n"),
    "device.nrrd": nrrd(extra="data file: /dev/zero\n"),
    "record.nrrd": nrrd(extra="data file: datastore_v2.json\n"),
    "itself.nhdr": nrrd(extra="data file: itself.nhdr\n"),
    "skip.nrrd": nrrd(extra="line skip: 1000000000\n") + bytes(60),
    "skip_bytes.nrrd": nrrd(extra="byte skip: 4000000000\n") + bytes(60),
    "nan.nrrd": nrrd(extra=GEOMETRY.replace("(1,0,0)", "(nan,0,0)")) + bytes(60),
    "minus.mha": meta(dims="-1", sizes="-1") + bytes(60),
    "minus_one.mha": meta(dims="-1") + bytes(60),
    "many.mha": meta(dims="1000000000") + bytes(60),
    "huge.mha": meta(sizes="100000 100000 100000", extra="CompressedData = True\n")
    + zlib.compress(bytes(60)),
    "channels.mha": meta(extra="ElementNumberOfChannels = 2000000000\n") + bytes(60),
    "absolute.mha": meta(data="/etc/passwd"),
    "above.mhd": meta(data="../secret.raw"),
    "list.mha": meta(data="LIST") + b"a.raw\nb.raw\n",
    "pattern.mhd": meta(data="slice%03d.raw 1 3 1"),
    "device.mhd": meta(data="/dev/zero"),
    "key.mhd": meta(data="id_rsa"),
    "packed_size.mha": meta(extra="CompressedData = True\nCompressedDataSize = 99999999\n") + b"x",
    "short.mha": meta() + bytes(59),
    "nothing.mha": b"\0" * 100,
    "image.png": b"\x89PNG",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_header_is_refused_at_once(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(BAD[name])
    (tmp_path / "datastore_v2.json").write_bytes(bytes(60))
    (tmp_path / "id_rsa").write_bytes(bytes(60))
    (tmp_path.parent / "secret.raw").write_bytes(bytes(60))
    start = time.perf_counter()
    with pytest.raises(VolumeError) as caught:
        check_header(path, LIMITS)
    # A second, with much to spare for a busy machine; most take a millisecond.
    assert time.perf_counter() - start < 2
    assert str(caught.value).endswith(".") and name in str(caught.value)


@pytest.mark.parametrize("name", ["huge.nii", "huge.nii.gz", "huge.nrrd", "huge.mha"])
def test_more_voxels_than_the_limit_are_too_large(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(BAD[name])
    with pytest.raises(TooLargeError):
        check_header(path, LIMITS)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd"])
def test_pipes_are_no_images(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"pipe{ending}"
    os.mkfifo(path)
    with pytest.raises(VolumeError, match="file or a folder"):
        check_header(path)


def test_a_pipe_beside_a_header_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "voxels.raw")
    (tmp_path / "a.mhd").write_bytes(meta(data="voxels.raw"))
    with pytest.raises(VolumeError, match="voxels"):
        check_header(tmp_path / "a.mhd")


@pytest.mark.parametrize("header", ["a.nhdr", "a.mhd"])
def test_voxels_beside_the_header_are_read(tmp_path: Path, header: str) -> None:
    (tmp_path / "voxels.raw").write_bytes(bytes(range(60)))
    content = (
        nrrd(extra=GEOMETRY + "data file: voxels.raw\n") if header == "a.nhdr" else meta(data="voxels.raw")
    )
    (tmp_path / header).write_bytes(content)
    found = read_volume(tmp_path / header).array
    assert np.array_equal(found.ravel(order="F"), np.arange(60))


@pytest.mark.parametrize("header", ["a.nhdr", "a.mhd"])
def test_an_uploads_header_names_no_other_file(tmp_path: Path, header: str) -> None:
    (tmp_path / "voxels.raw").write_bytes(bytes(60))
    content = nrrd(extra="data file: voxels.raw\n") if header == "a.nhdr" else meta(data="voxels.raw")
    (tmp_path / header).write_bytes(content)
    with pytest.raises(VolumeError, match="same file"):
        check_header(tmp_path / header, ReadLimits(siblings=False))


def test_a_link_beside_the_header_is_not_followed(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "studies", tmp_path / "elsewhere.raw"
    folder.mkdir()
    elsewhere.write_bytes(bytes(60))
    (folder / "voxels.raw").symlink_to(elsewhere)
    (folder / "a.mhd").write_bytes(meta(data="voxels.raw"))
    with pytest.raises(VolumeError, match="link"):
        check_header(folder / "a.mhd")


@pytest.mark.parametrize("kind", ["nii.gz", "nrrd", "mha"])
def test_a_stream_that_unpacks_to_more_than_its_header_says_is_refused(tmp_path: Path, kind: str) -> None:
    """1.6 MB that unpack to 1.6 GB, behind a header that says 60 bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | (0 if kind == "mha" else 16))
    head = {
        "nii.gz": nifti()[:-60],
        "nrrd": nrrd(GEOMETRY, encoding="gzip"),
        "mha": meta("CompressedData = True\n"),
    }
    zeros = bytes(1 << 24)
    path = tmp_path / f"bomb.{kind}"
    with path.open("wb") as stream:
        stream.write(packer.compress(head[kind]) if kind == "nii.gz" else head[kind])
        for _ in range(100):
            stream.write(packer.compress(zeros))
        stream.write(packer.flush())
    start = time.perf_counter()
    with pytest.raises(VolumeError, match="more than"):
        read_volume(path)
    assert time.perf_counter() - start < 2


def test_any_bytes_give_a_sentence_and_nothing_else(tmp_path: Path) -> None:
    """Headers with bytes flipped, cut and grown: read, or refused with a sentence."""
    rng = np.random.default_rng(0)
    whole = {
        "a.nii": nifti(),
        "a.nii.gz": gzip.compress(nifti()),
        "a.nrrd": nrrd(GEOMETRY) + bytes(60),
        "b.nrrd": nrrd(GEOMETRY, encoding="gzip") + gzip.compress(bytes(60)),
        "a.mha": meta() + bytes(60),
        "b.mha": meta("CompressedData = True\n") + zlib.compress(bytes(60)),
    }
    refused = 0
    for number in range(600):
        name = list(whole)[number % len(whole)]
        data = bytearray(whole[name])
        for _ in range(rng.integers(1, 6)):
            at = int(rng.integers(0, len(data)))
            change = rng.integers(0, 3)
            if change == 0:
                data[at] ^= 1 << int(rng.integers(0, 8))
            elif change == 1:
                del data[at : at + int(rng.integers(1, 40))]
            else:
                data[at:at] = rng.bytes(int(rng.integers(1, 40)))
            data = data or bytearray(b"\0")
        path = tmp_path / name
        path.write_bytes(bytes(data))
        try:
            read_volume(path, LIMITS)
        except UserError as error:
            assert str(error)
            refused += 1
    assert refused > 300

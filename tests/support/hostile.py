"""Files that were made to hurt: headers that name other files, lie about sizes, or unpack to far too much."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (12, 10, 8)
NRRD = (
    "NRRD0005\ntype: {type}\ndimension: {dimension}\nspace: left-posterior-superior\nsizes: {sizes}\n"
    "space directions: (1,0,0) (0,1,0) (0,0,1)\nkinds: domain domain domain\nendian: little\n"
    "encoding: {encoding}\nspace origin: (0,0,0)\n{more}\n"
)
META = (
    "ObjectType = Image\nNDims = {dimension}\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
    "CompressedData = {compressed}\n{more}TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\n"
    "ElementSpacing = 1 1 1\nDimSize = {sizes}\nElementType = {type}\nElementDataFile = {data}\n"
)


def an_array(dtype: str = "int16", shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Noise around a block in the middle."""
    array = np.random.default_rng(5).integers(0, 60, shape)
    array[tuple(slice(n // 3, 2 * n // 3) for n in shape)] += 60
    return array.astype(dtype)


def a_nifti(array: np.ndarray | None = None) -> bytes:
    return bytes(nib.Nifti1Image(an_array() if array is None else array, np.eye(4)).to_bytes())


def a_nrrd(
    data: bytes | None = None,
    type: str = "short",
    dimension: int = 3,
    sizes: str = "12 10 8",
    encoding: str = "raw",
    more: str = "",
) -> bytes:
    head = NRRD.format(type=type, dimension=dimension, sizes=sizes, encoding=encoding, more=more)
    return head.encode() + (an_array().tobytes("F") if data is None else data)


def a_mha(
    data: bytes | None = None,
    type: str = "MET_SHORT",
    dimension: int = 3,
    sizes: str = "12 10 8",
    compressed: bool = False,
    more: str = "",
    file: str = "LOCAL",
) -> bytes:
    head = META.format(
        type=type, dimension=dimension, sizes=sizes, compressed=compressed, more=more, data=file
    )
    return head.encode() + (an_array().tobytes("F") if data is None else data)


def with_field(data: bytes, offset: int, form: str, *values: float) -> bytes:
    """A NIfTI file in which some fields of the header hold other values."""
    changed = bytearray(data)
    struct.pack_into(form, changed, offset, *values)
    return bytes(changed)


def naming(secret: Path, fifo: Path) -> Iterator[tuple[str, str, bytes]]:
    """Name, ending and content of files whose headers name other files, devices, pipes, lists or patterns."""
    others = {
        "absolute": str(secret),
        "above": f"../{secret.name}",
        "above, after a dot": f"./../{secret.name}",
        "above, with backslashes": f"..\\{secret.name}",
        "the same folder twice": f"././{secret.name}",
        "a dot": "./",
        "far above": "../" * 12 + str(secret).lstrip("/"),
        "pipe": str(fifo),
        "device": "/dev/zero",
        "process": "/proc/self/environ",
        "pattern": f"{secret.parent}/%s.txt 1 1 1",
        "list": f"LIST\n{secret}",
        "list of three": f"LIST 3\n{secret}\n{secret}\n{secret}",
        "empty": "",
        "quoted": f'"{secret}"',
        "address": f"file://{secret}",
    }
    for name, other in others.items():
        for key in ("data file", "datafile", "Data File"):
            yield f"nrrd {key} {name}", ".nrrd", a_nrrd(b"", more=f"{key}: {other}\n")
        yield f"nhdr {name}", ".nhdr", a_nrrd(b"", more=f"data file: {other}\n")
        yield f"mha {name}", ".mha", a_mha(b"", file=other)
        yield f"mhd {name}", ".mhd", a_mha(b"", file=other)
        twice = f"ElementDataFile = {other}\n"
        yield f"mha {name}, and then local", ".mha", a_mha(more=twice)
        colon = a_mha(b"", file=other).replace(b"ElementDataFile = ", b"ElementDataFile: ")
        yield f"mha {name} after a colon", ".mha", colon
    pair = bytearray(a_nifti())
    pair[344:348] = b"ni1\0"
    yield "half of a pair", ".nii", bytes(pair)


def lying() -> Iterator[tuple[str, str, bytes]]:
    """Files whose headers claim what cannot be."""
    for axes in (*range(11, 17), 100):
        yield f"nrrd of {axes} axes", ".nrrd", a_nrrd(dimension=axes, sizes=" ".join(["2"] * axes))
    for axes in (-1, 0, 1, 11, 1 << 31):
        yield f"mha of {axes} axes", ".mha", a_mha(dimension=axes)
    for sizes in (
        *("-12 10 8", "0 10 8", "4294967297 4294967297 4294967297", "2147483648 2147483648 4"),
        *("9223372036854775807 2 2", "1e9 1e9 1e9", "12 10", "30000 30000 30000", "99999 99999 99999"),
    ):
        yield f"nrrd of {sizes}", ".nrrd", a_nrrd(sizes=sizes)
        yield f"mha of {sizes}", ".mha", a_mha(sizes=sizes)
    lines = "".join(f"key{n}:=value\n" for n in range(100_000))
    yield "nrrd of 100,000 lines", ".nrrd", a_nrrd(more=lines)
    yield "mha of 100,000 lines", ".mha", a_mha(more=lines.replace(":=", " = "))
    yield "nrrd without an end", ".nrrd", b"NRRD0005\n" + b"# x\n" * 200_000
    yield "mha without an end", ".mha", b"ObjectType = Image\n" + b"Comment = x\n" * 200_000
    whole = a_nifti()
    for name, dims in {
        "negative": (3, -12, 10, 8),
        "empty": (3, 12, 0, 8),
        "huge": (3, 32767, 32767, 32767),
        "of 7 huge axes": (7, 32767, 32767, 32767, 32767, 32767, 32767, 32767),
        "of -1 axes": (-1, 12, 10, 8),
        "of 99 axes": (99, 12, 10, 8),
    }.items():
        for ending in (".nii", ".nii.gz"):
            data = with_field(whole, 40, f"<{len(dims)}h", *dims)
            yield f"nifti {name} {ending}", ending, data if ending == ".nii" else gzip.compress(data)
    for offset in (4e9, -1e9, 1e30, float("nan"), float("inf")):
        yield f"nifti with voxels at {offset}", ".nii", with_field(whole, 108, "<f", offset)
        data = gzip.compress(with_field(whole, 108, "<f", offset))
        yield f"nifti with voxels at {offset} .gz", ".nii.gz", data
    extended = bytearray(whole[:348] + b"\1\0\0\0" + struct.pack("<ii", 0x7FFFFFF0, 4) + whole[352:])
    yield "nifti with an endless extension", ".nii", with_field(bytes(extended), 108, "<f", 368.0)
    yield "nifti of an unknown type", ".nii", with_field(whole, 70, "<hh", 1234, 16)
    yield "nifti with a header of 2 GB", ".nii", with_field(whole, 0, "<i", 0x7FFFFFFF)
    yield "a truncated nifti", ".nii", whole[:700]
    yield "a truncated nrrd", ".nrrd", a_nrrd()[:-100]
    yield "a truncated mha", ".mha", a_mha()[:-100]
    for ending in (".nii", ".nii.gz", ".nrrd", ".mha", ".nhdr", ".mhd"):
        yield f"nothing {ending}", ending, b""
        yield f"text {ending}", ending, b"<html>not an image</html>\n" * 40


def bombs() -> Iterator[tuple[str, str, bytes]]:
    """Small files that unpack to far more than an image may take, or than their headers say."""
    for gigabytes in (1.7, 50):
        side = int((gigabytes * 1e9) ** (1 / 3)) + 1
        zeros = _zeros(int(1.7e9), gzip_header=True)
        head = a_nifti(np.zeros((2, 2, 2), np.uint8))[:352]
        head = with_field(head, 40, "<4h", 3, side, side, side)
        sizes = f"{side} {side} {side}"
        yield (
            f"nifti that unpacks to {gigabytes} GB",
            ".nii.gz",
            gzip.compress(head) + _zeros(int(1.7e9), gzip_header=True),
        )
        yield (
            f"nrrd that unpacks to {gigabytes} GB",
            ".nrrd",
            a_nrrd(zeros, "uchar", sizes=sizes, encoding="gzip"),
        )
        yield (
            f"mha that unpacks to {gigabytes} GB",
            ".mha",
            a_mha(_zeros(int(1.7e9), gzip_header=False), "MET_UCHAR", sizes=sizes, compressed=True),
        )
    small = gzip.compress(a_nifti()) + _zeros(int(1.7e9), gzip_header=True)
    yield "nifti that goes on for 1.7 GB", ".nii.gz", small
    yield "nrrd that goes on for 1.7 GB", ".nrrd", a_nrrd(_zeros(int(1.7e9), True), encoding="gzip")
    yield "mha that goes on for 1.7 GB", ".mha", a_mha(_zeros(int(1.7e9), False), compressed=True)


_made: dict[tuple[int, bool], bytes] = {}


def _zeros(count: int, gzip_header: bool) -> bytes:
    """So many zeros, packed: some thousandth of them."""
    if (count, gzip_header) not in _made:
        packer = zlib.compressobj(9, zlib.DEFLATED, 31 if gzip_header else 15)
        out = io.BytesIO()
        block = bytes(1 << 24)
        for start in range(0, count, len(block)):
            out.write(packer.compress(block[: count - start]))
        out.write(packer.flush())
        _made[count, gzip_header] = out.getvalue()
    return _made[count, gzip_header]

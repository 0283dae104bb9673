"""The header of a NIfTI file (NIfTI-1 and NIfTI-2, one file, plain or gzip)."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import numpy as np

from ..errors import VolumeError
from .facts import (
    HeaderFacts,
    ReadLimits,
    VoxelBlock,
    checked_block,
    checked_bytes,
    checked_shape,
    open_regular,
)

SIZES = {348: 1, 540: 2}
"""Length of a header, which tells its version."""
_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
_NOT_REAL = {
    1: "bits",
    32: "complex64",
    128: "RGB",
    1536: "128-bit float",
    1792: "complex128",
    2048: "complex",
    2304: "RGBA",
}
_FIRST_BYTES = 1 << 16
_NO_SLOPE_FOR_ITK = float(np.finfo(np.float64).eps)


def nifti_facts(path: Path, limits: ReadLimits) -> HeaderFacts:
    """Read a NIfTI header.

    Raises:
        VolumeError: it is damaged, or is of a kind that holds no real numbers.
        TooLargeError: the voxels would take more memory than the limit.
        OSError: the file cannot be read.
    """
    name = path.name
    packed = name.lower().endswith(".gz")
    with open_regular(path) as stream:
        start = stream.read(_FIRST_BYTES)
    if packed:
        start = _unpacked_start(start, name)
    header, order = _header(start, name)
    version = SIZES[struct.unpack_from(order + "i", header)[0]]
    dims: tuple[int, ...]
    if version == 1:
        dims = struct.unpack_from(order + "8h", header, 40)
        code, bits = struct.unpack_from(order + "2h", header, 70)
        offset, slope, intercept = struct.unpack_from(order + "3f", header, 108)
    else:
        code, bits = struct.unpack_from(order + "2h", header, 12)
        dims = struct.unpack_from(order + "8q", header, 16)
        offset = float(struct.unpack_from(order + "q", header, 168)[0])
        slope, intercept = struct.unpack_from(order + "2d", header, 176)
    if code not in _TYPES:
        found = _NOT_REAL.get(code, f"the unknown type {code}")
        raise VolumeError(f"An image must have one real number in each voxel, but {name} has {found}.")
    dtype = np.dtype(order + _TYPES[code])
    if bits != dtype.itemsize * 8:
        raise VolumeError(
            f"The header of {name} is damaged: its type has {dtype.itemsize * 8} bits, it says {bits}."
        )
    shape, channel_axis = _axes(name, dims)
    nbytes = checked_bytes(name, shape, dtype.itemsize, limits)
    skip, before = _offset(offset, len(header), name, limits)
    block = VoxelBlock(path, 0, "gzip", skip, nbytes) if packed else VoxelBlock(path, skip, "raw", 0, nbytes)
    slope, intercept, notes = _scale(slope, intercept, name)
    return HeaderFacts(
        name,
        "nifti",
        shape,
        channel_axis,
        dtype,
        checked_block(name, block),
        slope,
        intercept,
        header=header,
        notes=(*before, *notes),
    )


def _unpacked_start(packed: bytes, name: str) -> bytes:
    if packed[:2] != b"\x1f\x8b":
        raise VolumeError(f"An image must be a readable NIfTI file, but {name} is not packed with gzip.")
    try:
        # The checksum at the end is looked at when the voxels are read.
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(packed, _FIRST_BYTES)
    except zlib.error as error:
        raise VolumeError(
            f"An image must be a readable NIfTI file, but {name} is damaged: {error}."
        ) from error


def _header(start: bytes, name: str) -> tuple[bytes, str]:
    """The header and its byte order."""
    for order in "<>":
        size = struct.unpack_from(order + "i", start)[0] if len(start) >= 4 else 0
        if size in SIZES and len(start) >= size:
            magic = start[344:348] if size == 348 else start[4:8]
            if magic[:3] in (b"n+1", b"n+2"):
                return start[:size], order
            if magic[:3] in (b"ni1", b"ni2"):
                raise VolumeError(
                    f"The voxels of a NIfTI must lie in the same file, but {name} is a header alone."
                )
    raise VolumeError(f"An image must be a readable NIfTI file, but {name} could not be read as one.")


def _axes(name: str, dims: tuple[int, ...]) -> tuple[tuple[int, ...], int | None]:
    count = dims[0]
    if not 1 <= count <= 7:
        raise VolumeError(f"A NIfTI file has 1 to 7 axes, but the header of {name} says {count}.")
    shape = list(checked_shape(name, list(dims[1 : count + 1])))
    further = [n for n in shape[3:] if n != 1]
    if len(further) > 1:
        raise VolumeError(
            f"An image must have three axes, but {name} has {len(shape)}, of lengths {tuple(shape)}."
        )
    if further:
        return (*shape[:3], further[0]), 3
    return tuple(shape[:3]), None


def _offset(offset: float, header: int, name: str, limits: ReadLimits) -> tuple[int, tuple[str, ...]]:
    """Where the voxels start, and notes."""
    least = header + 4
    if offset == 0:
        note = (
            f"The header of {name} does not say where its voxels start (vox_offset 0): they were read from "
            f"byte {least} on, right behind it, where ITK and nibabel take the header for voxels."
        )
        return least, (note,)
    if not (math.isfinite(offset) and least <= offset <= least + limits.header_bytes):
        raise VolumeError(
            f"The voxels of {name} should start behind its header, at byte {least} or a little later, "
            f"but the header says {offset:.6g}."
        )
    return int(offset), ()


def _scale(slope: float, intercept: float, name: str) -> tuple[float, float, tuple[str, ...]]:
    """As the standard and nibabel have it: a slope of 0 means none, and then the intercept does not count."""
    if slope == 0 and math.isfinite(intercept) and intercept:
        note = (
            f"The header of {name} has an intercept ({intercept:g}) without a slope: it was passed over, as "
            "the standard and nibabel have it, while ITK (3D Slicer) adds it."
        )
        return 1.0, 0.0, (note,)
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0, ()
    if not math.isfinite(intercept):
        raise VolumeError(f"The intercept of {name} must be a finite number, but it is {intercept}.")
    if abs(slope) <= _NO_SLOPE_FOR_ITK:
        small = (
            f"The slope of {name} is so small ({slope:g}) that ITK (3D Slicer) passes over it: it was heeded "
            "here, as nibabel does."
        )
        return float(slope), float(intercept), (small,)
    return float(slope), float(intercept), ()

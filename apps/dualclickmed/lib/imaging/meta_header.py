"""The header of a MetaImage, with the voxels in it (.mha) or beside it (.mhd).

Places are computed as ITK's reader does: the rows of the matrix are the directions of the axes in LPS.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import VolumeError
from .facts import (
    HeaderFacts,
    ReadLimits,
    VoxelBlock,
    checked_block,
    checked_bytes,
    checked_shape,
    open_regular,
    real,
    sibling,
    text_lines,
    unit_notes,
    whole,
)
from .placing import RAS_FROM_LPS

_TYPES = {
    **{"MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2"},
    **{"MET_INT": "i4", "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4"},
    **{"MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4", "MET_DOUBLE": "f8"},
}
_SPACINGS = ("elementspacing", "elementsize")
_MATRICES = ("transformmatrix", "rotation", "orientation")
_ORIGINS = ("offset", "position", "origin")
_LAST = "elementdatafile"
_IN_FILE = "local"
_ORDERS = ("elementbyteordermsb", "binarydatabyteordermsb")


def meta_facts(path: Path, limits: ReadLimits) -> HeaderFacts:
    """Read the header of a MetaImage.

    Raises:
        VolumeError: it is damaged, holds no real numbers, or names a file that lies elsewhere.
        TooLargeError: the voxels would take more memory than the limit.
        OSError: the file cannot be read.
    """
    name = path.name
    with open_regular(path) as stream:
        lines, length = text_lines(stream, name, limits, _LAST)
    fields = _parsed(lines, name)
    for required in ("ndims", "dimsize", "elementtype", _LAST):
        if required not in fields:
            raise VolumeError(f"A MetaImage's header has a field {required!r}, but that of {name} has none.")
    count = whole(fields["ndims"], name, "NDims")
    sizes = [whole(text, name, "Each size") for text in fields["dimsize"].split()]
    if len(sizes) != count or not 1 <= count <= 5:
        raise VolumeError(f"{name} has {count} axes by its NDims, but {len(sizes)} sizes.")
    shape = checked_shape(name, sizes)
    if any(n != 1 for n in shape[3:]):
        raise VolumeError(f"An image must have three axes, but {name} has {count}, of lengths {shape}.")
    shape = shape[:3]
    kind = fields["elementtype"].upper().removesuffix("_ARRAY")
    if kind not in _TYPES:
        raise VolumeError(f"An image must have one real number in each voxel, but {name} has {kind[:60]!r}.")
    channels = whole(fields.get("elementnumberofchannels", "1"), name, "The number of channels")
    if not 1 <= channels <= 1 << 12:
        raise VolumeError(f"{name} must have one channel, but it has {channels}.")
    orders = {_true(fields[key]) for key in _ORDERS if key in fields} or {False}
    if len(orders) > 1:
        raise VolumeError(f"The header of {name} names two byte orders ({' and '.join(_ORDERS)}).")
    dtype = np.dtype((">" if orders.pop() else "<") + _TYPES[kind])
    whole_shape = shape if channels == 1 else (channels, *shape)
    nbytes = checked_bytes(name, whole_shape, dtype.itemsize, limits)
    return HeaderFacts(
        name,
        "metaimage",
        whole_shape,
        None if channels == 1 else 0,
        dtype,
        checked_block(name, _block(path, fields, length, nbytes, limits)),
        fields=fields,
        affine=_affine(fields, count, name),
        notes=_notes(fields, name),
    )


def _parsed(lines: list[str], name: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines:
        key, separator, value = line.partition("=")
        if not separator and line.strip():
            raise VolumeError(f"An image must be a readable MetaImage, but {name} could not be read as one.")
        fields[key.strip().lower()] = value.strip()
    return fields


def _true(text: str) -> bool:
    return text.strip().lower() in ("true", "1", "t", "yes")


def _block(path: Path, fields: dict[str, str], length: int, nbytes: int, limits: ReadLimits) -> VoxelBlock:
    name, named = path.name, fields[_LAST]
    file, offset = path, length
    if named.lower() != _IN_FILE:
        # A list or a pattern of files is no plain name of a file.
        file, offset = sibling(path, named, limits), 0
    if not _true(fields.get("binarydata", "True")):
        return VoxelBlock(file, offset, "text", 0, nbytes)
    before = whole(fields.get("headersize", "0"), name, "HeaderSize")
    packed = _true(fields.get("compresseddata", "False"))
    if before == -1 and not packed:
        return VoxelBlock(file, max(file.stat().st_size - nbytes, 0), "raw", 0, nbytes)
    if before and (file == path or not 0 < before <= limits.header_bytes):
        raise VolumeError(
            f"HeaderSize of {name} must be 0 or -1 where the voxels lie in it, but it is {before}."
        )
    if not packed:
        return VoxelBlock(file, offset + before, "raw", 0, nbytes)
    size = fields.get("compresseddatasize")
    length_packed = None if size is None else whole(size, name, "CompressedDataSize")
    if length_packed is not None and length_packed <= 0:
        raise VolumeError(f"CompressedDataSize of {name} must be positive, but it is {length_packed}.")
    return VoxelBlock(file, offset + before, "zlib", 0, nbytes, length_packed)


def _affine(fields: dict[str, str], count: int, name: str) -> npt.NDArray[np.float64]:
    matrix = np.array(_agreed(fields, _MATRICES, count * count, name) or np.eye(count).ravel())
    step = _numbers(fields, _SPACINGS, count, name) or [1.0] * count
    origin = _agreed(fields, _ORIGINS, count, name) or [0.0] * count
    lps = np.eye(4)
    lps[:3, :3] = matrix.reshape(count, count)[:3, :3].T * np.asarray(step[:3])
    lps[:3, 3] = origin[:3]
    return RAS_FROM_LPS @ lps


def _agreed(fields: dict[str, str], keys: tuple[str, ...], count: int, name: str) -> list[float]:
    """The numbers that a header tells under one or several names.

    Raises:
        VolumeError: they differ, and programs take one or the other.
    """
    told = [_numbers(fields, (key,), count, name) for key in keys if key in fields]
    if any(numbers != told[0] for numbers in told):
        raise VolumeError(f"The header of {name} tells its place twice ({' and '.join(keys)}), differently.")
    return told[0] if told else []


def _numbers(fields: dict[str, str], keys: tuple[str, ...], count: int, name: str) -> list[float]:
    text = next((fields[key] for key in keys if key in fields), "")
    numbers = [real(part, name, "Each number of its place") for part in text.split()]
    if numbers and len(numbers) != count:
        raise VolumeError(f"{keys[0]} of {name} must have {count} numbers, but it has {len(numbers)}.")
    return numbers


def _notes(fields: dict[str, str], name: str) -> tuple[str, ...]:
    notes = []
    if not any(fields.get(key) for key in _SPACINGS):
        notes.append(
            f"The header of {name} does not tell the distance of its voxels: 1 mm was taken, as ITK does."
        )
    notes += unit_notes([fields.get("distanceunits", "mm")], name)
    slope = fields.get("elementtointensityfunctionslope", "1")
    offset = fields.get("elementtointensityfunctionoffset", "0")
    if (real(slope, name, "The slope"), real(offset, name, "The offset")) != (1.0, 0.0):
        notes.append(f"The header of {name} asks for other intensities, which was passed over, as ITK does.")
    return tuple(notes)

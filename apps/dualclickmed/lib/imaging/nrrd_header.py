"""The header of a NRRD file, with the voxels in it (.nrrd) or beside it (.nhdr).

Places are computed as ITK's reader does, which 3D Slicer and MITK use: a space in RAS or LAS is turned to
LPS; other spaces, and files without one, are taken for LPS.
"""

from __future__ import annotations

import re
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
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(
        (
            "longlong",
            "long long",
            "long long int",
            "signed long long",
            "signed long long int",
            "int64",
            "int64_t",
        ),
        "i8",
    ),
    **dict.fromkeys(
        ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"
    ),
    "float": "f4",
    "double": "f8",
}
_ENCODINGS = {
    "raw": "raw",
    **dict.fromkeys(("gzip", "gz"), "gzip"),
    **dict.fromkeys(("bzip2", "bz2"), "bzip2"),
    **dict.fromkeys(("ascii", "text", "txt"), "text"),
    "hex": "hex",
}
_SPACES = {
    **dict.fromkeys(("left-posterior-superior", "lps"), (1.0, 1.0)),
    **dict.fromkeys(("right-anterior-superior", "ras"), (-1.0, -1.0)),
    **dict.fromkeys(("left-anterior-superior", "las"), (1.0, -1.0)),
    **dict.fromkeys(("scanner-xyz", "3d-right-handed", "3d-left-handed"), (1.0, 1.0)),
}
"""For each space: the signs of its first two axes in LPS."""
_SPELLINGS = {
    "datafile": "data file",
    "lineskip": "line skip",
    "byteskip": "byte skip",
    "centerings": "centers",
}
_UNKNOWN = "The header of {name} does not tell the distance of its voxels: 1 mm was taken, as ITK does."
_SPATIAL = ("domain", "space")
_VECTOR = re.compile(r"none|\([^()]*\)")
_QUOTED = re.compile(r'"([^"]*)"')
_MAX_AXES = 5


def nrrd_facts(path: Path, limits: ReadLimits) -> HeaderFacts:
    """Read a NRRD header.

    Raises:
        VolumeError: it is damaged, is of a kind that holds no real numbers, or names a file that lies
            elsewhere.
        TooLargeError: the voxels would take more memory than the limit.
        OSError: the file cannot be read.
    """
    name = path.name
    with open_regular(path) as stream:
        lines, length = text_lines(stream, name, limits, "")
    if not lines or not re.fullmatch(r"NRRD000[1-5]", lines[0]):
        raise VolumeError(f"An image must be a readable NRRD file, but {name} could not be read as one.")
    fields, pairs = _parsed(lines[1:], name)
    for required in ("type", "dimension", "sizes", "encoding"):
        if required not in fields:
            raise VolumeError(f"A NRRD header has a field {required!r}, but that of {name} has none.")
    kind = fields["type"].lower()
    if kind not in _TYPES:
        raise VolumeError(f"An image must have one real number in each voxel, but {name} has {kind[:60]!r}.")
    count = whole(fields["dimension"], name, "The dimension")
    if not 1 <= count <= _MAX_AXES:
        raise VolumeError(f"An image must have three axes, but {name} has {count}.")
    shape, channel_axis = _axes(fields, count, name)
    dtype = np.dtype(_TYPES[kind])
    if dtype.itemsize > 1:
        order = fields.get(
            "endian", "little" if fields["encoding"] in ("text", "ascii", "txt") else ""
        ).lower()
        if order not in ("little", "big"):
            raise VolumeError(f"The endian of {name} must be little or big, but it is {order[:60]!r}.")
        dtype = dtype.newbyteorder("<" if order == "little" else ">")
    nbytes = checked_bytes(name, shape, dtype.itemsize, limits)
    affine, notes = _affine(fields, shape, channel_axis, count, name)
    return HeaderFacts(
        name,
        "nrrd",
        shape,
        channel_axis,
        dtype,
        checked_block(name, _block(path, fields, length, nbytes, limits)),
        fields=pairs,
        affine=affine,
        notes=(*notes, *unit_notes(_units(fields, channel_axis), name)),
    )


def _parsed(lines: list[str], name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Fields, in lower case, and key/value pairs."""
    fields: dict[str, str] = {}
    pairs: dict[str, str] = {}
    for line in lines:
        if line.startswith("#") or not line.strip():
            continue
        key, separator, value = line.partition(":")
        if value.startswith("="):
            # Backslash and line break are escaped in a pair.
            pairs[key] = re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], value[1:])
        elif separator:
            key = key.strip().lower()
            key = _SPELLINGS.get(key, key)
            if key in fields:
                raise VolumeError(f"A NRRD header has each field once, but {name} has {key[:60]!r} twice.")
            fields[key] = value.strip()
        else:
            raise VolumeError(f"The header of {name} is damaged: {line[:60]!r} is no field of a NRRD file.")
    return fields, pairs


def _axes(fields: dict[str, str], count: int, name: str) -> tuple[tuple[int, ...], int | None]:
    """The axes, and which of them is none of space."""
    sizes = [whole(text, name, "Each size") for text in fields["sizes"].split()]
    if len(sizes) != count:
        raise VolumeError(f"{name} has {count} axes by its dimension, but {len(sizes)} sizes.")
    shape = checked_shape(name, sizes)
    if count == 3:
        return shape, None
    vectors = _VECTOR.findall(fields.get("space directions", "").lower())
    kinds = fields.get("kinds", "").lower().split()
    if vectors:
        other = [axis for axis, vector in enumerate(vectors) if vector == "none"]
    elif any(kind in _SPATIAL for kind in kinds):
        other = [axis for axis, kind in enumerate(kinds) if kind not in _SPATIAL]
    else:
        other = []
    if not other and all(n == 1 for n in shape[3:]):
        return shape[:3], None
    if count != 4 or len(other) > 1 or any(axis >= count for axis in other):
        raise VolumeError(f"An image must have three axes, but {name} has {count}, of lengths {shape}.")
    axis = other[0] if other else 3
    if shape[axis] == 1:
        return tuple(n for at, n in enumerate(shape) if at != axis), None
    return shape, axis


def _block(path: Path, fields: dict[str, str], length: int, nbytes: int, limits: ReadLimits) -> VoxelBlock:
    name = path.name
    encoding = _ENCODINGS.get(fields["encoding"].lower())
    if encoding is None:
        known = ", ".join(sorted(set(_ENCODINGS.values())))
        raise VolumeError(
            f"Voxels of a NRRD file are encoded as {known}, but those of {name} as "
            f"{fields['encoding'][:60]!r}."
        )
    file, offset = path, length
    if "data file" in fields:
        file, offset = sibling(path, fields["data file"], limits), 0
    if whole(fields.get("line skip", "0"), name, "The line skip") != 0:
        raise VolumeError(f"Voxels of {name} must start right behind its header: 'line skip' must be 0.")
    skip = whole(fields.get("byte skip", "0"), name, "The byte skip")
    if skip == -1 and encoding == "raw":
        return VoxelBlock(file, max(file.stat().st_size - nbytes, 0), encoding, 0, nbytes)
    if not 0 <= skip <= limits.header_bytes or (skip and encoding not in ("raw", "gzip", "bzip2")):
        raise VolumeError(f"The byte skip of {name} must be 0 to {limits.header_bytes}, but it is {skip}.")
    if encoding == "raw":
        return VoxelBlock(file, offset + skip, encoding, 0, nbytes)
    return VoxelBlock(file, offset, encoding, skip, nbytes)


def _affine(
    fields: dict[str, str], shape: tuple[int, ...], channel_axis: int | None, count: int, name: str
) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    """Raw indices to RAS millimetres, and notes."""
    space = fields.get("space", "").lower()
    if space and space not in _SPACES:
        raise VolumeError(
            f"The space of {name} must be one of {', '.join(_SPACES)}, but it is {space[:60]!r}."
        )
    if not space and fields.get("space dimension", "3").strip() != "3":
        raise VolumeError(f"An image must have three axes, but {name} has {count}, of lengths {shape}.")
    if not space and "space dimension" not in fields:
        axes = [axis for axis in range(count) if axis != channel_axis][:3]
        lps, notes = _without_space(fields, axes, count, name)
        return RAS_FROM_LPS @ lps, notes
    if "spacings" in fields:
        raise VolumeError(f"{name} has a space, so its spacing must come as 'space directions'.")
    lps, notes = np.eye(4), ()
    if "space directions" in fields:
        lps[:3, :3] = np.array(_directions(fields["space directions"], count, name)).T
    else:
        notes = (_UNKNOWN.format(name=name),)
    if "space origin" in fields:
        lps[:3, 3] = _vector(fields["space origin"], name)
    lps[:2] *= np.asarray(_SPACES.get(space, (1.0, 1.0)))[:, None]
    return RAS_FROM_LPS @ lps, notes


def _units(fields: dict[str, str], channel_axis: int | None) -> list[str]:
    """The units in the header: those of the space or, without them, those of each spatial axis."""
    if "space units" in fields:
        return _QUOTED.findall(fields["space units"])
    units = _QUOTED.findall(fields.get("units", ""))
    return [unit for axis, unit in enumerate(units) if axis != channel_axis]


def _without_space(
    fields: dict[str, str], axes: list[int], count: int, name: str
) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    """The affine of a file that names no space, from its 'spacings' and 'axis mins', and notes.

    The 'axis mins' are used only if each axis has one and a spacing: otherwise ITK places the image at 0.
    """
    steps = [_listed(fields, "spacings", axis, count, name) for axis in axes]
    lows = [_listed(fields, "axis mins", axis, count, name) for axis in axes]
    nodes = [fields.get("centers", "").split()[axis : axis + 1] == ["node"] for axis in axes]
    unknown = any(step is None for step in steps)
    if unknown and "axis maxs" in fields:
        raise VolumeError(f"{name} must tell the distance of its voxels: it has no 'spacings'.")
    lps = np.diag([*(1.0 if step is None else step for step in steps), 1.0])
    begins = [low for low in lows if low is not None]
    if len(begins) == len(axes) and not unknown:
        # The first voxel's centre lies half a step from the border, but for samples on the border itself.
        lps[:3, 3] = np.asarray(begins) + np.where(nodes, 0.0, np.diag(lps)[:3] / 2)
        return lps, ()
    notes = [_UNKNOWN.format(name=name)] if unknown else []
    if begins:
        notes.append(f"Where the axes of {name} begin ('axis mins') was passed over, as ITK does.")
    return lps, tuple(notes)


def _directions(text: str, count: int, name: str) -> list[list[float]]:
    vectors = [part for part in _VECTOR.findall(text.lower()) if part != "none"]
    if len(vectors) not in (3, count) or len(vectors) < 3:
        raise VolumeError(f"{name} must have three space directions, but it has {len(vectors)}.")
    return [_vector(vector, name) for vector in vectors[:3]]


def _vector(text: str, name: str) -> list[float]:
    parts = text.strip().strip("()").split(",")
    if len(parts) != 3:
        raise VolumeError(f"A vector in space has three numbers, but {name} has {text.strip()[:60]!r}.")
    return [real(part, name, "Each number of a space direction") for part in parts]


def _listed(fields: dict[str, str], key: str, axis: int, count: int, name: str) -> float | None:
    """An axis's entry of a list; None where there is none."""
    parts = fields.get(key, "").split()
    if not parts:
        return None
    if len(parts) != count:
        raise VolumeError(f"{name} has {count} axes, but {len(parts)} {key}.")
    if parts[axis].lower() == "nan":
        return None
    return real(parts[axis], name, f"Each of the {key}")

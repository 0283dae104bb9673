"""The facts of an image file's header, and the limits within which a file is read.

The look at a header (`headers.check_header`) uses nothing but this project's own Python: no parsing library
sees a file before this check has passed. It opens regular files alone, reads a bounded part of them, and
determines where the voxels lie and how many bytes they take before anything of that size is allocated.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import TooLargeError, VolumeError

DATA_ENDINGS = (
    ".raw",
    ".zraw",
    ".img",
    ".bin",
    ".dat",
    ".raw.gz",
    ".raw.bz2",
    ".gz",
    ".bz2",
    ".hex",
    ".ascii",
)
"""Endings of the files that a header may name for its voxels; no other file is read as voxels."""
MAX_SIDE = 1 << 20
"""Longest axis, in voxels."""
_PLAIN_NAME = re.compile(r"[^/\\%\x00-\x1f]{1,200}")
_NAMED = 5
_MILLIMETRES = ("", "mm", "millimeter", "millimeters", "millimetre", "millimetres", "?", "none")
_DEFLATE_RATIO = 1100
"""No deflate stream unpacks to more than 1,032 times its size."""
_BZIP2_RATIO = 200_000


@dataclass(frozen=True)
class ReadLimits:
    """How much reading one file may take.

    Attributes:
        image_bytes: memory of the voxels as the file stores them (``--conf image_gb``).
        header_bytes: length of a header.
        header_lines: lines of a header that is text.
        files: files of one DICOM folder.
        siblings: whether a header may name a file beside it for its voxels; not for single uploads, whose
            folder holds files of others.
    """

    image_bytes: int = 4 << 30
    header_bytes: int = 8 << 20
    header_lines: int = 20_000
    files: int = 20_000
    siblings: bool = True


_default = ReadLimits()


def default_limits() -> ReadLimits:
    """The limits that hold in this process unless others are given."""
    return _default


def limit_to(limits: ReadLimits) -> None:
    """Let `default_limits` be these from now on."""
    global _default
    _default = limits


@dataclass(frozen=True)
class VoxelBlock:
    """Where a file's voxels are.

    Attributes:
        file: holds them; the header itself or a file beside it.
        offset: bytes of `file` before the block.
        encoding: "raw", "gzip", "zlib", "bzip2", "text" or "hex".
        skip: bytes before the voxels once the block is unpacked.
        nbytes: of the voxels once they are unpacked.
        packed: length of the packed block where the header tells it.
    """

    file: Path
    offset: int
    encoding: str
    skip: int
    nbytes: int
    packed: int | None = None


@dataclass(frozen=True)
class HeaderFacts:
    """What a header states.

    Attributes:
        name: of the file, for messages.
        format: "nifti", "nrrd" or "metaimage".
        shape: extent of every axis, the one that varies fastest first.
        channel_axis: the axis that is none of space; None without one.
        dtype: of the stored numbers, byte order included.
        block: where they are.
        slope, intercept: ``real = stored * slope + intercept``.
        fields: further entries of a text header: Slicer's segments, for example.
        header: a NIfTI header's bytes.
        affine: (4, 4), raw indices to RAS millimetres, of the formats that have one reading; None for NIfTI.
        notes: sentences about what had to be decided.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    channel_axis: int | None
    dtype: np.dtype[Any]
    block: VoxelBlock
    slope: float = 1.0
    intercept: float = 0.0
    fields: Mapping[str, str] = field(default_factory=dict)
    header: bytes = b""
    affine: npt.NDArray[np.float64] | None = None
    notes: tuple[str, ...] = ()

    @property
    def space(self) -> tuple[int, int, int]:
        """Extent along the raw axes (i, j, k)."""
        i, j, k = (n for axis, n in enumerate(self.shape) if axis != self.channel_axis)
        return i, j, k

    @property
    def channels(self) -> int:
        """Numbers in each voxel."""
        return 1 if self.channel_axis is None else self.shape[self.channel_axis]


def open_regular(path: Path) -> BinaryIO:
    """A file opened for reading, known to be one: pipes and devices block, or never end.

    Raises:
        VolumeError: it is none.
        OSError: it cannot be opened.
    """
    # Without O_NONBLOCK the opening of a pipe alone would wait for ever.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise VolumeError(f"An image must be a file or a folder, but {path.name} is neither.")
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def checked_shape(name: str, numbers: list[int]) -> tuple[int, ...]:
    """The axes of an image that a header lists.

    Raises:
        VolumeError: there are fewer than three, or one is empty.
        TooLargeError: one is longer than `MAX_SIDE`.
    """
    if len(numbers) < 3:
        raise VolumeError(
            f"An image must have three axes, but {name} has {len(numbers)}, of lengths {tuple(numbers)}."
        )
    if min(numbers) < 1:
        raise VolumeError(
            f"An image's axes must hold voxels, but those of {name} have the lengths {numbers}."
        )
    if max(numbers) > MAX_SIDE:
        raise TooLargeError(
            f"An axis has at most {MAX_SIDE} voxels, but the longest of {name} has {max(numbers)}."
        )
    return tuple(numbers)


def checked_bytes(name: str, shape: tuple[int, ...], itemsize: int, limits: ReadLimits) -> int:
    """Bytes of the voxels.

    Raises:
        TooLargeError: they are more than the limit.
    """
    nbytes = math.prod(shape) * itemsize
    if nbytes > limits.image_bytes:
        raise TooLargeError(
            f"An image may take {_gib(limits.image_bytes)} of memory, but {name} says that it has {shape} "
            f"voxels of {itemsize} bytes, which take {_gib(nbytes)}."
        )
    return nbytes


def checked_block(name: str, block: VoxelBlock) -> VoxelBlock:
    """`block`, after a check that its file is long enough for its voxels.

    Raises:
        VolumeError: the file is too short, for compressed voxels even at the highest ratio of compression.
    """
    size = block.file.stat().st_size
    held = size - block.offset if block.packed is None else min(block.packed, size - block.offset)
    most = {"raw": 1, "text": 1, "hex": 1, "bzip2": _BZIP2_RATIO}.get(block.encoding, _DEFLATE_RATIO)
    wanted = {"text": block.skip + block.nbytes // 16, "hex": 2 * block.nbytes}.get(
        block.encoding, block.skip + block.nbytes
    )
    if held < 0 or held * most + 64 * (most > 1) < wanted or (block.packed or 0) > size:
        raise VolumeError(
            f"An image's file must hold all of its voxels, but {name} is cut short or its header is damaged: "
            f"{max(0, held)} bytes cannot hold {wanted}."
        )
    return block


def sibling(header: Path, named: str, limits: ReadLimits) -> Path:
    """The file that a header names for its voxels.

    Raises:
        VolumeError: it is not a plain name of a file of voxels that lies beside the header.
    """
    endings = ", ".join(DATA_ENDINGS)
    # Some programs write `./` for the header's own folder.
    named = named.removeprefix("./")
    if not limits.siblings:
        raise VolumeError(
            f"The voxels of an uploaded image must lie in the same file, but {header.name} names another "
            "one, "
            f"{named[:100]!r}: save it as one file, or upload both as a session or an archive."
        )
    plain = _PLAIN_NAME.fullmatch(named) and not named.startswith(".")
    if not plain or not named.lower().endswith(DATA_ENDINGS):
        raise VolumeError(
            f"A header may name a file that lies beside it and ends in one of {endings}, "
            f"but {header.name} names {named[:100]!r}."
        )
    path = header.parent / named
    if not path.is_file():
        raise VolumeError(
            f"The voxels of {header.name} should lie beside it in {named!r}, which is not there."
        )
    if path.resolve().parent != header.parent.resolve():
        raise VolumeError(
            f"The voxels of {header.name} must lie beside it, but {named!r} is a link elsewhere."
        )
    return path


def whole(text: str, name: str, what: str) -> int:
    """A whole number of a header.

    Raises:
        VolumeError: it is none, or has more than 18 digits.
    """
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text.strip()):
        raise VolumeError(f"{what} of {name} must be a whole number, but it is {text.strip()[:60]!r}.")
    return int(text)


def real(text: str, name: str, what: str) -> float:
    """A finite number of a header.

    Raises:
        VolumeError: it is none.
    """
    try:
        value = float(text) if len(text) < 100 and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise VolumeError(f"{what} of {name} must be a finite number, but it is {text.strip()[:60]!r}.")
    return value


def some_of(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    shown = ", ".join(names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown


def unit_notes(units: Iterable[str], name: str) -> list[str]:
    """A note where a header's unit is not millimetres, which ITK ignores."""
    other = sorted({unit for unit in units if unit.lower() not in _MILLIMETRES})
    if not other:
        return []
    return [
        f"The header of {name} counts in {', '.join(unit[:20] for unit in other)}, which was taken for "
        "millimetres, as ITK (3D Slicer) does."
    ]


def text_lines(stream: BinaryIO, name: str, limits: ReadLimits, last: str) -> tuple[list[str], int]:
    """The lines of a text header, without the one that ends it, and the header's length in bytes.

    Args:
        stream: at its beginning.
        name: for messages.
        limits: bound the header.
        last: what the line that ends the header starts with; an empty line where it is empty. That line is
            part of the result unless it is empty.

    Raises:
        VolumeError: the header does not end within the limits.
    """
    lines: list[str] = []
    length = 0
    while len(lines) < limits.header_lines and length < limits.header_bytes:
        line = stream.readline(limits.header_bytes - length)
        length += len(line)
        if not line:
            # A header whose voxels lie in another file may end with the file.
            return lines, length
        text = line.rstrip(b"\r\n").decode("utf-8", "replace")
        if not last and not text:
            return lines, length
        lines.append(text)
        if last and text.lower().startswith(last):
            return lines, length
    raise VolumeError(
        f"A header has at most {limits.header_lines} lines and {limits.header_bytes} bytes, "
        f"but that of {name} does not end there."
    )


def _gib(nbytes: int) -> str:
    return f"{nbytes / (1 << 30):.3g} GiB"

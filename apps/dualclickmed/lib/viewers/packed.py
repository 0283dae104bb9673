"""Arrays as nnInteractive's clients pack them: a header, which is parsed here, and blosc2 chunks after it.

``NNIA``, then as bytes the version (1), the codec (1 zstd, 2 lz4), the number of axes and the length of the
dtype's name, the name, the shape as signed 64-bit numbers, the number of chunks as 32 bits, and for each
chunk its lengths unpacked and packed, 64 bits each, and its bytes. Everything is little-endian.

Whatever the header says is checked here before a byte is handed to blosc2.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import UserError

MAGIC = b"NNIA"
VERSION = 1
ZSTD, LZ4 = 1, 2
DTYPES = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "float32", "float64"),
)
"""What an array may hold."""
MAX_AXES = 4
MAX_CHUNKS = 4096
MAX_CHUNK_BYTES = (1 << 31) - 1
"""Unpacked; blosc2 counts with 32 bits."""
_FRAME = struct.Struct("<BBBBIII")
"""The start of a blosc2 chunk: versions, flags, size of an element, lengths unpacked, of a block, packed."""


class PackedError(UserError):
    """Bytes that are no packed array, or one that is larger than it may be."""


@dataclass(frozen=True)
class Chunk:
    """A part of the array: where it lies in the bytes, and how long it is unpacked."""

    start: int
    stop: int
    nbytes: int


@dataclass(frozen=True)
class Packed:
    """A packed array whose header was checked.

    Attributes:
        shape: of the array.
        dtype: of its elements, little-endian.
        chunks: in order; their lengths sum up to the array's.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[Chunk, ...]

    @property
    def nbytes(self) -> int:
        """Of the array once it is unpacked."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(data: bytes, most_bytes: int) -> Packed:
    """What a packed array holds, without unpacking it.

    Args:
        data: the whole of it.
        most_bytes: of the array, unpacked.

    Raises:
        PackedError: it is damaged, of an unknown kind, empty, or larger than `most_bytes`.
    """
    reader = _Reader(data)
    magic, version, codec, axes, named = reader.fields("<4sBBBB")
    if magic != MAGIC or version != VERSION:
        raise PackedError(
            f"A packed array starts with {MAGIC!r} and version {VERSION}, but {magic!r} and {version} came."
        )
    if codec not in (ZSTD, LZ4):
        raise PackedError(f"A packed array's codec is {ZSTD} (zstd) or {LZ4} (lz4), but it is {codec}.")
    if not 1 <= axes <= MAX_AXES:
        raise PackedError(f"A packed array has 1 to {MAX_AXES} axes, but this one has {axes}.")
    name = reader.take(named).decode("ascii", "replace")
    if name not in DTYPES:
        raise PackedError(f"A packed array holds {', '.join(DTYPES)}, but this one {name[:20]!r}.")
    dtype = np.dtype(name).newbyteorder("<")
    shape = reader.fields(f"<{axes}q")
    if min(shape) < 1:
        raise PackedError(f"A packed array has elements along every axis, but its shape is {shape}.")
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > most_bytes:
        raise PackedError(f"An array may have {most_bytes} bytes here, but {shape} of {name} has {nbytes}.")
    chunks = _chunks(reader, dtype.itemsize)
    found = sum(chunk.nbytes for chunk in chunks)
    if found != nbytes:
        raise PackedError(f"The chunks of an array must hold all of its {nbytes} bytes, but hold {found}.")
    return Packed(shape, dtype, chunks)


def pack(array: npt.NDArray[np.generic]) -> bytes:
    """An array of our own as clients unpack it."""
    import blosc2

    plain = np.ascontiguousarray(array)
    name = plain.dtype.name.encode("ascii")
    parts = [
        struct.pack("<4sBBBB", MAGIC, VERSION, LZ4, plain.ndim, len(name)),
        name,
        struct.pack(f"<{plain.ndim}qI", *plain.shape, 1),
    ]
    # Masks are long runs: the fastest codec makes them as small as any.
    chunk = blosc2.compress2(
        plain.reshape(-1).view(np.uint8),
        typesize=1,
        codec=blosc2.Codec.LZ4,
        clevel=1,
        filters=[blosc2.Filter.NOFILTER],
        nthreads=1,
    )
    parts += [struct.pack("<QQ", plain.nbytes, len(chunk)), chunk]
    return b"".join(parts)


class _Reader:
    """Takes bytes from the front."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        part = self._data[self.at : self.at + count]
        if len(part) < count:
            raise PackedError(f"A packed array ends after {len(self._data)} bytes, within its header.")
        self.at += count
        return part

    def fields(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def skip(self, count: int) -> tuple[int, int]:
        """Start and stop of the next bytes."""
        start, stop = self.at, self.at + count
        if count > len(self._data) - start:
            raise PackedError(f"A packed array ends after {len(self._data)} bytes, within a chunk.")
        self.at = stop
        return start, stop

    def peek(self, at: int) -> tuple[int, ...]:
        return _FRAME.unpack_from(self._data, at)


def _chunks(reader: _Reader, itemsize: int) -> tuple[Chunk, ...]:
    (count,) = reader.fields("<I")
    if not 1 <= count <= MAX_CHUNKS:
        raise PackedError(f"A packed array has 1 to {MAX_CHUNKS} chunks, but this one has {count}.")
    found = []
    for _ in range(count):
        nbytes, packed = reader.fields("<QQ")
        if not 0 < nbytes <= MAX_CHUNK_BYTES or nbytes % itemsize or packed < _FRAME.size:
            raise PackedError(
                f"A chunk holds up to {MAX_CHUNK_BYTES} bytes of whole elements, but {nbytes} in {packed}."
            )
        start, stop = reader.skip(packed)
        *_, unpacked, _, length = reader.peek(start)
        if unpacked != nbytes or length != packed:
            raise PackedError(
                f"A chunk's own header must say {nbytes} bytes in {packed}, "
                f"but it says {unpacked} in {length}."
            )
        found.append(Chunk(start, stop, nbytes))
    return tuple(found)


def whole_shape(shape: Sequence[int], axes: int) -> tuple[int, ...]:
    """A shape of `axes` axes: further ones in front must have length 1.

    Raises:
        PackedError: they have not.
    """
    extra = len(shape) - axes
    if extra < 0 or any(n != 1 for n in shape[:extra]):
        raise PackedError(f"An array with {axes} axes is needed, but one of shape {tuple(shape)} came.")
    return tuple(shape[extra:])

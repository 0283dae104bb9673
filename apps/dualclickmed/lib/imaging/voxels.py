"""The voxels of a file: unpacked within the size that its header gives, and checked to the last checksum."""

from __future__ import annotations

import bz2
import re
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import TooLargeError, VolumeError
from .facts import HeaderFacts, open_regular

_CHUNK = 1 << 20
_SPARE = 1 << 20
"""Bytes that may follow the voxels: padding, or what a program has put there."""
_TEXT_VOXELS = 1 << 24
_TEXT_BYTES = 64
"""Most characters of a number that is written as text."""


def read_voxels(facts: HeaderFacts) -> npt.NDArray[Any]:
    """The stored numbers, with the axes as the header lists them (Fortran order).

    Raises:
        VolumeError: the voxels are damaged: cut short, with a wrong checksum, or more than the header says.
        OSError: the file cannot be read.
    """
    block = facts.block
    with open_regular(block.file) as stream:
        stream.seek(block.offset)
        if block.encoding == "text":
            flat = _numbers(stream, facts)
        else:
            buffer = np.empty(block.nbytes, dtype=np.uint8)
            _fill(buffer.data, _unpacked(stream, facts), facts)
            flat = buffer.view(facts.dtype)
    return flat.reshape(facts.shape, order="F")


def _fill(buffer: memoryview, parts: Iterator[bytes], facts: HeaderFacts) -> None:
    """Copy the parts, after the bytes to skip, one behind the other; read them to their end."""
    skip, at, spare = facts.block.skip, 0, 0
    for part in parts:
        if skip:
            skip, part = max(0, skip - len(part)), part[skip:]
        taken = min(len(part), len(buffer) - at)
        buffer[at : at + taken] = part[:taken]
        at += taken
        spare += len(part) - taken
        if spare > _SPARE:
            raise VolumeError(
                f"The file {facts.name} holds more than the {len(buffer)} bytes of voxels that its header "
                "says."
            )
    if at < len(buffer):
        raise VolumeError(
            f"The voxels of {facts.name} are cut short: its header says {len(buffer)} bytes, but it holds "
            f"{at}."
        )


def _unpacked(stream: BinaryIO, facts: HeaderFacts) -> Iterator[bytes]:
    block = facts.block
    if block.encoding == "raw":
        return _raw(stream, block.nbytes)
    if block.encoding == "hex":
        return _hex(stream, facts)
    packed = _limited(stream, block.packed)
    if block.encoding == "bzip2":
        return _bunzipped(packed, facts)
    return _inflated(packed, facts, zlib.MAX_WBITS | (16 if block.encoding == "gzip" else 0))


def _raw(stream: BinaryIO, nbytes: int) -> Iterator[bytes]:
    while nbytes > 0 and (part := stream.read(min(_CHUNK, nbytes))):
        nbytes -= len(part)
        yield part


def _limited(stream: BinaryIO, nbytes: int | None) -> Iterator[bytes]:
    if nbytes is not None:
        yield from _raw(stream, nbytes)
        return
    while part := stream.read(_CHUNK):
        yield part


def _inflated(packed: Iterator[bytes], facts: HeaderFacts, window: int) -> Iterator[bytes]:
    """Members of a gzip stream, or one zlib stream; zeros behind the last one are padding."""
    unpacker = zlib.decompressobj(window)
    begun = False
    try:
        for part in packed:
            rest = part
            while rest:
                if unpacker.eof:
                    if window == zlib.MAX_WBITS or not rest.lstrip(b"\0"):
                        break
                    rest = rest.lstrip(b"\0")
                    unpacker = zlib.decompressobj(window)
                begun = True
                found = unpacker.decompress(rest, _CHUNK)
                rest = unpacker.unconsumed_tail or unpacker.unused_data
                if found:
                    yield found
            # The rest of this part that the unpacker holds is returned with the next one.
        if not unpacker.eof:
            while found := unpacker.decompress(unpacker.unconsumed_tail, _CHUNK):
                yield found
    except zlib.error as error:
        raise VolumeError(f"The packed voxels of {facts.name} are damaged: {error}.") from error
    if not begun or not unpacker.eof:
        raise VolumeError(f"The packed voxels of {facts.name} are cut short.")


def _bunzipped(packed: Iterator[bytes], facts: HeaderFacts) -> Iterator[bytes]:
    unpacker = bz2.BZ2Decompressor()
    try:
        for part in packed:
            if unpacker.eof:
                break
            found = unpacker.decompress(part, _CHUNK)
            while True:
                if found:
                    yield found
                if unpacker.eof or unpacker.needs_input:
                    break
                found = unpacker.decompress(b"", _CHUNK)
    except (OSError, ValueError, EOFError) as error:
        raise VolumeError(f"The packed voxels of {facts.name} are damaged: {error}.") from error
    if not unpacker.eof:
        raise VolumeError(f"The packed voxels of {facts.name} are cut short.")


def _hex(stream: BinaryIO, facts: HeaderFacts) -> Iterator[bytes]:
    """Two characters for a byte; white space between them does not count."""
    held = b""
    for part in _limited(stream, None):
        held += re.sub(rb"\s", b"", part)
        even = len(held) & ~1
        try:
            yield bytes.fromhex(held[:even].decode("ascii"))
        except ValueError as error:
            raise VolumeError(
                f"The voxels of {facts.name} must be hexadecimal digits, but are not."
            ) from error
        held = held[even:]


def _numbers(stream: BinaryIO, facts: HeaderFacts) -> npt.NDArray[Any]:
    """Voxels that are written as text."""
    count = facts.block.nbytes // facts.dtype.itemsize
    if count > _TEXT_VOXELS:
        raise TooLargeError(f"At most {_TEXT_VOXELS} voxels are read as text, but {facts.name} has {count}.")
    text = stream.read(count * _TEXT_BYTES)
    parts = text.replace(b",", b" ").split(None, count)[:count]
    if len(parts) < count:
        raise VolumeError(f"The voxels of {facts.name} are cut short: {len(parts)} of {count} are there.")
    native = facts.dtype.newbyteorder("=")
    try:
        found = np.array(parts, dtype=np.float64 if native.kind == "f" else np.int64)
        flat = found.astype(native)
    except (ValueError, OverflowError) as error:
        raise VolumeError(f"The voxels of {facts.name} must be numbers, but are not: {error}.") from error
    if native.kind != "f" and not np.array_equal(flat, found):
        raise VolumeError(f"The voxels of {facts.name} must fit into {native}, but do not.")
    return flat

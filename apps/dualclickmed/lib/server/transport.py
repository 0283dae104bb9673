"""Messages between processes: plain values as JSON, arrays through shared memory, and no code.

Unpickling would let a process that a damaged file has taken over run code in the one that asked it to read.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import mmap
import os
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

MOST_TEXT = 64 << 20
"""Bytes of a message besides its arrays."""
_LENGTH = struct.Struct("<Q")
_KINDS = "biuf"
_ALIGNED = 64
_PACKAGE = f"{__package__.rpartition('.')[0]}.imaging."
"""Prefix of modules whose dataclasses may be sent."""


class ClosedError(Exception):
    """The other process has ended, or closed the connection, in the middle of a message or before one."""


def send(connection: socket.socket, value: Any) -> None:
    """Send a value; its arrays go through shared memory.

    Args:
        connection: a Unix stream socket.
        value: None, numbers, texts, bytes, paths, lists, tuples, dicts, arrays of numbers, dataclasses of
            `imaging`, and these in one another.

    Raises:
        TypeError: it holds something else.
        OSError: the other side is gone, or there is no memory for the arrays.
    """
    arrays: list[npt.NDArray[Any]] = []
    text = json.dumps(_plain(value, arrays)).encode()
    with _shared(arrays) as handles:
        head = _LENGTH.pack(len(text))
        socket.send_fds(connection, [head], handles)
        connection.sendall(text)


def receive(connection: socket.socket) -> Any:
    """Receive what `send` sent. Arrays are writable and private to this process.

    Raises:
        ClosedError: nothing came, or not all of it.
        ValueError: what came is no message.
    """
    head, handles, _, _ = socket.recv_fds(connection, _LENGTH.size, 1)
    try:
        head += _exactly(connection, _LENGTH.size - len(head))
        (length,) = _LENGTH.unpack(head)
        if length > MOST_TEXT:
            raise ValueError(f"a message of {length} bytes is too long")
        tree = json.loads(_exactly(connection, length))
        memory: mmap.mmap | bytes = b""
        if handles and os.fstat(handles[0]).st_size:
            memory = mmap.mmap(handles[0], 0, access=mmap.ACCESS_COPY)
    finally:
        for handle in handles:
            os.close(handle)
    return _value(tree, memory)


def _exactly(connection: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(min(count - len(parts), 1 << 20))
        if not part:
            raise ClosedError
        parts += part
    return bytes(parts)


@contextmanager
def _shared(arrays: list[npt.NDArray[Any]]) -> Iterator[list[int]]:
    """A file that has no name and holds the arrays, one after the other; none without arrays."""
    if not arrays:
        yield []
        return
    size = sum(_room(array.nbytes) for array in arrays)
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create("voxels")
    else:
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    try:
        os.truncate(handle, size)
        if size:
            with mmap.mmap(handle, size) as memory:
                _fill(memory, arrays)
        yield [handle]
    finally:
        os.close(handle)


def _fill(memory: mmap.mmap, arrays: list[npt.NDArray[Any]]) -> None:
    offset = 0
    for array in arrays:
        flat = np.frombuffer(memory, array.dtype, array.size, offset)
        flat.reshape(array.shape, order=_order(array))[...] = array
        offset += _room(array.nbytes)
        # The memory cannot be closed while an array refers to it.
        del flat


def _order(array: npt.NDArray[Any]) -> Literal["C", "F"]:
    return "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"


def _room(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _plain(value: Any, arrays: list[npt.NDArray[Any]]) -> Any:
    """As JSON holds it: what JSON does not know becomes a list of its kind and its content."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, np.generic):
        return _plain(value.item(), arrays)
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else ["float", str(value)]
    if isinstance(value, bytes):
        return ["bytes", base64.b64encode(value).decode()]
    if isinstance(value, Path):
        return ["path", str(value)]
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, [_plain(inner, arrays) for inner in value]]
    if isinstance(value, Mapping):
        return ["dict", [[_plain(key, arrays), _plain(inner, arrays)] for key, inner in value.items()]]
    if isinstance(value, np.ndarray) and value.dtype.kind in _KINDS:
        offset = sum(_room(array.nbytes) for array in arrays)
        arrays.append(value)
        return ["array", [value.dtype.str, list(value.shape), _order(value), offset]]
    kind = type(value)
    if dataclasses.is_dataclass(value) and kind.__module__.startswith(_PACKAGE):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        return [f"{kind.__module__.removeprefix(_PACKAGE)}.{kind.__qualname__}", _plain(fields, arrays)]
    raise TypeError(f"cannot send a {kind.__name__}")


def _value(tree: Any, memory: mmap.mmap | bytes) -> Any:
    if not isinstance(tree, list):
        return tree
    kind, content = tree
    if kind == "float":
        return float(content)
    if kind == "bytes":
        return base64.b64decode(content)
    if kind == "path":
        return Path(content)
    if kind in ("list", "tuple"):
        values = [_value(inner, memory) for inner in content]
        return values if kind == "list" else tuple(values)
    if kind == "dict":
        return {_value(key, memory): _value(inner, memory) for key, inner in content}
    if kind == "array":
        return _array(memory, *content)
    return _dataclass(kind)(**_value(content, memory))


def _array(memory: mmap.mmap | bytes, form: str, shape: list[int], order: Any, offset: int) -> Any:
    dtype = np.dtype(form)
    if dtype.kind not in _KINDS:
        raise ValueError(f"arrays of {form!r} are not sent")
    count = math.prod(shape)
    if not count:
        return np.zeros(shape, dtype, order)
    return np.frombuffer(memory, dtype, count, offset).reshape(shape, order=order)


def _dataclass(name: str) -> Any:
    module, _, kind = name.rpartition(".")
    found = getattr(sys.modules.get(f"{_PACKAGE}{module}"), kind, None)
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(f"there is no dataclass {name!r}")
    return found

"""Values between processes: what comes out is what went in, and nothing else can be sent."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dualclickmed.imaging.volume import Volume, from_array
from dualclickmed.server import transport


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def through(ends: tuple[socket.socket, socket.socket], value: Any) -> Any:
    sending = threading.Thread(target=transport.send, args=(ends[0], value))
    sending.start()
    found = transport.receive(ends[1])
    sending.join()
    return found


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, -2.5, "é", b"\0\xff", Path("/a/b"), [1, [2]], (1, (2, "x")), float("inf")),
        *({}, {"a": {1: "liver"}, 2: None}, [{"x": (1.5, Path("y"))}], "x" * 2_000_000, 1 << 80),
    ],
)
def test_plain_values_arrive_as_they_are(ends: Any, value: Any) -> None:
    found = through(ends, value)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("dtype", ["uint8", "int16", ">i2", "float32", "float64", "bool", "uint16"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_keep_values_type_and_order(ends: Any, dtype: str, order: Any) -> None:
    array = np.asarray(np.arange(24).reshape(2, 3, 4), dtype=dtype, order=order)
    found, empty = through(ends, [array, np.zeros((0, 3), dtype)])
    assert np.array_equal(found, array) and found.dtype == array.dtype
    assert found.flags.f_contiguous == array.flags.f_contiguous
    assert empty.shape == (0, 3)
    found[0, 0, 0] = 1
    assert array[0, 0, 0] == 0


def test_a_volume_arrives_whole(ends: Any) -> None:
    volume = from_array(np.arange(60, dtype=np.int16).reshape(3, 4, 5), (2.0, 1.0, 0.5), "ct")
    found = through(ends, volume)
    assert isinstance(found, Volume)
    assert np.array_equal(found.array, volume.array) and np.array_equal(found.affine, volume.affine)
    assert (found.spacing, found.key, found.meta) == (volume.spacing, volume.key, volume.meta)


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, np.asarray(["a"], dtype=object), np.zeros(2, "V4"), print, 1j]
)
def test_anything_else_is_not_sent(ends: Any, value: Any) -> None:
    with pytest.raises(TypeError):
        transport.send(ends[0], value)


@pytest.mark.parametrize(
    "text",
    [
        *(b"[]", b'["os.system", ["dict", []]]', b'["volume.load_volume", ["dict", []]]'),
        *(b'["array", ["|O", [1], "C", 0]]', b'["array", ["<i2", [9], "C", 0]]', b"{", b'["unknown", 1]'),
    ],
)
def test_what_is_no_message_is_refused(ends: Any, text: bytes) -> None:
    ends[0].sendall(len(text).to_bytes(8, "little") + text)
    with pytest.raises((ValueError, TypeError)):
        transport.receive(ends[1])


@pytest.mark.parametrize("data", [b"", b"\1", (50).to_bytes(8, "little") + b"[1"])
def test_an_end_in_the_middle_is_told(ends: Any, data: bytes) -> None:
    ends[0].sendall(data)
    ends[0].close()
    with pytest.raises(transport.ClosedError):
        transport.receive(ends[1])


def test_a_message_that_claims_to_be_endless_is_refused(ends: Any) -> None:
    ends[0].sendall((1 << 60).to_bytes(8, "little"))
    with pytest.raises(ValueError, match="too long"):
        transport.receive(ends[1])

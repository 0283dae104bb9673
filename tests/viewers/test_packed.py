"""The header of packed arrays, against what the real client packs and unpacks."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from dualclickmed.viewers.packed import PackedError, pack, read_header, whole_shape
from dualclickmed.viewers.unpacking import BLOSC2, GZIP, Unpacker, UnpackError

remote = pytest.importorskip("nnInteractive.inference.remote")
pack_array, unpack_array = remote.remote_session.pack_array, remote.remote_session.unpack_array

MOST = 1 << 24


@pytest.fixture(scope="module")
def unpacker() -> Unpacker:
    return Unpacker(MOST)


def unpacked(unpacker: Unpacker, data: bytes) -> np.ndarray:
    header = read_header(data, MOST)
    chunks = [(chunk.start, chunk.stop, chunk.nbytes) for chunk in header.chunks]
    return np.frombuffer(unpacker.unpack(BLOSC2, data, header.nbytes, chunks), dtype=header.dtype).reshape(
        header.shape
    )


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int16", "float32", "float64"])
def test_what_the_client_packs_is_unpacked(unpacker: Unpacker, dtype: str) -> None:
    array = np.random.default_rng(0).integers(-200, 200, (1, 9, 20, 31)).astype(dtype)
    found = unpacked(unpacker, pack_array(array))
    assert found.dtype == array.dtype and np.array_equal(found, array)


def test_the_client_unpacks_what_is_packed_here() -> None:
    mask = np.zeros((33, 40, 7), dtype=np.uint8)
    mask[3:9, 4:20, 2:4] = 1
    assert np.array_equal(unpack_array(pack(mask)), mask)
    empty = np.zeros((707658,), dtype=np.uint8)
    assert np.array_equal(unpack_array(pack(empty)), empty)


def test_an_array_is_as_large_as_its_header_says_before_anything_is_unpacked() -> None:
    data = bytearray(pack_array(np.zeros((4, 4, 4), dtype=np.uint8)))
    at = 8 + len("uint8")
    data[at : at + 24] = struct.pack("<3q", 1 << 20, 1 << 20, 1 << 20)
    with pytest.raises(PackedError, match="may have"):
        read_header(bytes(data), MOST)


@pytest.mark.parametrize("shape", [(0, 4, 4), (-1, 4, 4), (4, 4, 2), (1 << 62, 1 << 62, 4)])
def test_a_shape_that_does_not_fit_is_refused(shape: tuple[int, ...]) -> None:
    data = bytearray(pack_array(np.zeros((4, 4, 4), dtype=np.uint8)))
    data[13:37] = struct.pack("<3q", *shape)
    with pytest.raises(PackedError):
        read_header(bytes(data), MOST)


@pytest.mark.parametrize(
    ("at", "value"), [(0, 0), (4, 2), (5, 9), (6, 0), (6, 200), (7, 0), (8, ord("x")), (37, 0), (37, 255)]
)
def test_a_strange_header_is_refused(at: int, value: int) -> None:
    data = bytearray(pack_array(np.zeros((4, 4, 4), dtype=np.uint8)))
    data[at] = value
    with pytest.raises(PackedError):
        read_header(bytes(data), MOST)


def test_a_stream_that_ends_early_is_refused() -> None:
    data = pack_array(np.random.default_rng(0).integers(0, 9, (6, 6, 6)).astype(np.int16))
    for length in range(0, len(data), 7):
        with pytest.raises(PackedError):
            read_header(data[:length], MOST)


def test_objects_are_no_numbers() -> None:
    data = bytearray(pack_array(np.zeros((4, 4, 4), dtype=np.uint8)))
    assert data[8:13] == b"uint8"
    data[8:13] = b"O\0\0\0\0"
    with pytest.raises(PackedError, match="holds"):
        read_header(bytes(data), MOST)


def test_damage_within_a_chunk_leaves_the_next_one_readable(unpacker: Unpacker) -> None:
    array = np.random.default_rng(0).integers(0, 9, (20, 20, 20)).astype(np.int16)
    data = pack_array(array)
    start = read_header(data, MOST).chunks[0].start
    refused = 0
    rng = np.random.default_rng(1)
    for _ in range(60):
        damaged = bytearray(data)
        for at in rng.integers(start + 16, len(data), 12):
            damaged[at] = int(rng.integers(256))
        try:
            unpacked(unpacker, bytes(damaged))
        except (UnpackError, PackedError):
            refused += 1
    assert refused > 10
    assert np.array_equal(unpacked(unpacker, data), array)


def test_gzip_is_read_to_its_check_sum_and_no_further(unpacker: Unpacker) -> None:
    import gzip

    raw = bytes(range(256)) * 100
    data = gzip.compress(raw)
    assert unpacker.unpack(GZIP, data, len(raw)) == raw
    flipped = data[:-6] + bytes([data[-6] ^ 1]) + data[-5:]
    for bad in (data[:-9], flipped, b"", b"plain", data[:300] + b"abc" + data[303:]):
        with pytest.raises(UnpackError):
            unpacker.unpack(GZIP, bad, len(raw))
    with pytest.raises(UnpackError, match="more than"):
        unpacker.unpack(GZIP, gzip.compress(bytes(10 << 20)), 1000)


def test_a_single_channel_is_left_out_of_a_shape() -> None:
    assert whole_shape((1, 5, 6, 7), 3) == (5, 6, 7)
    for shape in ((2, 5, 6, 7), (5, 6)):
        with pytest.raises(PackedError):
            whole_shape(shape, 3)

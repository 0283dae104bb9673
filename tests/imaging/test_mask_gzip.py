"""The gzip streams of masks: every reader gets the bytes back, wherever chunks of zeros begin and end."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import SimpleITK as sitk
from dualclickmed.imaging import mask_files
from dualclickmed.imaging.mask_files import LabelledMask, Segment, write
from hypothesis import given
from hypothesis import strategies as st

CHUNK = 8
PIECES = st.lists(st.one_of(st.binary(max_size=20), st.integers(0, 40).map(bytes)), max_size=8)


def stream(parts: Sequence[bytes]) -> bytes:
    return b"".join(mask_files.gzipped(parts))


@pytest.fixture(scope="module", autouse=True)
def small_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mask_files, "_CHUNK_BYTES", CHUNK)
        yield


@given(PIECES, PIECES)
def test_it_holds_the_bytes_of_all_parts(one: list[bytes], other: list[bytes]) -> None:
    parts = [b"".join(one), b"".join(other)]
    found = stream(parts)
    assert gzip.decompress(found) == b"".join(parts)
    # One member, to its last byte: some readers stop after the first.
    reader = zlib.decompressobj(zlib.MAX_WBITS | 16)
    assert reader.decompress(found) == b"".join(parts) and reader.eof and not reader.unused_data


def test_it_has_neither_name_nor_time() -> None:
    assert stream([b"abc"])[:10] == bytes([0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 4, 0xFF])


@pytest.mark.parametrize("value", [0, 1])
def test_a_damaged_stream_is_noticed(value: int) -> None:
    found = bytearray(stream([bytes(20), bytes([value]), bytes(20)]))
    found[-6] ^= 1
    with pytest.raises(gzip.BadGzipFile, match="CRC check failed"):
        gzip.decompress(found)


def test_masks_become_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_files, "_CHUNK_BYTES", 1 << 18)
    voxels = np.zeros((20, 200, 200), dtype=np.uint8)
    voxels[5:9, 50:90, 50:90] = 2
    assert len(stream([voxels.tobytes()])) < voxels.size / 150


@pytest.mark.parametrize("extension", [".nrrd", ".seg.nrrd", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_itk_reads_what_it_holds(extension: str, dtype: str) -> None:
    array = np.zeros((7, 9, 11), dtype=np.uint8, order="F")
    array[2:5, 3, 4:6] = 3
    mask = LabelledMask(array, np.diag([-1.0, -1, 2, 1]), [Segment("organ", 3, (255, 0, 0))])
    path = write(mask, extension, dtype, compress=True)
    try:
        assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), array.T)
    finally:
        path.unlink()

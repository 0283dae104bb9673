"""Untrusted DICOM files: read within limits, with their pixels as the stored numbers.

The beginning of a file is checked here before pydicom parses the rest. Compressed pixels other than
run-length encoded ones are decompressed by GDCM, from a file that is written here and holds only the
compressed pixels and the tags that describe them.
"""

from __future__ import annotations

import io
import struct
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import generate_fragments, parse_basic_offsets
from pydicom.pixel_data_handlers import numpy_handler, rle_handler
from pydicom.pixels.utils import reshape_pixel_array
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from ..errors import TooLargeError, VolumeError
from .facts import ReadLimits, checked_bytes, open_regular

HEADER_BYTES = 32 << 20
"""Longest part of a file before its pixels: that of 5,000 frames has some 10 MB."""
DEFLATED_BYTES = 256 << 20
"""Most bytes that a deflated file may unpack to."""
MAX_FRAMES = 20_000
"""Frames of one file; each is looked at before any of its pixels."""
_PREAMBLE = 128
_LONG_VR = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV")
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_DESCRIBING = (
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
)
_JPEG_END = b"\xff\xd9"


def is_dicom(path: Path) -> bool:
    """Whether a file starts as DICOM files do.

    Raises:
        VolumeError: it is no regular file.
        OSError: it cannot be read.
    """
    with open_regular(path) as stream:
        return stream.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"


def read_dataset(path: Path, limits: ReadLimits, pixels: bool = False) -> FileDataset:
    """A DICOM file's dataset.

    Args:
        path: the file.
        limits: bound it.
        pixels: read them as well.

    Raises:
        VolumeError: it is damaged.
        TooLargeError: it is larger than the limits.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        syntax = _transfer_syntax(file, path.name)
        file.seek(0)
        stream: BinaryIO = file
        if syntax == DeflatedExplicitVRLittleEndian:
            stream = io.BytesIO(_inflated(file, path.name))
        most = limits.image_bytes + HEADER_BYTES if pixels else HEADER_BYTES
        bounded = cast(BinaryIO, _Bounded(stream, most, path.name))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return pydicom.dcmread(bounded, stop_before_pixels=not pixels)
        except VolumeError:
            raise
        # Damaged files make pydicom raise nearly anything.
        except Exception as error:
            raise VolumeError(f"The DICOM file {path.name} is damaged: {str(error)[:200]}.") from error


def pixel_frames(dataset: Dataset, name: str, limits: ReadLimits) -> npt.NDArray[Any]:
    """The stored numbers (frames, rows, columns) of a dataset that was read with its pixels.

    Raises:
        VolumeError: they are no single numbers, are damaged or cut short, or are packed in a way that cannot
            be read.
        TooLargeError: they are more than the limit.
    """
    shape = frame_shape(dataset, name)
    present = [key for key in _PIXELS if key in dataset]
    if len(present) != 1:
        raise VolumeError(f"A DICOM image has pixels, but {name} has none.")
    if int(dataset.get("SamplesPerPixel", 1)) != 1:
        raise VolumeError(
            f"An image must have one real number in each voxel, but {name} has {dataset.SamplesPerPixel}."
        )
    bits = int(dataset.get("BitsAllocated", 8))
    checked_bytes(name, shape, max(1, bits // 8), limits)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = _unpacked(dataset, shape, name)
    except VolumeError:
        raise
    except Exception as error:
        raise VolumeError(f"The pixels of {name} cannot be read: {str(error)[:200]}.") from error
    found = found.reshape(shape)
    return found if present[0] != "PixelData" else _significant(found, dataset, name)


def plane_by_plane(dataset: Dataset, name: str, limits: ReadLimits) -> Iterator[npt.NDArray[Any]]:
    """As `pixel_frames`, one frame (rows, columns) after the other; single bits take memory for one frame.

    Raises:
        VolumeError: as `pixel_frames`.
        TooLargeError: as `pixel_frames`.
    """
    frames, rows, columns = shape = frame_shape(dataset, name)
    syntax = dataset.file_meta.TransferSyntaxUID
    if int(dataset.get("BitsAllocated", 8)) != 1 or syntax.is_encapsulated or "PixelData" not in dataset:
        yield from pixel_frames(dataset, name, limits)
        return
    _require_length(dataset, shape, name)
    packed = np.frombuffer(dataset.PixelData, dtype=np.uint8)
    size = rows * columns
    for start in range(0, frames * size, size):
        part = packed[start // 8 : (start + size + 7) // 8]
        # Frames follow one another without padding, bit by bit.
        yield np.unpackbits(part, bitorder="little")[start % 8 :][:size].reshape(rows, columns)


def frame_shape(dataset: Dataset, name: str) -> tuple[int, int, int]:
    """Number of frames, rows and columns.

    Raises:
        VolumeError: the dataset has no such numbers.
        TooLargeError: there are more than `MAX_FRAMES`.
    """
    try:
        shape = int(dataset.get("NumberOfFrames") or 1), int(dataset.Rows), int(dataset.Columns)
    except (AttributeError, TypeError, ValueError) as error:
        raise VolumeError(f"A DICOM image has Rows and Columns, but {name} has none.") from error
    if min(shape) < 1:
        raise VolumeError(f"A DICOM image has pixels, but {name} has {shape} frames, rows and columns.")
    if shape[0] > MAX_FRAMES:
        raise TooLargeError(f"A DICOM file has at most {MAX_FRAMES} frames, but {name} has {shape[0]}.")
    return shape


def _unpacked(dataset: Dataset, shape: tuple[int, int, int], name: str) -> npt.NDArray[Any]:
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed or syntax == DeflatedExplicitVRLittleEndian:
        _require_length(dataset, shape, name)
        return reshape_pixel_array(dataset, numpy_handler.get_pixeldata(dataset))
    if syntax == RLELossless:
        return reshape_pixel_array(dataset, rle_handler.get_pixeldata(dataset))
    return _by_gdcm(dataset, shape, name)


def _require_length(dataset: Dataset, shape: tuple[int, int, int], name: str) -> None:
    key = next(key for key in _PIXELS if key in dataset)
    frames, rows, columns = shape
    bits = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}.get(key, int(dataset.get("BitsAllocated", 8)))
    wanted = (frames * rows * columns * bits + 7) // 8
    held = len(dataset[key].value)
    if held < wanted:
        raise VolumeError(f"The DICOM file {name} is cut short: its pixels have {held} of {wanted} bytes.")
    if bits == 1 and held > wanted + 1:
        # Frames of single bits follow one another; others than these would shift from one to the next.
        raise VolumeError(
            f"The pixels of {name} should have {wanted} bytes ({frames} frames of {rows} x {columns} bits), "
            f"but they have {held}: its frames are padded, or its header is wrong."
        )


def _by_gdcm(dataset: Dataset, shape: tuple[int, int, int], name: str) -> npt.NDArray[Any]:
    _require_whole_frames(dataset, shape[0], name)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = (
        SecondaryCaptureImageStorage,
        generate_uid(),
    )
    meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    bare = FileDataset("", {}, file_meta=meta, preamble=b"\0" * _PREAMBLE)
    bare.SOPClassUID, bare.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    bare.Modality, bare.NumberOfFrames = "OT", shape[0]
    for key in _DESCRIBING:
        bare[key] = dataset[key]
    bare.PixelData = dataset.PixelData
    bare["PixelData"].is_undefined_length = True
    with tempfile.TemporaryDirectory(prefix="dualclickmed-") as folder:
        path = Path(folder) / "pixels.dcm"
        bare.save_as(path, enforce_file_format=True)
        found = sitk.GetArrayFromImage(sitk.ReadImage(str(path), imageIO="GDCMImageIO"))
    if found.size != shape[0] * shape[1] * shape[2]:
        raise VolumeError(f"The pixels of {name} should be {shape}, but they unpack to {found.shape}.")
    return found


def _require_whole_frames(dataset: Dataset, frames: int, name: str) -> None:
    """Check that every frame is complete up to its end marker; the decompressors do not check this."""
    stream = io.BytesIO(dataset.PixelData)
    parse_basic_offsets(stream)
    fragments = [fragment.rstrip(b"\0") for fragment in generate_fragments(stream)]
    ends = sum(fragment.endswith(_JPEG_END) for fragment in fragments)
    if len(fragments) < frames or (fragments and (ends < frames or not fragments[-1].endswith(_JPEG_END))):
        raise VolumeError(f"The DICOM file {name} is cut short: {ends} of {frames} packed frames are whole.")


def _significant(found: npt.NDArray[Any], dataset: Dataset, name: str) -> npt.NDArray[Any]:
    """Stored numbers without the bits beside BitsStored, where old devices put overlays.

    Raises:
        VolumeError: the header says that they have bits that are not there.
    """
    allocated, stored = int(dataset.get("BitsAllocated", 8)), int(dataset.get("BitsStored", 0) or 0)
    if found.dtype.kind not in "iu" or allocated == 1 or stored < 1:
        return found
    shift = int(dataset.get("HighBit", stored - 1)) + 1 - stored
    if not 0 <= shift <= allocated - stored:
        raise VolumeError(
            f"The header of {name} is damaged: of {allocated} bits it uses {stored} up to the "
            f"{stored + shift}th."
        )
    if stored == allocated:
        return found
    unsigned = found.view(f"u{found.dtype.itemsize}") >> shift
    if not int(dataset.get("PixelRepresentation", 0)):
        return unsigned & unsigned.dtype.type((1 << stored) - 1)
    spare = 8 * found.dtype.itemsize - stored
    return (unsigned << spare).view(f"i{found.dtype.itemsize}") >> spare


class _Bounded(io.BufferedIOBase):
    """A stream that returns at most a given number of bytes in all, and per call no more than there are."""

    def __init__(self, stream: BinaryIO, most: int, name: str) -> None:
        self._stream, self._left, self._name = stream, most, name
        self._size = stream.seek(0, io.SEEK_END)
        stream.seek(0)

    def read(self, count: int | None = -1, /) -> bytes:
        there = self._size - self._stream.tell()
        # A length of 4 GB in a short file must not become 4 GB of memory.
        wanted = there if count is None or count < 0 else min(count, there)
        self._left -= wanted
        if self._left < 0:
            raise TooLargeError(f"The DICOM file {self._name} is larger than what is read of such a file.")
        return self._stream.read(wanted)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def close(self) -> None:
        """Does nothing: the stream is closed where it was opened."""


def _transfer_syntax(stream: BinaryIO, name: str) -> str:
    """The transfer syntax by the file's meta group, whose elements are explicit little endian."""
    start = stream.read(1 << 16)
    if start[_PREAMBLE : _PREAMBLE + 4] != b"DICM":
        raise VolumeError(f"{name} is no DICOM file.")
    at = _PREAMBLE + 4
    while at + 12 <= len(start):
        group, element = struct.unpack_from("<HH", start, at)
        if group != 2:
            break
        if start[at + 4 : at + 6] in _LONG_VR:
            length, head = struct.unpack_from("<I", start, at + 8)[0], 12
        else:
            length, head = struct.unpack_from("<H", start, at + 6)[0], 8
        if element == 0x10:
            return start[at + head : at + head + length].rstrip(b"\0 ").decode("ascii", "replace")
        at += head + length
    raise VolumeError(f"The DICOM file {name} does not say how it is written (TransferSyntaxUID).")


def _inflated(file: BinaryIO, name: str) -> bytes:
    """The bytes of a deflated file, checked to unpack within the limit: pydicom has none."""
    whole = file.read(DEFLATED_BYTES + 1)
    if len(whole) > DEFLATED_BYTES:
        raise TooLargeError(
            f"A DICOM file that is packed as a whole has at most 256 MiB, but {name} has more."
        )
    at = _PREAMBLE + 4
    (length,) = struct.unpack_from("<I", whole, at + 8)
    unpacker, total = zlib.decompressobj(-zlib.MAX_WBITS), 0
    rest = whole[at + 12 + length :]
    try:
        while rest and not unpacker.eof:
            total += len(unpacker.decompress(rest, 1 << 20))
            rest = unpacker.unconsumed_tail
            if total > DEFLATED_BYTES:
                raise TooLargeError(f"The DICOM file {name} unpacks to more than 256 MiB.")
    except zlib.error as error:
        raise VolumeError(f"The DICOM file {name} is damaged: {error}.") from error
    if not unpacker.eof:
        raise VolumeError(f"The DICOM file {name} is cut short.")
    return whole

"""A DICOM series or segmentation as one NIfTI file, for programs that read no DICOM."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import VolumeError
from . import native
from .facts import ReadLimits
from .headers import reading
from .label_parts import read_parts
from .nifti_answer import nifti_of_affine
from .reading import read_volume

_LEVEL = 1
_CHUNK = 1 << 24


@native.reader
def series_to_nifti(folder: Path, target: Path, limits: ReadLimits | None = None) -> list[str]:
    """Write a series as NIfTI, packed with gzip, voxel for voxel in the order of its planes.

    Values are real ones, or stored ones with the slope and intercept in the header. A series whose planes
    are slanted makes a sheared grid, which its sform tells.

    Args:
        folder: of the series' files.
        target: the file to write.
        limits: how much reading it may take.

    Returns:
        Notes on the reading of the series.

    Raises:
        VolumeError: the series cannot be read.
        TooLargeError: it would take more memory than the limits give it.
    """
    with reading(folder.name):
        found = read_volume(folder, limits)
        array, slope, intercept = _without_offset(found.array, found.slope, found.intercept)
        _write(array, found.affine, slope, intercept, target)
    return list(found.notes)


@native.reader
def segments_to_nifti(folder: Path, target: Path, limits: ReadLimits | None = None) -> dict[str, int]:
    """Write a DICOM SEG as NIfTI, packed with gzip; segments that overlap along a fourth axis.

    Args:
        folder: that holds the one file.
        target: the file to write.
        limits: how much reading it may take.

    Returns:
        The segments' values by their names.

    Raises:
        VolumeError: the segmentation cannot be read, or is empty.
        TooLargeError: it would take more memory than the limits give it.
    """
    parts, _ = read_parts(folder, limits)
    values: dict[str, int] = {}
    for part in parts:
        for value in part.values:
            name = part.names[value] or f"Segment {value}"
            values[f"{name} {value}" if name in values else name] = value
    if not values:
        raise VolumeError(f"The DICOM SEG in {folder.name} holds no voxel of any segment.")
    arrays = [part.array for part in parts]
    array = arrays[0] if len(arrays) == 1 else np.stack(arrays, axis=-1)
    with reading(folder.name):
        _write(array, parts[0].placing.affine, 1.0, 0.0, target)
    return values


def _write(
    array: npt.NDArray[Any], affine: npt.NDArray[np.float64], slope: float, intercept: float, target: Path
) -> None:
    header = nifti_of_affine(array, affine).header
    header.set_data_dtype(array.dtype)
    header["vox_offset"] = len(header.binaryblock) + 4
    header["scl_slope"], header["scl_inter"] = slope, intercept
    voxels = array.astype(array.dtype.newbyteorder("<"), copy=False).ravel(order="F").data.cast("B")
    # Without name and time: the same series gives the same bytes.
    with target.open("wb") as file, gzip.GzipFile("", "wb", _LEVEL, file, 0) as packed:
        packed.write(header.binaryblock + bytes(4))
        for start in range(0, len(voxels), _CHUNK):
            packed.write(voxels[start : start + _CHUNK])


def _without_offset(
    array: npt.NDArray[Any], slope: float, intercept: float
) -> tuple[npt.NDArray[Any], float, float]:
    """Whole numbers with a whole intercept and no slope, as CT has them, are real values of 16 bits."""
    if array.dtype.kind not in "iu" or slope != 1 or not intercept or intercept != math.floor(intercept):
        return array, slope, intercept
    low, high = int(array.min()) + int(intercept), int(array.max()) + int(intercept)
    for dtype in (np.int16, np.uint16):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return (array.astype(np.int64) + int(intercept)).astype(dtype), 1.0, 0.0
    return array, slope, intercept

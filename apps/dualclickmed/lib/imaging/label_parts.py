"""Label files of every kind as label maps with the names that the file itself gives."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import VolumeError
from . import native
from .dicom_files import is_dicom
from .facts import ReadLimits, default_limits
from .headers import SUFFIXES, reading
from .placing import Placing
from .reading import Read, read_channels
from .seg_frames import read_segmentation

MAX_VALUES = 254
"""Different labels that one file may hold; answers have 8 bits."""
MAX_VALUE = np.iinfo(np.uint16).max
WHOLE = 1e-3
"""How far a value may lie from a whole number."""
_SLAB_VOXELS = 1 << 22
_SEGMENT = re.compile(r"Segment([0-9]{1,6})_(?:ID|Name|LabelValue|Layer)")


@dataclass(frozen=True, eq=False)
class LabelPart:
    """One label map of a file.

    Attributes:
        array: (i, j, k) values, 0 for none.
        values: those above 0 that occur, ascending.
        placing: where its voxels lie.
        names: value to name, as far as the file itself names them.
    """

    array: npt.NDArray[np.uint16]
    values: list[int]
    placing: Placing
    names: Mapping[int, str] = field(default_factory=dict)


@native.reader
def read_parts(
    path: Path, limits: ReadLimits | None = None, image: npt.NDArray[np.float64] | None = None
) -> tuple[list[LabelPart], list[str]]:
    """The label maps of a file, and notes about it.

    Args:
        path: NIfTI, NRRD, MetaImage, DICOM SEG, or the folder that holds one DICOM SEG.
        limits: bound the file.
        image: the affine of the image that it belongs to, which helps where a DICOM SEG is incomplete.

    Raises:
        VolumeError: it cannot be read, or its values are no labels: fractions, negative, or too many.
        TooLargeError: it would take more memory than the limit.
    """
    limits = limits or default_limits()
    with reading(path.name):
        if path.is_dir() or path.name.lower().endswith(".dcm"):
            return _dicom_parts(path, limits, image), []
        if not path.name.lower().endswith(SUFFIXES):
            raise VolumeError(
                f"A label must be a DICOM SEG or end in {', '.join(SUFFIXES)}, but the file is {path.name}."
            )
        found = read_channels(path, limits)
        parts, notes = _map_parts(found, path.name)
        return parts, [*found.notes, *notes]


def _dicom_parts(path: Path, limits: ReadLimits, image: npt.NDArray[np.float64] | None) -> list[LabelPart]:
    files = [path]
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
    if len(files) != 1:
        raise VolumeError(f"A DICOM SEG is one file, but the folder {path.name} holds {len(files)}.")
    if not is_dicom(files[0]):
        raise VolumeError(f"A DICOM SEG must be a DICOM file, but {files[0].name} is not.")
    maps = read_segmentation(files[0], limits, image)
    return [LabelPart(m.array, sorted(m.names), Placing.plain(m.affine), m.names) for m in maps]


def _map_parts(found: Read, name: str) -> tuple[list[LabelPart], list[str]]:
    channels = found.array.shape[3] if found.array.ndim == 4 else 1
    if channels > MAX_VALUES:
        raise VolumeError(f"A label file may hold {MAX_VALUES} labels, but {name} holds {channels} channels.")
    segments = slicer_segments(found.fields, channels)
    layers = [found.array[..., n] for n in range(channels)] if found.array.ndim == 4 else [found.array]
    maps = [whole_values(stored, found.slope, found.intercept, name) for stored in layers]
    several = [value for _, values in maps for value in values]
    # Channels with values of their own are label maps; others hold a label each, numbered from 1.
    own = len(set(several)) == len(several) and set(several) != {1}
    if channels == 1 or segments or own:
        return [
            LabelPart(array, values, found.placing, segments.get(n, {}))
            for n, (array, values) in enumerate(maps)
        ], []
    notes = []
    if (np.sum([array != 0 for array, _ in maps], axis=0) == 1).all():
        # As one-hot codes have it: labels alone never cover all of an image.
        maps = maps[1:]
        notes.append(
            f"Every voxel of {name} is in exactly one of its {channels} channels: the first one was taken "
            "for the background."
        )
    return [
        LabelPart((array != 0).astype(np.uint16) * np.uint16(n), [n] if values else [], found.placing)
        for n, (array, values) in enumerate(maps, start=1)
    ], notes


def slicer_segments(fields: Mapping[str, str], channels: int = 1) -> dict[int, dict[int, str]]:
    """The segments that 3D Slicer lists in a header: for each layer, value to name.

    Before version 4.11 it stored a layer for each segment, without a number of it and without a value.

    Raises:
        VolumeError: a number cannot be read, or two segments have one value.
    """
    numbers = sorted({int(found[1]) for key in fields if (found := _SEGMENT.fullmatch(key))})
    layers: dict[int, dict[int, str]] = {}
    for at, listed in enumerate(numbers):
        prefix = f"Segment{listed}_"
        name = fields.get(f"{prefix}Name") or fields.get(f"{prefix}ID") or f"Segment {listed}"
        value, layer = fields.get(f"{prefix}LabelValue"), fields.get(f"{prefix}Layer")
        own = value is None and layer is None and channels == len(numbers)
        try:
            home = at if own else int(layer or 0)
            number = 1 if value is None else int(value)
        except ValueError as error:
            raise VolumeError(f"The segment {name[:60]!r} has no readable value and layer.") from error
        other = layers.setdefault(home, {}).setdefault(number, name)
        if other is not name:
            raise VolumeError(
                f"Each segment must have a value of its own, but {other[:60]!r} and {name[:60]!r} share "
                f"{number} of layer {home}: nothing tells which voxels belong to which."
            )
    return layers


def whole_values(
    stored: npt.NDArray[Any], slope: float, intercept: float, name: str
) -> tuple[npt.NDArray[np.uint16], list[int]]:
    """A label map's values as whole numbers, and those above 0 that occur.

    They are counted slab by slab, before anything is made of each.

    Raises:
        VolumeError: they are fractions, negative, above `MAX_VALUE`, not finite, or more than `MAX_VALUES`.
    """
    array = np.empty(stored.shape, dtype=np.uint16, order="F")
    counts = np.zeros(MAX_VALUE + 1, dtype=np.int64)
    step = max(1, _SLAB_VOXELS // max(1, stored[:, :, 0].size))
    plain = stored.dtype.kind in "bu" and stored.dtype.itemsize <= 2 and (slope, intercept) == (1.0, 0.0)
    for start in range(0, stored.shape[2], step):
        part = stored[:, :, start : start + step]
        if not plain:
            part = _whole(part, slope, intercept, name)
        array[:, :, start : start + step] = part
        counts += np.bincount(array[:, :, start : start + step].ravel(order="K"), minlength=MAX_VALUE + 1)
    values = np.flatnonzero(counts[1:]) + 1
    if values.size > MAX_VALUES:
        raise VolumeError(
            f"A label file may hold {MAX_VALUES} labels, but {name} holds {values.size} different values: it "
            "seems to be an image."
        )
    return array, values.tolist()


def _whole(part: npt.NDArray[Any], slope: float, intercept: float, name: str) -> npt.NDArray[np.float64]:
    values = part.astype(np.float64) * slope + intercept
    if not np.isfinite(values).all():
        raise VolumeError(
            f"A label's values must be whole numbers, but {name} holds some that are not finite."
        )
    whole = np.rint(values)
    if np.abs(values - whole).max(initial=0) > WHOLE or whole.max(initial=0) > MAX_VALUE:
        raise VolumeError(
            f"A label's values must be whole numbers up to {MAX_VALUE}, but {name} holds {values.max():g}."
        )
    if whole.min(initial=0) < 0:
        raise VolumeError(f"A label's values must not be negative, but {name} holds {values.min():g}.")
    return whole

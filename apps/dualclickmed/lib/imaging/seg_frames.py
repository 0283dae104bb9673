"""A DICOM segmentation as label maps: binary, fractional (from one half on) and label map (PS3.3 C.8.20).

Frames lie at their own positions; slices without a frame are empty. Segments that overlap come as label maps
of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from ..errors import VolumeError
from .dicom_files import frame_shape, plane_by_plane, read_dataset
from .dicom_series import first_item, number_list
from .facts import ReadLimits, checked_bytes
from .placing import RAS_FROM_LPS
from .series_kinds import text_of

ON_GRID = 0.05
"""Part of a step that a frame may lie off the grid of the others."""
_PARALLEL = 1e-3
LABEL_LENGTH = 64
_MAX_SLICES = 1 << 16


@dataclass(frozen=True, eq=False)
class SegmentMap:
    """Segments that do not overlap.

    Attributes:
        array: (i, j, k) segment numbers, 0 for none.
        affine: (4, 4), raw indices to RAS millimetres.
        names: of the segments, by their numbers.
    """

    array: npt.NDArray[np.uint16]
    affine: npt.NDArray[np.float64]
    names: dict[int, str]


@dataclass(frozen=True, eq=False)
class _Frames:
    """Where each frame lies: its segment (0 where the pixels themselves tell) and its raw index k."""

    segments: list[int]
    slices: npt.NDArray[np.int64]
    affine: npt.NDArray[np.float64]


def read_segmentation(
    path: Path, limits: ReadLimits, image: npt.NDArray[np.float64] | None = None
) -> list[SegmentMap]:
    """Read a DICOM SEG file.

    Args:
        path: the file.
        limits: bound it.
        image: the affine of the image that it belongs to, whose slices tell how far apart frames are where
            the file leaves it open.

    Raises:
        VolumeError: it is none, is damaged, or its frames make no grid.
        TooLargeError: it would take more memory than the limit.
        OSError: it cannot be read.
    """
    dataset = read_dataset(path, limits, pixels=True)
    name = path.name
    if text_of(dataset, "Modality") != "SEG":
        raise VolumeError(f"The DICOM file {name} is not a segmentation (SEG).")
    kind = text_of(dataset, "SegmentationType") or "BINARY"
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise VolumeError(f"A DICOM SEG is BINARY, FRACTIONAL or LABELMAP, but {name} is {kind[:60]!r}.")
    names = _names(dataset, name)
    frames = _placed_frames(dataset, kind, name, image)
    _, rows, columns = frame_shape(dataset, name)
    shape = (columns, rows, int(frames.slices.max()) + 1)
    checked_bytes(name, shape, 2, limits)
    # A segment starts in the first map; where it meets another one it moves to a map of its own.
    maps: list[npt.NDArray[np.uint16]] = [np.zeros(shape, dtype=np.uint16, order="F")]
    at: dict[int, int] = {}
    threshold = float(dataset.get("MaximumFractionalValue") or 255) / 2 if kind == "FRACTIONAL" else 0.5
    for number, found in enumerate(plane_by_plane(dataset, name, limits)):
        k, segment = int(frames.slices[number]), frames.segments[number]
        if kind == "LABELMAP":
            if maps[0][:, :, k].any():
                raise VolumeError(f"A label map has one frame at each place, but {name} has two in one.")
            maps[0][:, :, k] = found.T
            continue
        _put(maps, at, segment, k, (found >= threshold).T)
    present = [np.unique(one) for one in maps]
    return [
        SegmentMap(one, frames.affine, {int(v): names.get(int(v), f"Segment {v}") for v in values if v})
        for one, values in zip(maps, present, strict=True)
    ]


def _put(
    maps: list[npt.NDArray[np.uint16]], at: dict[int, int], segment: int, k: int, mask: npt.NDArray[np.bool_]
) -> None:
    """Put a segment's frame into the map that holds it, or move all of it to one where it overlaps none."""
    if not mask.any():
        return
    home = at.setdefault(segment, 0)
    if not maps[home][:, :, k][mask].any():
        maps[home][:, :, k][mask] = segment
        return
    own = maps[home] == segment
    own[:, :, k] |= mask
    maps[home][maps[home] == segment] = 0
    for number, one in enumerate(maps):
        if not one[own].any():
            at[segment] = number
            one[own] = segment
            return
    at[segment] = len(maps)
    maps.append(np.where(own, np.uint16(segment), np.uint16(0)))


def plain_label(name: str) -> str:
    """A name as SegmentLabel can hold it: 64 characters, without the backslash that would make it two."""
    return name.replace("\\", "/")[:LABEL_LENGTH]


def _names(dataset: Dataset, name: str) -> dict[int, str]:
    """The segments' names; where one has no label its description or its code tells.

    Raises:
        VolumeError: two segments have one number.
    """
    names: dict[int, str] = {}
    for number, item in enumerate(dataset.get("SegmentSequence") or [], start=1):
        code = first_item(item, "SegmentedPropertyTypeCodeSequence")
        label, whole = text_of(item, "SegmentLabel"), text_of(item, "SegmentDescription")
        told = [
            # A description may hold characters that a label cannot.
            whole if label and plain_label(whole).strip() == label else label,
            whole,
            "" if code is None else text_of(code, "CodeMeaning"),
        ]
        own = item.get("SegmentNumber")
        value = number if own is None else int(own)
        if value in names:
            raise VolumeError(
                f"Each segment must have a number of its own, but {names[value][:60]!r} and another one of "
                f"{name} share {value}: nothing tells which frames belong to which."
            )
        names[value] = next((text for text in told if text), "")
    return names


def _placed_frames(dataset: Dataset, kind: str, name: str, image: npt.NDArray[np.float64] | None) -> _Frames:
    count, _, _ = frame_shape(dataset, name)
    groups = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    if len(groups) != count:
        raise VolumeError(
            f"A DICOM SEG says where its {count} frames lie, but {name} does so for {len(groups)}."
        )
    shared = first_item(dataset, "SharedFunctionalGroupsSequence")
    spacing = _everywhere("PixelMeasuresSequence", "PixelSpacing", 2, groups, shared, name)[0]
    orientations = _everywhere("PlaneOrientationSequence", "ImageOrientationPatient", 6, groups, shared, name)
    positions = _everywhere("PlanePositionSequence", "ImagePositionPatient", 3, groups, shared, name)
    if np.abs(orientations - orientations[0]).max() > _PARALLEL:
        raise VolumeError(
            f"The frames of a DICOM SEG must have one orientation, but those of {name} have several."
        )
    along_row, along_column = orientations[0].reshape(2, 3)
    normal = np.cross(along_row, along_column)
    measures = None if shared is None else first_item(shared, "PixelMeasuresSequence")
    measures = first_item(groups[0], "PixelMeasuresSequence") if measures is None else measures
    steps = [_image_step(image, along_row, along_column)]
    for key in ("SpacingBetweenSlices", "SliceThickness"):
        found = None if measures is None else number_list(measures, key, 1, name)
        steps.append(None if found is None else abs(float(found[0])))
    slices, first, step = _on_line(positions, normal, [s for s in steps if s], name)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = along_row * spacing[1], along_column * spacing[0]
    lps[:3, 2], lps[:3, 3] = step, first
    segments = [0 if kind == "LABELMAP" else _segment(group, shared, name) for group in groups]
    return _Frames(segments, slices, RAS_FROM_LPS @ lps)


def _segment(group: Dataset, shared: Dataset | None, name: str) -> int:
    item = first_item(group, "SegmentIdentificationSequence")
    if item is None and shared is not None:
        item = first_item(shared, "SegmentIdentificationSequence")
    number = None if item is None else item.get("ReferencedSegmentNumber")
    if number is None or not 0 < int(number) < 1 << 16:
        raise VolumeError(f"Each frame of a DICOM SEG belongs to a segment, but one of {name} to {number}.")
    return int(number)


def _everywhere(
    group: str, key: str, count: int, groups: Sequence[Dataset], shared: Dataset | None, name: str
) -> npt.NDArray[np.float64]:
    """A tag of each frame (frames, count), from its own groups or from those that all share."""
    common = None if shared is None else first_item(shared, group)
    found = []
    for one in groups:
        item = first_item(one, group)
        item = common if item is None else item
        numbers = None if item is None else number_list(item, key, count, name)
        if numbers is None:
            raise VolumeError(f"A DICOM SEG says where its frames lie, but {name} has no {key}.")
        found.append(numbers)
    return np.array(found)


def _image_step(
    image: npt.NDArray[np.float64] | None,
    along_row: npt.NDArray[np.float64],
    along_column: npt.NDArray[np.float64],
) -> float | None:
    """The distance between slices of an image whose slices are parallel to the frames; None for others."""
    if image is None:
        return None
    lps = RAS_FROM_LPS @ image
    for axis, wanted in ((0, along_row), (1, along_column)):
        direction = lps[:3, axis] / np.linalg.norm(lps[:3, axis])
        if np.abs(direction - wanted).max() > _PARALLEL:
            return None
    return float(np.linalg.norm(lps[:3, 2]))


def _on_line(
    positions: npt.NDArray[np.float64], normal: npt.NDArray[np.float64], steps: Sequence[float], name: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Each frame's slice, the position of slice 0, and the step from one to the next (LPS millimetres)."""
    along = positions @ normal
    first, last = positions[along.argmin()], positions[along.argmax()]
    total = float(np.linalg.norm(last - first))
    # Frames of several segments share slices: what is nearer than this is one slice.
    same = 0.01 * (steps[0] if steps else 1.0)
    if total <= same:
        return np.zeros(len(positions), dtype=np.int64), first, normal * (steps[0] if steps else 1.0)
    direction = (last - first) / total
    depth = (positions - first) @ direction
    gaps = np.diff(np.unique(np.rint(depth / same))) * same
    for length in [*steps, float(gaps.min())]:
        intervals = round(total / length)
        if not 0 < intervals < _MAX_SLICES:
            continue
        step = total / intervals
        slices = np.rint(depth / step).astype(np.int64)
        off = np.linalg.norm(positions - first - slices[:, None] * direction * step, axis=1).max()
        if off < ON_GRID * step and abs(step - length) < ON_GRID * length:
            return slices, first, direction * step
    raise VolumeError(
        f"The frames of a DICOM SEG must lie in equal steps, but those of {name} do not: the smallest gap is "
        f"{gaps.min():.4g} mm."
    )

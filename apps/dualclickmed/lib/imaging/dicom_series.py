"""A folder with one DICOM image series, or one multi-frame file, as voxels on a grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import UID

from ..errors import TooLargeError, VolumeError
from .dicom_files import frame_shape, is_dicom, pixel_frames, read_dataset
from .facts import ReadLimits, checked_bytes, some_of
from .planes import Plane, Stack, stacked
from .series_kinds import kind_of, slice_notes, text_of

NOT_IMAGES = frozenset({"RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "SEG", "SR", "PR", "KO", "REG", "DOC"})
"""DICOM modalities of results that may lie in the folder of the series that they describe."""
_FILMS = ("FrameTime", "FrameTimeVector", "CineRate")
_IN_TIME = (0x00181063, 0x00181065)
"""FrameTime and FrameTimeVector, as FrameIncrementPointer names what differs from frame to frame."""
_KIND_GROUPS = ("MREchoSequence", "MRDiffusionSequence", "CardiacSynchronizationSequence")


@dataclass(frozen=True, eq=False)
class Series:
    """A series whose headers were read and checked; its pixels are not read yet.

    Attributes:
        uid: SeriesInstanceUID.
        modality: DICOM's code for it.
        files: the files in the order of the raw index k; the one file of a multi-frame image.
        planes: the planes in the order of the raw index k.
        frames: frames of the one file; 0 where each file is a slice.
        shape: (i, j, k).
        affine: (4, 4), raw indices to RAS millimetres.
        headers: the files' datasets without pixels, in the order of `files`.
        notes: what was left out or had to be decided.
        placed: whether the files tell where they are.
    """

    uid: str
    modality: str
    files: list[Path]
    planes: list[Plane]
    frames: int
    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]
    headers: list[Dataset] = field(repr=False)
    notes: list[str] = field(default_factory=list)
    placed: bool = True


def look_at_series(folder: Path, limits: ReadLimits) -> Series:
    """Find a folder's image series and check that its slices make one grid; pixels are not read.

    Raises:
        VolumeError: there is none or more than one, or it is incomplete, irregular or damaged.
        TooLargeError: it would take more memory than the limit.
        OSError: a file cannot be read.
    """
    name = folder.name
    series, notes = _found(folder, limits)
    if len(series) != 1:
        found = ", ".join(
            f"{text_of(s[0][1], 'Modality') or 'untyped'} "
            f"{text_of(s[0][1], 'SeriesDescription') or 'without description'} ({uid})"
            for uid, s in series.items()
        )
        raise VolumeError(
            f"A DICOM folder must hold exactly one image series, but {name} holds {len(series)}"
            f"{': ' + found if found else ''}. {' '.join(notes)}".rstrip()
        )
    ((uid, members),) = series.items()
    members, twice = _without_copies(members)
    notes += [f"{path.name} is the same image as another file and was left out." for path in twice]
    members, localizers = _without_localizers(members)
    if localizers:
        notes.append(f"Localizers were left out: {some_of([path.name for path in localizers])}.")
    notes += _colour_notes(members)
    shapes = {path.name: frame_shape(header, path.name) for path, header in members}
    if any(frames > 1 for frames, _, _ in shapes.values()) or _is_enhanced(members[0][1]):
        if len(members) > 1:
            raise VolumeError(f"A multi-frame image must be one file, but {name} has {len(members)} files.")
        return _multi_frame(uid, members[0], limits, notes)
    first = next(iter(shapes.values()))
    other = [file for file, shape in shapes.items() if shape != first]
    if other:
        raise VolumeError(
            f"The slices of a DICOM series must have one size, but {some_of(other)} of {name} differ from "
            "the rest."
        )
    notes += slice_notes([(path.name, header) for path, header in members], name)
    planes = [_plane(header, path.name) for path, header in members]
    stack = stacked(planes, name)
    return _series(uid, members, planes, stack, 0, (first[2], first[1], len(planes)), limits, notes)


def read_series(series: Series, limits: ReadLimits) -> tuple[npt.NDArray[Any], float, float]:
    """The voxels (i, j, k) of a series, and the slope and intercept that make them real values.

    Where slices differ in their slopes or intercepts, the values are real ones already.

    Raises:
        VolumeError: pixels are damaged, cut short, or of a kind that cannot be read.
        OSError: a file cannot be read.
    """
    scales = {(plane.slope, plane.intercept) for plane in series.planes}
    real = len(scales) > 1
    array: npt.NDArray[Any] | None = None
    for k, (found, plane) in enumerate(zip(_pixels(series, limits), series.planes, strict=True)):
        if real:
            # Stored numbers have at most 32 bits, slopes any size: float32 holds 24 bits of each product.
            found = (found * np.float64(plane.slope) + plane.intercept).astype(np.float32)
        if array is None:
            array = np.empty(series.shape, dtype=found.dtype, order="F")
        if found.dtype != array.dtype:
            raise VolumeError(
                f"The slices must hold one kind of number, but {plane.source} holds {found.dtype}."
            )
        array[:, :, k] = found.T
    if array is None:
        raise VolumeError("A DICOM series must have slices.")
    slope, intercept = (1.0, 0.0) if real else scales.pop()
    return array, slope, intercept


def _pixels(series: Series, limits: ReadLimits) -> Iterator[npt.NDArray[Any]]:
    """One plane (rows, columns) after the other."""
    if series.frames:
        file = series.files[0]
        frames = pixel_frames(read_dataset(file, limits, pixels=True), file.name, limits)
        yield from (frames[plane.number] for plane in series.planes)
        return
    for file in series.files:
        yield pixel_frames(read_dataset(file, limits, pixels=True), file.name, limits)[0]


def _found(folder: Path, limits: ReadLimits) -> tuple[dict[str, list[tuple[Path, Dataset]]], list[str]]:
    """The image series of a folder by their UIDs, and what else lies there."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if len(paths) > limits.files:
        raise TooLargeError(
            f"A DICOM folder may hold {limits.files} files, but {folder.name} holds {len(paths)}."
        )
    series: dict[str, list[tuple[Path, Dataset]]] = {}
    strange, results = [], []
    for path in paths:
        if not is_dicom(path):
            if path.name.lower().endswith(".dcm"):
                raise VolumeError(
                    f"By its name {path.name} is a DICOM file, but it does not start as one: it is cut "
                    "short, empty, or of another kind."
                )
            strange.append(path.name)
            continue
        header = read_dataset(path, limits)
        if text_of(header, "Modality") in NOT_IMAGES:
            results.append(f"{path.name} ({text_of(header, 'Modality')})")
        elif "Rows" in header:
            series.setdefault(text_of(header, "SeriesInstanceUID"), []).append((path, header))
        elif "Image Storage" in header.file_meta.get("MediaStorageSOPClassUID", UID("")).name:
            raise VolumeError(f"The DICOM file {path.name} is cut short: an image without Rows and pixels.")
        elif path.name != "DICOMDIR":
            strange.append(path.name)
    notes = []
    if strange:
        notes.append(f"Files that are no DICOM images were left out: {some_of(strange)}.")
    if results:
        notes.append(f"Results beside the series were left out: {some_of(results)}.")
    return series, notes


def _without_copies(
    members: list[tuple[Path, Dataset]],
) -> tuple[list[tuple[Path, Dataset]], list[Path]]:
    kept: dict[str, tuple[Path, Dataset]] = {}
    twice = []
    for path, header in members:
        uid = text_of(header, "SOPInstanceUID") or str(path)
        if uid in kept:
            twice.append(path)
        else:
            kept[uid] = path, header
    return list(kept.values()), twice


def _without_localizers(
    members: list[tuple[Path, Dataset]],
) -> tuple[list[tuple[Path, Dataset]], list[Path]]:
    """Without images whose type is LOCALIZER, unless all are."""
    named = [
        (path, header) for path, header in members if "LOCALIZER" in text_of(header, "ImageType").upper()
    ]
    if not named or len(named) == len(members):
        return members, []
    out = {path for path, _ in named}
    return [(path, header) for path, header in members if path not in out], sorted(out)


def _colour_notes(members: Sequence[tuple[Path, Dataset]]) -> list[str]:
    """Notes on how stored numbers become grey levels; palette colours are refused."""
    told = {path.name: text_of(header, "PhotometricInterpretation").upper() for path, header in members}
    tables = [name for name, kind in told.items() if kind.startswith("PALETTE")]
    if tables:
        raise VolumeError(
            f"An image must have one real number in each voxel, but {some_of(tables)} hold numbers of "
            "colours (PALETTE COLOR)."
        )
    inverted = [name for name, kind in told.items() if kind == "MONOCHROME1"]
    if not inverted:
        return []
    return [
        f"Small values are bright in {some_of(inverted)} (MONOCHROME1): they were taken as they are stored, "
        "while ITK (3D Slicer) turns them round."
    ]


def _series(
    uid: str,
    members: Sequence[tuple[Path, Dataset]],
    planes: Sequence[Plane],
    stack: Stack,
    frames: int,
    shape: tuple[int, int, int],
    limits: ReadLimits,
    notes: list[str],
) -> Series:
    header = members[0][1]
    _require_room(members[0][0].parent.name, header, shape, limits)
    ordered = [members[0]] if frames else [members[k] for k in stack.order]
    return Series(
        uid,
        text_of(header, "Modality"),
        [path for path, _ in ordered],
        [planes[k] for k in stack.order],
        frames,
        shape,
        stack.affine,
        [one for _, one in ordered],
        [*notes, *stack.notes],
        stack.placed,
    )


def _require_room(name: str, header: Dataset, shape: tuple[int, int, int], limits: ReadLimits) -> None:
    checked_bytes(name, shape, max(1, _integer(header, "BitsAllocated", 16) // 8), limits)


def _multi_frame(uid: str, member: tuple[Path, Dataset], limits: ReadLimits, notes: list[str]) -> Series:
    path, header = member
    frames, rows, columns = frame_shape(header, path.name)
    _require_room(path.name, header, (columns, rows, frames), limits)
    planes = _frame_planes(header, frames, path.name)
    if any(plane.position is None for plane in planes) and _is_film(header):
        raise VolumeError(
            f"An image must be one volume, but {path.name} is a film: its {frames} frames follow one another "
            "in time, and nothing says where they lie."
        )
    stack = stacked(planes, path.name, keep_order=True)
    return _series(uid, [member], planes, stack, frames, (columns, rows, frames), limits, notes)


def _is_film(header: Dataset) -> bool:
    differing = header.get("FrameIncrementPointer") or []
    tags = differing if isinstance(differing, MultiValue) else [differing]
    return any(key in header for key in _FILMS) or any(tag in _IN_TIME for tag in tags)


def _is_enhanced(header: Dataset) -> bool:
    return "PerFrameFunctionalGroupsSequence" in header


def _frame_planes(header: Dataset, frames: int, name: str) -> list[Plane]:
    """The planes of a multi-frame file, by the functional groups of each frame and those that all share."""
    common = replace(_plane(header, name), source="", number=0)
    detector = first_item(header, "DetectorInformationSequence")
    if common.position is None and detector is not None and "ImagePositionPatient" in detector:
        return _detector_planes(common, detector, header, frames, name)
    if not _is_enhanced(header):
        if "GridFrameOffsetVector" in header:
            return _offset_planes(common, header, frames, name)
        if frames > 1:
            common = replace(common, position=None, directions=None)
        return [replace(common, source=f"frame {k + 1}", number=k) for k in range(frames)]
    groups = list(header.PerFrameFunctionalGroupsSequence)
    if len(groups) != frames:
        raise VolumeError(f"{name} has {frames} frames, but says where {len(groups)} of them are.")
    shared = first_item(header, "SharedFunctionalGroupsSequence")
    return [_frame_plane(k, [group, shared], header, name) for k, group in enumerate(groups)]


def _frame_plane(k: int, groups: Sequence[Dataset | None], header: Dataset, name: str) -> Plane:
    def group(key: str) -> Dataset:
        for one in groups:
            found = None if one is None else first_item(one, key)
            if found is not None:
                return found
        return Dataset()

    measures, values = group("PixelMeasuresSequence"), group("PixelValueTransformationSequence")
    content = group("FrameContentSequence")
    if not len(values):
        values = header
    return Plane(
        f"frame {k + 1}",
        k,
        number_list(group("PlanePositionSequence"), "ImagePositionPatient", 3, name),
        _directions(group("PlaneOrientationSequence"), name),
        number_list(measures, "PixelSpacing", 2, name),
        _step(measures, name),
        *_rescale(values, name),
        rank=_integer(content, "InStackPositionNumber", 0) or None,
        kind=kind_of([content, *map(group, _KIND_GROUPS)]),
    )


def _offset_planes(common: Plane, header: Dataset, frames: int, name: str) -> list[Plane]:
    """Frames whose distances from the first one are listed, as in dose grids (PS3.3 C.8.8.3.2).

    The list starts with 0, and leads along the normal; or, for axial frames, it holds their z coordinates.
    """
    offsets = number_list(header, "GridFrameOffsetVector", frames, name)
    if offsets is None:
        raise VolumeError(f"GridFrameOffsetVector of {name} must be {frames} numbers, but it is empty.")
    if common.position is None or common.directions is None:
        raise VolumeError(
            f"{name} tells how far apart its frames are (GridFrameOffsetVector), but not where the first one "
            "is (ImagePositionPatient, ImageOrientationPatient)."
        )
    position, along = common.position, np.cross(common.directions[0], common.directions[1])
    if offsets[0] != 0:
        if abs(offsets[0] - position[2]) > 0.01 or abs(along[2]) < 0.999:
            raise VolumeError(
                f"GridFrameOffsetVector of {name} must start with 0 or, for axial frames, with the place of "
                f"the first one ({position[2]:g}), but it starts with {offsets[0]:g}."
            )
        offsets, along = offsets - offsets[0], np.array([0.0, 0.0, 1.0])
    return [
        replace(common, source=f"frame {k + 1}", number=k, position=position + offset * along)
        for k, offset in enumerate(offsets.tolist())
    ]


def _detector_planes(
    common: Plane, detector: Dataset, header: Dataset, frames: int, name: str
) -> list[Plane]:
    """Nuclear medicine: the place of the first frame, and the distance between them.

    A negative distance leads against the normal (PS3.3 C.8.4.15).
    """
    position = number_list(detector, "ImagePositionPatient", 3, name)
    directions = _directions(detector, name)
    if position is None or directions is None or common.step is None:
        raise VolumeError(f"The detector of {name} does not tell where its frames are.")
    spacing = number_list(header, "SpacingBetweenSlices", 1, name)
    step = -common.step if spacing is not None and spacing[0] < 0 else common.step
    normal = np.cross(directions[0], directions[1]) * step
    return [
        replace(
            common, source=f"frame {k + 1}", number=k, position=position + k * normal, directions=directions
        )
        for k in range(frames)
    ]


def _plane(header: Dataset, name: str) -> Plane:
    spacing = number_list(header, "PixelSpacing", 2, name)
    return Plane(
        name,
        _integer(header, "InstanceNumber", 0),
        number_list(header, "ImagePositionPatient", 3, name),
        _directions(header, name),
        number_list(header, "ImagerPixelSpacing", 2, name) if spacing is None else spacing,
        _step(header, name),
        *_rescale(header, name),
        kind=kind_of([header]),
    )


def _directions(header: Dataset, name: str) -> npt.NDArray[np.float64] | None:
    found = number_list(header, "ImageOrientationPatient", 6, name)
    return None if found is None else found.reshape(2, 3)


def _step(header: Dataset, name: str) -> float | None:
    for key in ("SpacingBetweenSlices", "SliceThickness"):
        found = number_list(header, key, 1, name)
        if found is not None and found[0] != 0:
            return abs(float(found[0]))
    return None


def _rescale(header: Dataset, name: str) -> tuple[float, float]:
    if "ModalityLUTSequence" in header:
        raise VolumeError(f"The values of {name} come from a table (Modality LUT), which cannot be read.")
    slope, intercept = (
        number_list(header, "RescaleSlope", 1, name),
        number_list(header, "RescaleIntercept", 1, name),
    )
    if slope is not None and slope[0] == 0:
        raise VolumeError(f"The RescaleSlope of {name} must not be 0.")
    return 1.0 if slope is None else float(slope[0]), 0.0 if intercept is None else float(intercept[0])


def number_list(header: Dataset, key: str, count: int, name: str) -> npt.NDArray[np.float64] | None:
    """A tag's numbers; None where the file has none.

    Raises:
        VolumeError: they are no finite numbers, or not so many.
    """
    try:
        value = header.get(key)
        if value is None or value == "":
            return None
        found = np.atleast_1d(np.asarray(value, dtype=np.float64))
    except (ValueError, TypeError, OverflowError) as error:
        raise VolumeError(f"{key} of {name} must be {count} numbers, but it cannot be read.") from error
    if found.size == 0:
        return None
    if found.shape != (count,) or not np.isfinite(found).all():
        raise VolumeError(f"{key} of {name} must be {count} finite numbers, but it is {found.tolist()}.")
    return found


def _integer(header: Dataset, key: str, default: int) -> int:
    try:
        return int(header.get(key) or default)
    except (ValueError, TypeError, OverflowError):
        return default


def first_item(header: Dataset, key: str) -> Dataset | None:
    """The first item of a sequence; None where the header has none."""
    found = header.get(key)
    return found[0] if found else None

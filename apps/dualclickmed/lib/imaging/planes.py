"""Whether the planes of a DICOM series make one regular grid, and which.

A series is a set of planes, each with its own position. They form an image where they lie one behind the
other in equal steps, straight or slanted (a tilted gantry); anything else is refused with the planes' names,
because a voxel's index would say nothing about its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..errors import VolumeError
from .facts import some_of
from .placing import RAS_FROM_LPS

SAME_DIRECTION = 1e-3
"""How far the components of two unit vectors may differ: 0.06 degrees."""
SAME_PLACE = 0.01
"""Part of a step within which two planes are at the same place."""
OFF_GRID = 0.02
"""Part of a step, and at least `ROUNDED` mm, that a plane may lie off its place."""
ROUNDED = 0.01
MOST_OFF = 0.1
"""Millimetres that a plane may lie off its place whatever the step is."""
STRAIGHT = 2e-3
"""Part of a step by which the next plane may be moved sideways before the stack counts as slanted."""

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Plane:
    """One slice or frame.

    Attributes:
        source: its file, or the frame's number, for messages.
        number: its place in the order of acquisition, where positions are missing.
        position: of the first voxel's centre, LPS millimetres; None where the file has none.
        directions: (2, 3), unit vectors along a row and along a column; None where the file has none.
        spacing: (down a column, along a row) in millimetres; None where the file has none.
        step: distance to the next plane as the file has it, if it does.
        slope, intercept: ``real = stored * slope + intercept``.
        rank: its place among the frames of its stack (InStackPositionNumber); None where the file does not
            tell.
        kind: which of several images of one place it belongs to, as far as the file tells: its echo, its time
            point, its diffusion weighting.
    """

    source: str
    number: int
    position: Vector | None
    directions: Vector | None
    spacing: Vector | None
    step: float | None = None
    slope: float = 1.0
    intercept: float = 0.0
    rank: int | None = None
    kind: str = ""


@dataclass(frozen=True, eq=False)
class Stack:
    """Planes as one grid.

    Attributes:
        order: for each raw index k the plane's index.
        affine: (4, 4), raw indices to RAS millimetres.
        notes: what had to be decided.
        placed: whether the files tell where the planes are.
    """

    order: list[int]
    affine: Vector
    notes: list[str]
    placed: bool


def stacked(planes: Sequence[Plane], name: str, keep_order: bool = False) -> Stack:
    """The grid that planes make.

    Args:
        planes: at least one.
        name: of the series, for messages.
        keep_order: whether the order of the planes is that of the raw index k where they run from one end to
            the other, as for the frames of one file. Others are sorted like slices.

    Raises:
        VolumeError: they make none; the message names the planes.
    """
    _require_one_kind(planes, name)
    if any(plane.position is None or plane.directions is None for plane in planes):
        return _unplaced(planes, name, keep_order)
    directions = _one_orientation(planes, name)
    spacing, notes = _one_spacing(planes, name)
    normal = np.cross(directions[0], directions[1])
    positions = np.array([plane.position for plane in planes])
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    if keep_order and len(planes) > 1 and along[-1] < along[0]:
        order = order[::-1]
    sources = [planes[k].source for k in order]
    _require_distinct(np.abs(along[order] - along[order[0]]), sources, name)
    if keep_order and not np.array_equal(order, np.arange(len(planes))):
        _require_ranks([planes[k].rank for k in order], name)
        notes.append(f"The frames of {name} do not follow one another in space: they were sorted.")
    step = _regular_step(positions[order], normal, planes, sources, name)
    aside = step - (step @ normal) * normal
    if np.linalg.norm(aside) > STRAIGHT * np.linalg.norm(step):
        angle = np.degrees(np.arctan2(np.linalg.norm(aside), abs(step @ normal)))
        notes.append(
            f"The slices of {name} are slanted by {angle:.1f} degrees (a tilted gantry): the grid is "
            "sheared, "
            "so that each lies where its file says."
        )
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = directions[0] * spacing[1], directions[1] * spacing[0]
    lps[:3, 2], lps[:3, 3] = step, positions[order[0]]
    return Stack(order.tolist(), RAS_FROM_LPS @ lps, notes, True)


def _require_one_kind(planes: Sequence[Plane], name: str) -> None:
    """Echoes or time points whose planes lie between, or behind, one another look like one regular stack.

    A number that every plane has for itself counts the planes and tells nothing.
    """
    kinds = list(dict.fromkeys(plane.kind for plane in planes))
    if 1 < len(kinds) < len(planes):
        raise VolumeError(
            f"A DICOM series must be one image, but {name} holds {len(kinds)}: "
            f"{some_of([kind or 'without a number' for kind in kinds])}. Split it into one series for each."
        )


def _unplaced(planes: Sequence[Plane], name: str, keep_order: bool) -> Stack:
    """Files without positions, stacked in the order of their numbers."""
    missing = [p.source for p in planes if p.position is None or p.directions is None]
    if len(missing) < len(planes):
        raise VolumeError(
            f"Every slice of a DICOM series needs its position and orientation, but {some_of(missing)} of "
            f"{name} "
            "have none."
        )
    spacing, notes = _one_spacing(planes, name)
    numbers = [plane.number for plane in planes]
    order = list(range(len(planes))) if keep_order else np.argsort(numbers, kind="stable").tolist()
    if not keep_order and len(set(numbers)) < len(planes):
        raise VolumeError(
            f"The slices of {name} have neither positions nor numbers of their own, so that their order is "
            "unknown."
        )
    step = planes[order[0]].step
    shown = "1 mm apart, as nothing tells" if step is None else f"{step:g} mm apart, as the files say"
    notes.append(
        f"The files of {name} do not tell where their slices are: they were taken in the order of their "
        f"numbers, {shown}."
    )
    lps = np.diag([spacing[1], spacing[0], 1.0 if step is None else step, 1.0])
    return Stack(order, RAS_FROM_LPS @ lps, notes, False)


def _one_orientation(planes: Sequence[Plane], name: str) -> Vector:
    found = np.array([plane.directions for plane in planes])
    # Most planes agree with the one in the middle; which they are does not change the outcome.
    middle = np.median(found, axis=0)
    nearest = found[np.abs(found - middle).max(axis=(1, 2)).argmin()]
    other = np.abs(found - nearest).max(axis=(1, 2)) > SAME_DIRECTION
    if other.any():
        raise VolumeError(
            f"The slices of a DICOM series must have one orientation, but {int(other.sum())} of the "
            f"{len(planes)} of {name} have another, as localizers have: "
            f"{some_of([p.source for p, differs in zip(planes, other, strict=True) if differs])}."
        )
    lengths = np.linalg.norm(nearest, axis=1)
    if np.abs(lengths - 1).max() > 0.01 or abs(nearest[0] @ nearest[1]) > 0.01:
        raise VolumeError(
            f"ImageOrientationPatient must hold two directions at right angles, but that of {name} is "
            f"{nearest.ravel().tolist()}."
        )
    return nearest / lengths[:, None]


def _one_spacing(planes: Sequence[Plane], name: str) -> tuple[Vector, list[str]]:
    missing = [plane.source for plane in planes if plane.spacing is None]
    if len(missing) == len(planes):
        return np.ones(2), [f"The files of {name} do not tell the size of a pixel: 1 mm was taken."]
    if missing:
        raise VolumeError(f"Every slice of {name} needs its PixelSpacing, but {some_of(missing)} have none.")
    found = np.array([plane.spacing for plane in planes])
    if not (np.isfinite(found).all() and found.min() > 0):
        raise VolumeError(f"PixelSpacing must be positive, but that of {name} is {found.min():g}.")
    other = np.abs(found - found[0]).max(axis=1) > 1e-3 * found[0].max()
    if other.any():
        raise VolumeError(
            f"The slices of a DICOM series must have one PixelSpacing, but those of {name} differ: "
            f"{some_of([p.source for p, differs in zip(planes, other, strict=True) if differs])}."
        )
    return found[0], []


def _require_distinct(depths: Vector, sources: Sequence[str], name: str) -> None:
    """No two planes at one place; `depths` ascend."""
    gaps = np.diff(depths)
    if not gaps.size:
        return
    # Half of the gaps may be between planes at one place, and be nothing but digits that were rounded.
    usual = float(np.median(gaps[gaps >= np.median(gaps)]))
    same = np.flatnonzero(gaps <= SAME_PLACE * usual)
    if same.size:
        pairs = [f"{sources[k]} and {sources[k + 1]}" for k in same.tolist()]
        raise VolumeError(
            f"A DICOM series must have one slice at each position, but {name} has {same.size} more: "
            f"{some_of(pairs)}. It may hold several time points or echoes."
        )


def _require_ranks(ranks: Sequence[int | None], name: str) -> None:
    """Check that the frames' ranks agree with their positions, counted from either end."""
    told = [rank for rank in ranks if rank is not None]
    if not told:
        return
    steps = np.diff(told)
    if len(told) < len(ranks) or not ((steps > 0).all() or (steps < 0).all()):
        raise VolumeError(
            f"The frames of a DICOM file must lie in the order in which it numbers them "
            f"(InStackPositionNumber), but those of {name} do not: one of both is wrong."
        )


def _regular_step(
    positions: Vector, normal: Vector, planes: Sequence[Plane], sources: Sequence[str], name: str
) -> Vector:
    """From each plane to the next, in LPS millimetres."""
    count = len(positions)
    if count == 1:
        step = planes[0].step
        return normal * (1.0 if step is None else step)
    step = (positions[-1] - positions[0]) / (count - 1)
    length = float(np.linalg.norm(step))
    allowed = min(MOST_OFF, max(ROUNDED, OFF_GRID * length))
    off = np.linalg.norm(positions - positions[0] - np.arange(count)[:, None] * step, axis=1)
    if off.max() <= allowed:
        return step
    gaps = np.abs(np.diff(positions @ normal))
    # The lower of the two in the middle: with many slices missing, a gap may be in the middle as well.
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])
    far = [
        f"{sources[k]} and {sources[k + 1]} ({gaps[k]:.4g} mm)"
        for k in np.flatnonzero(np.abs(gaps - usual) > max(ROUNDED, OFF_GRID * usual)).tolist()
    ]
    times = gaps / usual
    if far and (np.abs(times - np.rint(times)) < 0.05).all():
        raise VolumeError(
            f"Slices of the DICOM series {name} are missing: most are {usual:.4g} mm apart, but there is "
            "more "
            f"between {some_of(far)}."
        )
    raise VolumeError(
        f"The slices of a DICOM series must be equally far apart, but those of {name} are not: most are "
        f"{usual:.4g} mm apart{', but not ' + some_of(far) if far else ', but not on one line'}. Resample it "
        "first."
    )

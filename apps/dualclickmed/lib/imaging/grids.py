"""Resamples label maps to the grid of their image, by the nearest voxel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy.ndimage import affine_transform

from ..errors import VolumeError
from .placing import RAS_FROM_LPS, Affine, Placing, apart

SAME_GRID = 0.02
"""How far, in voxels, two grids may differ and still count as one."""
MIN_INSIDE = 0.5
"""A label of which a smaller part lies inside the image belongs to another image."""
_DIGITS = 4
"""Decimals of an index that count; further ones come from rounding and must not decide between voxels."""

_Voxel = TypeVar("_Voxel", bound=np.generic)


def on_grid(
    array: npt.NDArray[_Voxel], placing: Placing, image: Placing, shape: Sequence[int], name: str
) -> tuple[npt.NDArray[_Voxel], list[str]]:
    """A label map at the voxels of an image, and notes.

    Args:
        array: (i, j, k) values of the label map; 0 is what lies outside it.
        placing: where they lie.
        image, shape: where the voxels of the image lie, and its extent along (i, j, k).
        name: of the label's file, for messages.

    Raises:
        VolumeError: axes of the affine coincide, or the label lies elsewhere.
    """
    pairs = _pairs(placing, image)
    if array.shape == tuple(shape):
        if any(apart(label, own, shape) < SAME_GRID for label, own in pairs):
            return array, []
        if any(np.allclose(placing.nibabel, default) for default in (np.eye(4), RAS_FROM_LPS)):
            return array, [
                f"The label file {name} does not tell where it lies: it was taken voxel for voxel."
            ]
    moves = [_move(label, own, name) for label, own in pairs]
    along = [_along_axes(moved, shape) for moved in moves]
    # Where image and label have two readings, whole voxels tell which one the label was made with.
    chosen = next((n for n, steps in enumerate(along) if steps is not None and _is_whole(steps)), 0)
    steps, moved = along[chosen], moves[chosen]
    if steps is not None:
        found = _taken(array, steps, shape)
    else:
        found = affine_transform(
            array, moved[:3, :3], moved[:3, 3], output_shape=tuple(shape), order=0, mode="grid-constant"
        )
    label, own = pairs[chosen]
    before = np.count_nonzero(array) * abs(np.linalg.det(label[:3, :3]))
    after = np.count_nonzero(found) * abs(np.linalg.det(own[:3, :3]))
    if after < MIN_INSIDE * before:
        raise VolumeError(
            f"A label must lie inside its image, but only {100 * after / before:.0f} % of {name} does: "
            "it seems to belong to another image."
        )
    notes = _notes(pairs, shape, name)
    one_to_one = steps is not None and all((np.abs(np.diff(at)) == 1).all() for _, at in steps)
    if steps is None or not (one_to_one and _is_whole(steps)):
        notes.append(
            f"{name} lies on another grid than its image: every voxel of the image took what the nearest one "
            "of the label holds."
        )
    # Where a voxel of the label is one of the image, what is outside can be counted.
    if one_to_one:
        outside = np.count_nonzero(array) - np.count_nonzero(found)
        if outside:
            notes.append(f"{outside} voxels of {name} lie outside the image and were left out.")
    return found, notes


def _pairs(label: Placing, image: Placing) -> list[tuple[Affine, Affine]]:
    """Pairs of affines (label's, image's), each as one program would read both; the most probable first."""
    by_itk = [] if label.itk is None or image.itk is None else [(label.itk, image.itk)]
    by_nibabel = [(label.affine, image.affine)]
    if not label.header:
        return by_itk + by_nibabel
    return [(label.nibabel, image.nibabel), *by_nibabel, *by_itk]


def _move(label: Affine, image: Affine, name: str) -> npt.NDArray[np.float64]:
    """The affine from the image's indices to the label's."""
    lengths = np.linalg.norm(label[:3, :3], axis=0)
    if not (lengths.min() > 0 and abs(np.linalg.det(label[:3, :3] / np.maximum(lengths, 1e-300))) > 1e-6):
        raise VolumeError(
            f"A label's axes must have three directions, but the affine of {name} is {label.tolist()}."
        )
    return np.asarray(np.linalg.inv(label) @ image, dtype=np.float64)


_Steps = list[tuple[int, npt.NDArray[np.float64]]]
"""For each axis of the label: the image's axis that runs along it, and the indices along it."""


def _along_axes(moved: npt.NDArray[np.float64], shape: Sequence[int]) -> _Steps | None:
    """How the image's axes run along the label's; None where they are at an angle."""
    reach = np.abs(moved[:3, :3]) * (np.asarray(shape) - 1)
    axes = np.abs(moved[:3, :3]).argmax(axis=1)
    if len(set(axes.tolist())) < 3:
        return None
    off = reach.copy()
    off[np.arange(3), axes] = 0
    if off.sum(axis=1).max() > SAME_GRID:
        return None
    steps = []
    for row, axis in enumerate(axes.tolist()):
        # What the other axes add is less than `SAME_GRID`; in the middle of the image it counts half.
        middle = sum(moved[row, a] * (shape[a] - 1) / 2 for a in range(3) if a != axis)
        at = moved[row, axis] * np.arange(shape[axis]) + moved[row, 3] + middle
        whole = np.rint(at)
        steps.append((axis, whole if np.abs(at - whole).max() < SAME_GRID else np.round(at, _DIGITS)))
    return steps


def _is_whole(steps: _Steps) -> bool:
    return all(bool((at == np.rint(at)).all()) for _, at in steps)


def _taken(array: npt.NDArray[_Voxel], steps: _Steps, shape: Sequence[int]) -> npt.NDArray[_Voxel]:
    """The nearest voxels, where each voxel of the label reaches half a voxel to either side."""
    axes = [axis for axis, _ in steps]
    target = np.zeros([shape[axis] for axis in axes], dtype=array.dtype)
    sources: list[npt.NDArray[np.int64]] = []
    places: list[npt.NDArray[np.int64]] = []
    for (_, at), size in zip(steps, array.shape, strict=True):
        nearest = np.floor(at + 0.5).astype(np.int64)
        inside = np.flatnonzero((nearest >= 0) & (nearest < size))
        sources.append(nearest[inside])
        places.append(inside)
    target[np.ix_(*places)] = array[np.ix_(*sources)]
    return np.asarray(target.transpose(np.argsort(axes)), order="F")


def _notes(pairs: Sequence[tuple[Affine, Affine]], shape: Sequence[int], name: str) -> list[str]:
    if all(apart(own, pairs[0][1], shape) < SAME_GRID for _, own in pairs[1:]):
        return []
    return [
        f"The image lies at two places (see above), and {name} on neither grid: it was put where "
        "the program that writes such files puts the image."
    ]

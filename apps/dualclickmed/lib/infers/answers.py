"""An answer in the client's terms: voxels in the file's order (i, j, k), the server's label values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from ..configs import wire
from ..errors import PromptError, UserError
from ..experts import DEFAULT_STRATEGY
from ..imaging.label_map import MAX_LABELS, LabelMap, colour_of
from ..imaging.mask_files import LabelledMask, Segment
from ..short_thread import in_short_thread
from .segmenter import Answer

_Voxel = TypeVar("_Voxel", bound=np.generic)


def in_raw_order(answer: Answer, labels: LabelMap) -> tuple[LabelledMask, dict[str, Any]]:
    """The mask with the server's values, and what goes with it; all voxels are raw indices (i, j, k)."""
    volume, result = answer.volume, answer.result
    array = volume.to_raw_array(result.labels)
    # Looked for once: in a large image that takes longer than all else here.
    filled = _filled_part(array)
    changed = filled if answer.before is None else _filled_part(array != volume.to_raw_array(answer.before))
    values = _values(result.values, labels)
    table = np.zeros(256, dtype=np.uint8)
    for label, value in values.items():
        table[result.values[label]] = value
    found = filled[1]
    found[...] = table[found]
    further, homes = _further(answer, array, values)
    parts = [filled, *(_filled_part(layer) for layer in further)]
    measured = {label: _measured(*parts[homes.get(label, 0)], value) for label, value in values.items()}
    mask_file = LabelledMask(
        array,
        volume.affine,
        [Segment(name, value, colour_of(name), homes.get(name, 0)) for name, value in values.items()],
        further,
    )
    return mask_file, {
        wire.LABEL_NAMES: {**labels.values, **values},
        wire.LABELS: values,
        wire.STRATEGIES: {label: result.strategies[label] for label in values},
        wire.VOXELS: {label: count for label, (count, _, _) in measured.items()},
        wire.CENTROIDS: {
            label: [values[label], *centre] for label, (count, centre, _) in measured.items() if count
        },
        wire.BOXES: {label: box for label, (count, _, box) in measured.items() if count},
        wire.CHANGED: _roi(*changed),
        wire.SUGGESTIONS: {
            label: volume.to_raw([voxel])[0].tolist() for label, voxel in result.suggestions().items()
        },
        wire.NOTES: list(answer.notes),
        wire.SHAPE: list(volume.raw_shape),
    }


def _values(found: Mapping[str, int], labels: LabelMap) -> dict[str, int]:
    """The values of an answer's labels: the server's, and free ones for existing labels unknown to it."""
    free = sorted(set(range(1, MAX_LABELS + 1)) - set(labels.values.values()))
    unknown = [label for label in found if label not in labels.values]
    if len(unknown) > len(free):
        raise PromptError(
            f"An answer holds {MAX_LABELS} labels, those of the server included: there are more."
        )
    own = dict(zip(unknown, free, strict=False))
    return {label: own[label] if label in own else labels.values[label] for label in found}


def _further(
    answer: Answer, array: npt.NDArray[np.uint8], values: Mapping[str, int]
) -> tuple[list[npt.NDArray[np.uint8]], dict[str, int]]:
    """Further label maps (i, j, k) for labels that overlap others, and the number of each label's map, from 1
    on.
    """
    further: list[npt.NDArray[np.uint8]] = []
    homes: dict[str, int] = {}
    for label, hidden in answer.beneath.items():
        whole = (array == values[label]) | answer.volume.to_raw_array(hidden)
        array[array == values[label]] = 0
        at = next((n for n, layer in enumerate(further) if not layer[whole].any()), len(further))
        if at == len(further):
            further.append(np.zeros_like(array))
        further[at][whole] = values[label]
        homes[label] = at + 1
    return further, homes


def _measured(
    corner: npt.NDArray[np.int64], part: npt.NDArray[np.uint8], value: int
) -> tuple[int, list[int], list[int]]:
    """A label's number of voxels, its middle voxel and its box, both empty without voxels.

    Args:
        corner: of the part in the image.
        part: the label map there.
        value: the label's.
    """
    mask = part == value
    count, centre = _count_and_centre(mask)
    if not count:
        return 0, [], []
    first, inside = _filled_part(mask)
    return count, np.rint(centre + corner).astype(int).tolist(), _roi(corner + first, inside)


def uncertainty_in_raw_order(answer: Answer) -> LabelledMask:
    """The uncertainty of each voxel, in percent, in place of the mask.

    Raises:
        UserError: the strategy gives no uncertainty.
    """
    if not answer.result.refined:
        raise UserError(
            f"Only the strategy {DEFAULT_STRATEGY!r} tells how unsure it is, except for boxes in PET; "
            "ask for it."
        )
    percent = np.rint(100 * in_short_thread(answer.result.uncertainty)).astype(np.uint8)
    return LabelledMask(answer.volume.to_raw_array(percent), answer.volume.affine, ())


def _roi(corner: npt.NDArray[np.int64], part: npt.NDArray[np.generic]) -> list[int]:
    """A part of the image as requests give boxes, both ends inside; empty for a part without voxels."""
    if not part.size:
        return []
    last = corner + part.shape - 1
    return [int(edge) for pair in zip(corner, last, strict=True) for edge in pair]


def _filled_part(array: npt.NDArray[_Voxel]) -> tuple[npt.NDArray[np.int64], npt.NDArray[_Voxel]]:
    """The smallest part that holds every voxel that is set, as a view, and its first voxel."""
    corner = np.zeros(3, dtype=np.int64)
    part = array
    # The last axis of a file's order varies slowest; each axis leaves less to look at for the next.
    for axis, others in ((2, (0, 1)), (1, (0, 2)), (0, (1, 2))):
        used = np.flatnonzero(part.any(axis=others))
        start, stop = (used[0], used[-1] + 1) if used.size else (0, 0)
        corner[axis] = start
        part = part[tuple(slice(start, stop) if n == axis else slice(None) for n in range(3))]
    return corner, part


def _count_and_centre(mask: npt.NDArray[np.bool_]) -> tuple[int, npt.NDArray[np.float64]]:
    """The number of voxels that are set, and their mean index; zeros for an empty mask."""
    flat = mask.sum(axis=2, dtype=np.int64)
    sums = (flat.sum(axis=1), flat.sum(axis=0), mask.sum(axis=(0, 1), dtype=np.int64))
    count = int(flat.sum())
    centre = [float(along @ np.arange(along.size)) / max(count, 1) for along in sums]
    return count, np.asarray(centre)

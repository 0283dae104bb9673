"""Click constraints: a clicked voxel has the label that the user gave it, whatever a network answered.

Where a network disobeys a click, the label map is corrected in a small patch around it: the voxels of similar
intensity that are connected to the click inside a ball, and the click's six neighbours. A patch holds only
voxels that are nearer to its click than to any other click, so patches never meet, no click undoes another,
and the order of clicks plays no part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import KDTree

from ..imaging.geometry import Index
from ..imaging.prompts import Prompts
from ..imaging.volume import Volume
from .prediction import Prediction, merged_labels_at

PATCH_RADIUS = 2.5
"""Radius of a correction, as a multiple of the voxel's shortest side (in mm)."""
_TIE = 1e-6
"""Distances that differ by less, relatively, are left to the exact comparison."""
_NEIGHBOURS = np.asarray(
    [(-1, 0, 0), (1, 0, 0), (0, -1, 0), (0, 1, 0), (0, 0, -1), (0, 0, 1)], dtype=np.int64
)


@dataclass(frozen=True)
class _Clicked:
    """A clicked voxel: the value of the label it belongs to (0: none) and the labels that exclude it."""

    index: Index
    value: int
    excluded: frozenset[int]


def enforce_clicks(
    labels: npt.NDArray[np.uint8],
    volume: Volume,
    prompts: Mapping[int, Prompts],
    predictions: Sequence[tuple[int, Prediction]],
) -> list[Index]:
    """Correct a label map in place so that it obeys every click.

    Afterwards the voxel of every foreground click has its label's value and that of every background click
    has not. The same holds for at least one of its six neighbours, if one is nearer to this click than to all
    others.

    Args:
        labels: uint8 (D, H, W), as `merge` made it.
        volume: the image; tells which voxels near a click look alike, and how large they are.
        prompts: checked prompts by label value; no voxel may be foreground of two labels.
        predictions: what `labels` was merged from; where a label has to go, the next best takes its place.

    Returns:
        The clicks that had to be enforced.
    """
    clicked = _clicked_voxels(prompts)
    if not clicked:
        return []
    cells = _Cells([c.index for c in clicked], volume)
    enforced = []
    # No patch reaches what another click owns, so that clicks obeyed now are obeyed afterwards.
    for at in np.flatnonzero(~_surely_obeyed(labels, clicked, cells)).tolist():
        click = clicked[at]
        neighbours = cells.owned_neighbours(at)
        if _obeyed(labels, click, neighbours):
            continue
        enforced.append(click.index)
        patch = np.concatenate([cells.similar_around(at), neighbours])
        z, y, x = patch.T
        if click.value:
            labels[z, y, x] = click.value
        else:
            allowed = [(value, p) for value, p in predictions if value not in click.excluded]
            wrong = np.isin(labels[z, y, x], list(click.excluded))
            labels[z[wrong], y[wrong], x[wrong]] = merged_labels_at(patch[wrong], allowed)
    return enforced


def _clicked_voxels(prompts: Mapping[int, Prompts]) -> list[_Clicked]:
    """Every clicked voxel once, foreground first, then by position: the order in which they win ties."""
    value: dict[Index, int] = {}
    excluded: dict[Index, set[int]] = {}
    for label, given in prompts.items():
        value.update(dict.fromkeys(given.foreground, label))
        for index in given.background:
            excluded.setdefault(index, set()).add(label)
    voxels = sorted(value.keys() | excluded.keys(), key=lambda index: (index not in value, index))
    return [_Clicked(index, value.get(index, 0), frozenset(excluded.get(index, ()))) for index in voxels]


def _surely_obeyed(
    labels: npt.NDArray[np.uint8], clicked: Sequence[_Clicked], cells: _Cells
) -> npt.NDArray[np.bool_]:
    """For each click (N,) whether it is obeyed, as `_obeyed` says; where ties need its care, False.

    All clicks at once: most voxels of a scribble are obeyed, and one by one thousands of them cost time.
    """
    rights: dict[tuple[int, frozenset[int]], int] = {}
    kinds = [
        rights.setdefault((c.value, c.excluded if not c.value else frozenset()), len(rights)) for c in clicked
    ]
    table = np.zeros((len(rights), 256), dtype=np.bool_)
    for (value, excluded), row in rights.items():
        table[row] = ~np.isin(np.arange(256), list(excluded)) if not value else np.arange(256) == value
    kind = np.asarray(kinds)
    z, y, x = cells.voxels.T
    around, owned, foreign = cells.neighbours()
    nz, ny, nx = np.moveaxis(around, -1, 0)
    beside = table[kind[:, None], labels[nz, ny, nx]] & owned
    return table[kind, labels[z, y, x]] & (beside.any(axis=1) | foreign.all(axis=1))


def _obeyed(labels: npt.NDArray[np.uint8], click: _Clicked, neighbours: npt.NDArray[np.int64]) -> bool:
    def right(found: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
        return found == click.value if click.value else ~np.isin(found, list(click.excluded))

    z, y, x = neighbours.T
    here = bool(right(labels[click.index][None])[0])
    return here and (len(neighbours) == 0 or bool(right(labels[z, y, x]).any()))


class _Cells:
    """Which voxels are nearer (in mm) to one clicked voxel than to any other; ties go to the earlier one."""

    def __init__(self, voxels: Sequence[Index], volume: Volume) -> None:
        self._volume = volume
        self._spacing = np.asarray(volume.spacing, dtype=np.float64)
        self.voxels = np.asarray(voxels, dtype=np.int64)
        self._tree = KDTree(self.voxels * self._spacing)

    def neighbours(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """The six neighbours of every click.

        Returns:
            voxels (N, 6, 3), moved into the volume; which of them (N, 6) are surely the click's own; and
            which are surely not, those outside the volume among them. A tie is neither.
        """
        around = self.voxels[:, None] + _NEIGHBOURS
        inside = ((around >= 0) & (around < self._volume.shape)).all(axis=-1)
        around = np.clip(around, 0, np.asarray(self._volume.shape) - 1)
        nearest, _ = self._tree.query(around.reshape(-1, 3) * self._spacing, k=2)
        first, second = nearest.reshape(*inside.shape, 2).transpose(2, 0, 1)
        own = np.repeat(self._spacing, 2)
        return around, inside & (second > own * (1 + _TIE)), ~inside | (first < own * (1 - _TIE))

    def owned_neighbours(self, at: int) -> npt.NDArray[np.int64]:
        """Those of the six neighbours (N, 3) of click number `at` that are in the volume and its own."""
        around = self.voxels[at] + _NEIGHBOURS
        around = around[((around >= 0) & (around < self._volume.shape)).all(axis=1)]
        return around[self._owned(at, around)]

    def similar_around(self, at: int) -> npt.NDArray[np.int64]:
        """Click number `at` and the voxels (N, 3) of its own in the ball about it that look like it."""
        centre = self.voxels[at]
        reach = np.floor(PATCH_RADIUS * self._spacing.min() / self._spacing).astype(np.int64)
        start = np.maximum(centre - reach, 0)
        stop = np.minimum(centre + reach + 1, self._volume.shape)
        z, y, x = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
        values = self._volume.region((z, y, x)).numpy()
        voxels = np.stack(np.meshgrid(*map(np.arange, start, stop), indexing="ij"), axis=-1)
        distance = np.linalg.norm((voxels - centre) * self._spacing, axis=-1)

        here = tuple(centre - start)
        # Noise makes a deviation of its own; across an edge the difference is twice the deviation.
        similar = np.abs(values - values[here]) <= values.std()
        chosen = similar & (distance <= PATCH_RADIUS * self._spacing.min())
        chosen[chosen] = self._owned(at, voxels[chosen])
        parts, _ = ndimage.label(chosen)
        return voxels[parts == parts[here]]

    def _owned(self, at: int, voxels: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """For voxels (N, 3) near click number `at`, whether no other click is nearer."""
        if len(voxels) == 0:
            return np.zeros(0, dtype=np.bool_)
        centre = self.voxels[at] * self._spacing
        farthest = np.linalg.norm(voxels * self._spacing - centre, axis=1).max()
        rivals = np.sort(self._tree.query_ball_point(centre, 2 * farthest * (1 + 1e-6)))
        z, y, x = np.square(
            (voxels.T[:, :, None] - self.voxels[rivals].T[:, None]) * self._spacing[:, None, None]
        )
        return rivals[(z + y + x).argmin(axis=1)] == at

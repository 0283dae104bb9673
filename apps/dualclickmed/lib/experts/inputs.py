"""From a volume and prompts to what the networks take; training may use the same functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial import KDTree
from torch import Tensor

from ..imaging.geometry import Box, Index, Outside, Roi, crop_to_grid
from ..imaging.intensity import LOCAL_PERCENTILES, IntensityMap, choose_map, normalise_global, normalise_local
from ..imaging.prompts import Click
from ..imaging.volume import Volume

MAX_CLICKS = 64
"""More clicks than these count as a scribble, of which a sample is enough."""
NETWORK_CLICKS = 8
"""Most clicks that a network sees at once. It was trained with about six: with dozens of right foreground
clicks it takes everything about them for the object (docs/experiments.md)."""
CORE = 0.5
"""Part of each side of a box, about its centre, whose values are taken for the object's."""
_SAMPLES_PER_AXIS = 32


def map_in_box(volume: Volume, box: Box, intensity: str) -> IntensityMap:
    """The intensity map for an object in `box`, by the values in the middle of it.

    Clicks play no part: a correction must not change the contrast of the whole region, which would also make
    its embedding worthless.
    """
    core = box.scaled(CORE).voxels(volume.shape)
    steps = [-(-(s.stop - s.start) // _SAMPLES_PER_AXIS) for s in core]
    z, y, x = (slice(s.start, s.stop, step) for s, step in zip(core, steps, strict=True))
    return _choose(volume, intensity, volume.array[z, y, x])


def map_at_points(volume: Volume, points: Sequence[Index], intensity: str) -> IntensityMap:
    """The intensity map for an object clicked at `points`, by the values there and next to them."""
    around = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(1, -1, 3)
    voxels = np.asarray(points, dtype=np.int64).reshape(-1, 1, 3) + around
    z, y, x = np.clip(voxels, 0, np.asarray(volume.shape) - 1).reshape(-1, 3).T
    return _choose(volume, intensity, volume.array[z, y, x])


def global_input(
    volume: Volume,
    roi: Roi,
    intensity_map: IntensityMap,
    outside: Outside = "zeros",
    samples: float | None = None,
) -> Tensor:
    """The global network's image (1, 1, *roi.grid): grey levels in [0, 255], then z-score.

    `outside` and `samples` are those of `crop_to_grid`.
    """
    grey = crop_to_grid(
        volume.array,
        roi,
        lambda stored: intensity_map(volume.to_real(stored)),
        outside=outside,
        samples=samples,
    )
    return normalise_global(grey)[None, None]


def local_input(
    volume: Volume, window: Roi, intensity_map: IntensityMap, outside: Outside = "zeros"
) -> Tensor:
    """The local network's image (1, 1, *window.grid): the volume's percentiles 1 and 99 as 0 and 1.

    The values pass through [0, 255] first (section 3.2), and so do the percentiles. Outside CT this changes
    nothing, since the map clips less than the percentiles do; in CT it is what gives soft tissue its contrast
    beside air and bone.
    """
    low, high = (
        float(intensity_map(np.asarray([volume.percentile(q)], dtype=np.float32))[0])
        for q in LOCAL_PERCENTILES
    )
    image = crop_to_grid(
        volume.array,
        window,
        lambda stored: normalise_local(intensity_map(volume.to_real(stored)), low, high),
        outside=outside,
    )
    return image[None, None]


def point_prompts(roi: Roi, clicks: Sequence[Click], limit: int = NETWORK_CLICKS) -> tuple[Tensor, Tensor]:
    """The clicks inside a region as a network takes them.

    The result depends on the set of clicks, not on their order. Clicks outside the region are left out: moved
    to its border they would mark other voxels. More than `limit` clicks are thinned: of those of one kind in
    a cell of the grid one is kept, with cells that grow until few enough remain.

    Returns:
        points float32 (1, N, 3) in grid voxels, and labels int64 (1, N): 1 foreground, 0 background.
    """
    inside = sorted({(c.index, c.positive) for c in clicks if roi.box.contains(c.index)})
    points = roi.to_grid([index for index, _ in inside])
    positive = np.asarray([kind for _, kind in inside], dtype=np.int64)
    kept = _thinned(points, positive, limit)
    return (
        torch.from_numpy(points[kept].astype(np.float32))[None],
        torch.from_numpy(positive[kept])[None],
    )


def thinned(points: Sequence[Index], limit: int) -> list[Index]:
    """At most `limit` of the points, spread as they are, in sorted order."""
    ordered = sorted(set(points))
    array = np.asarray(ordered, dtype=np.float64).reshape(-1, 3)
    return [ordered[i] for i in _thinned(array, np.zeros(len(ordered), dtype=np.int64), limit)]


class Clicked(Protocol):
    """A click at a cell of a grid."""

    @property
    def cell(self) -> Index: ...

    @property
    def positive(self) -> bool: ...


ClickedT = TypeVar("ClickedT", bound=Clicked)


def representative_clicks(
    clicks: Sequence[ClickedT],
    step: Sequence[float],
    limit: int = MAX_CLICKS,
    others: Sequence[Clicked] = (),
) -> list[tuple[ClickedT, float]]:
    """Clicks that represent their surroundings, and how far each is from the nearest of the other kind.

    All of them where they are few; of a scribble at most `limit` of each kind, spread as they are
    (`thinned`), since each one costs a look at the whole grid. The order of the clicks plays no part.

    Args:
        clicks: at most one for each cell.
        step: millimetres of a cell along (z, y, x).
        limit: most clicks of a kind.
        others: further clicks, which only count as being of the other kind.

    Returns:
        Clicks, and the millimetres to the nearest of all clicks of the other kind; infinity without one.
    """
    size = np.asarray(step, dtype=np.float64)
    everyone: list[Clicked] = [*clicks, *others]
    found = []
    for kind in (True, False):
        own = {click.cell: click for click in clicks if click.positive == kind}
        rivals = np.asarray([c.cell for c in everyone if c.positive != kind]).reshape(-1, 3)
        cells = thinned(list(own), limit)
        if not len(rivals) or not cells:
            found += [(own[cell], math.inf) for cell in cells]
            continue
        _, nearest = KDTree(rivals * size).query(np.asarray(cells) * size)
        for cell, rival in zip(cells, rivals[nearest], strict=True):
            found.append((own[cell], float(np.linalg.norm((np.asarray(cell) - rival) * size))))
    return found


def _thinned(
    points: npt.NDArray[np.float64], kinds: npt.NDArray[np.int64], limit: int
) -> npt.NDArray[np.int64]:
    kept = np.arange(len(points))
    cell = 1.0
    while len(kept) > limit:
        cells = np.floor((points + 0.5) / cell).astype(np.int64)
        # Stable: the points of a group stay in their order.
        order = np.lexsort([*cells.T[::-1], kinds])
        keys = np.column_stack([kinds, cells])[order]
        starts = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(axis=1)])
        counts = np.diff(np.r_[starts, len(order)])
        # The middle one of a group: the first would pull every scribble towards one corner.
        kept = np.sort(order[starts + counts // 2])
        # In small steps near the end: cells twice as large may hold eight times as many points.
        cell *= 1.5 if len(kept) > 4 * limit else 1.1
    return kept


def _choose(volume: Volume, intensity: str, stored: npt.NDArray[np.generic]) -> IntensityMap:
    sample = volume.to_real(torch.from_numpy(stored.astype(np.float32))).numpy()
    return choose_map(intensity, volume.modality, volume.percentile, sample, volume.value_range)

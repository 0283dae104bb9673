"""Boxes, regions of interest, and resampling between a volume and a region's grid.

One convention holds everywhere. An array is (D, H, W) = (z, y, x); a point is an index triple in that
order. Boxes are half-open and measured in voxel edges: voxel ``p`` covers ``[p, p + 1)`` and has its centre
at ``p + 0.5``. A region of interest divides its box ``[lo, hi)`` into ``n`` equal cells per axis, so that
voxel and grid indices are related by comparing centres::

    grid = (voxel + 0.5 - lo) * n / (hi - lo) - 0.5

This is what ``torch.nn.functional.interpolate`` and ``grid_sample`` do with ``align_corners=False``.

Resampling is separable: each axis has one small matrix of weights, and only the voxels under the region are
read, so the cost depends on the region and not on the volume.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Index: TypeAlias = tuple[int, int, int]
"""A voxel (z, y, x), or a number of voxels along each axis."""
Position: TypeAlias = tuple[float, float, float]
"""A place (z, y, x) in voxel edges, or a length in voxels along each axis."""
Region: TypeAlias = tuple[slice, slice, slice]
"""The voxels of a box: one slice with explicit, non-negative bounds for each axis."""
Outside: TypeAlias = Literal["zeros", "edge", "mirror"]
"""What is beyond the faces of an array: zeros, its outermost entries, or its mirror image in a rim of `RIM`
entries and zeros further out."""

RIM = 8
"""Width of a mirrored rim. In one as wide as a window the mirror images of a small volume's objects draw
corrections away from it; without one, an object that a face cuts ends there (docs/experiments.md)."""

GLOBAL_SCALE = 1.8
"""How much larger than the prompts' box the global region is along each axis (the paper's k, section 2.2)."""
GLOBAL_GRID: Index = (64, 64, 64)
"""The global expert's input size (section 2.2)."""
MIN_SIDE = 8.0
"""Shortest side of a global region in voxels, as in the authors' code: a thinner one is mostly blur."""
LOCAL_WINDOW: Index = (128, 128, 128)
"""The local expert's input size, in voxels of the volume (section 2.2)."""
MERGE_DISTANCE = 16
"""Clicks nearer than this to a local window's centre, in voxels along every axis, share that window."""

_CHUNK_VOXELS = 1 << 20
"""Voxels that `crop_to_grid` converts to float at once: 4 MB, which stays in a core's cache."""


def as_position(values: Iterable[float]) -> Position:
    """Three numbers as a `Position`."""
    z, y, x = (float(value) for value in values)
    return z, y, x


def as_index(values: Iterable[int]) -> Index:
    """Three whole numbers as an `Index`."""
    z, y, x = (int(value) for value in values)
    return z, y, x


def voxels_around(points: Sequence[Index]) -> tuple[Index, Index]:
    """The half-open edges, lowest and highest, of the voxels that hold all `points`, such as two corners.

    Raises:
        ValueError: if there are no points.
    """
    if len(points) == 0:
        raise ValueError("a box around points needs at least one point, got none")
    array = np.asarray(points, dtype=np.int64).reshape(-1, 3)
    return as_index(array.min(axis=0)), as_index(array.max(axis=0) + 1)


def ordered_corners(edges: Sequence[float]) -> tuple[list[float], list[float]]:
    """The lowest and the highest corner of a box (a0, a1, b0, b1, c0, c1); each pair in either order."""
    lo, hi = zip(*(sorted(edges[at : at + 2]) for at in (0, 2, 4)), strict=True)
    return list(lo), list(hi)


@dataclass(frozen=True)
class Box:
    """A half-open box ``[lo, hi)`` in voxel edges, (z, y, x).

    Raises:
        ValueError: unless ``lo < hi`` and both are finite along every axis.
    """

    lo: Position
    hi: Position

    def __post_init__(self) -> None:
        lo, hi = as_position(self.lo), as_position(self.hi)
        if not all(math.isfinite(a) and math.isfinite(b) and a < b for a, b in zip(lo, hi, strict=True)):
            raise ValueError(f"a box needs finite lo < hi along every axis, got lo={lo} and hi={hi}")
        object.__setattr__(self, "lo", lo)
        object.__setattr__(self, "hi", hi)

    @classmethod
    def between(cls, lo: Iterable[float], hi: Iterable[float]) -> Box:
        """The box between two corners, each of three numbers (z, y, x) in voxel edges.

        Raises:
            ValueError: as for the class, and unless there are three numbers.
        """
        return cls(as_position(lo), as_position(hi))

    @classmethod
    def around(cls, points: Sequence[Index]) -> Box:
        """The smallest box that holds the whole of each voxel of `points`.

        Raises:
            ValueError: if there are no points.
        """
        lo, hi = voxels_around(points)
        return cls.between(lo, hi)

    @classmethod
    def of_mask(cls, mask: npt.NDArray[np.generic]) -> Box:
        """The smallest box that holds the whole of each non-zero voxel of `mask` (D, H, W).

        Raises:
            ValueError: if the mask is empty or not 3D.
        """
        if mask.ndim != 3:
            raise ValueError(f"a box of a mask needs a 3D mask, got shape {mask.shape}")
        filled = mask != 0
        lo, hi = [], []
        for others in ((1, 2), (0, 2), (0, 1)):
            used = np.flatnonzero(filled.any(axis=others))
            if used.size == 0:
                raise ValueError("a box of a mask needs at least one voxel in the mask, got none")
            lo.append(used[0])
            hi.append(used[-1] + 1)
        return cls.between(lo, hi)

    @property
    def sides(self) -> Position:
        """Lengths along (z, y, x), in voxels."""
        return as_position([b - a for a, b in zip(self.lo, self.hi, strict=True)])

    @property
    def centre(self) -> Position:
        """The middle, in voxel edges: the centre of voxel ``p`` is ``p + 0.5``."""
        return as_position([(a + b) / 2 for a, b in zip(self.lo, self.hi, strict=True)])

    def union(self, other: Box) -> Box:
        """The smallest box that holds both."""
        lo = [min(a, b) for a, b in zip(self.lo, other.lo, strict=True)]
        hi = [max(a, b) for a, b in zip(self.hi, other.hi, strict=True)]
        return Box.between(lo, hi)

    def lies_in(self, shape: Sequence[int]) -> bool:
        """Whether no part of it is outside an image of `shape`."""
        return min(self.lo) >= 0 and all(hi <= size for hi, size in zip(self.hi, shape, strict=True))

    def scaled(self, factor: float) -> Box:
        """The same centre, with each side `factor` times as long.

        Raises:
            ValueError: if `factor` is not positive.
        """
        return self._with_sides([side * factor for side in self.sides])

    def at_least(self, side: float) -> Box:
        """The same centre, with no side shorter than `side` voxels; longer sides keep their exact bounds."""
        if min(self.sides) >= side:
            return self
        return self._with_sides([max(length, side) for length in self.sides])

    def contains(self, index: Index) -> bool:
        """Whether the centre of voxel `index` lies inside."""
        return all(a <= p + 0.5 < b for a, p, b in zip(self.lo, index, self.hi, strict=True))

    def voxels(self, shape: Sequence[int]) -> Region:
        """The voxels that the box touches, cut to an image of `shape`; possibly empty slices."""
        return _region([_cut(math.floor(a), math.ceil(b), n) for a, b, n in self._axes(shape)])

    def centres(self, shape: Sequence[int]) -> Region:
        """The voxels whose centre the box contains, cut to an image of `shape`; possibly empty slices."""
        return _region([_cut(math.ceil(a - 0.5), math.ceil(b - 0.5), n) for a, b, n in self._axes(shape)])

    def _axes(self, shape: Sequence[int]) -> list[tuple[float, float, int]]:
        return list(zip(self.lo, self.hi, shape, strict=True))

    def _with_sides(self, sides: Sequence[float]) -> Box:
        lo, hi = list(self.lo), list(self.hi)
        for axis, (side, old, middle) in enumerate(zip(sides, self.sides, self.centre, strict=True)):
            if side != old:
                lo[axis], hi[axis] = middle - side / 2, middle + side / 2
        return Box.between(lo, hi)


@dataclass(frozen=True)
class Roi:
    """A region of interest: a box and the number of equal cells (z, y, x) that it is divided into.

    Raises:
        ValueError: if the grid has an axis without cells.
    """

    box: Box
    grid: Index

    def __post_init__(self) -> None:
        grid = as_index(self.grid)
        if min(grid) < 1:
            raise ValueError(f"a region's grid needs at least one cell along every axis, got {grid}")
        object.__setattr__(self, "grid", grid)

    @property
    def spacing(self) -> Position:
        """Size of a grid cell along (z, y, x), in voxels; above 1 where the region is shrunk."""
        return as_position([side / n for side, n in zip(self.box.sides, self.grid, strict=True)])

    @property
    def is_aligned(self) -> bool:
        """Whether every grid cell is exactly one voxel, so that resampling is copying."""
        whole = all(edge == math.floor(edge) for edge in self.box.lo)
        return whole and self.box.sides == as_position(self.grid)

    def to_grid(self, points: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Voxel indices (N, 3) to grid indices (N, 3), as float64; nothing is rounded or clipped."""
        lo, hi, n = self._arrays()
        return (_rows(points) + 0.5 - lo) * n / (hi - lo) - 0.5

    def to_voxel(self, points: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Grid indices (N, 3) to voxel indices (N, 3), as float64: the inverse of `to_grid`."""
        lo, hi, n = self._arrays()
        return (_rows(points) + 0.5) * (hi - lo) / n + lo - 0.5

    def cell(self, index: Index) -> Index:
        """The grid cell that the centre of a voxel of the region lies in."""
        return as_index(((np.asarray(index) + 0.5 - self.box.lo) / self.spacing).astype(np.int64))

    def box_to_voxel(self, box: Box) -> Box:
        """A box in edges of grid cells as one in voxel edges; nothing is rounded or clipped."""
        lo, hi = self.to_voxel(np.asarray([box.lo, box.hi]) - 0.5) + 0.5
        return Box.between(lo, hi)

    def _arrays(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        lo, hi, n = (np.asarray(values, dtype=np.float64) for values in (self.box.lo, self.box.hi, self.grid))
        return lo, hi, n


@dataclass(frozen=True)
class AxisWeights:
    """How samples are made from the entries of an axis: ``out = matrix @ entries[start:stop]``.

    Attributes:
        start: first entry that has weight in any sample.
        matrix: float32 (samples, stop - start); without columns where no entry has weight.
    """

    start: int
    matrix: Tensor

    @property
    def stop(self) -> int:
        """One behind the last entry that has weight."""
        return self.start + self.matrix.shape[1]


def global_roi(
    box: Box, scale: float = GLOBAL_SCALE, grid: Index = GLOBAL_GRID, min_side: float = MIN_SIDE
) -> Roi:
    """The global expert's region (section 2.2): `box` made `scale` times longer along each axis.

    The centre stays. The enlarged sides are at least `min_side` voxels. It may reach outside the image.
    """
    return Roi(box.scaled(scale).at_least(min_side), grid)


def window_at(centre: Index, size: Index = LOCAL_WINDOW) -> Roi:
    """The region of `size` voxels, copied one to one, whose grid index ``size // 2`` is voxel `centre`."""
    lo = [p - n // 2 for p, n in zip(centre, size, strict=True)]
    hi = [a + n for a, n in zip(lo, size, strict=True)]
    return Roi(Box.between(lo, hi), size)


def local_windows(
    points: Sequence[Index],
    size: Index = LOCAL_WINDOW,
    merge: int = MERGE_DISTANCE,
    in_order: bool = False,
) -> list[Roi]:
    """The local expert's regions: `window_at` each click, unless an earlier window's centre is close.

    The paper crops about the last click (section 2.2). A request does not say which click is the last, so
    every click gets a window, and a click nearer than `merge` voxels along every axis to a window's centre
    shares that window. Clicks are taken in sorted order: the result does not depend on the order in which
    they came, unless they are `in_order`; a further click then moves no window.
    """
    centres: list[Index] = []
    voxels = dict.fromkeys(as_index(point) for point in points)
    for point in voxels if in_order else sorted(voxels):
        if all(max(abs(p - c) for p, c in zip(point, centre, strict=True)) >= merge for centre in centres):
            centres.append(point)
    return [window_at(centre, size) for centre in centres]


def axis_weights(
    positions: npt.ArrayLike, size: int, support: float = 1.0, outside: Outside = "zeros"
) -> AxisWeights:
    """Weights of linear interpolation along one axis.

    A sample at position ``x`` gives entry ``p`` the triangle ``max(0, 1 - |p - x| / support)``, normalised
    over all integers ``p``; `outside` says what entries outside the axis are.

    Args:
        positions: (M,) where to sample, in entry indices (the first entry's centre is 0).
        size: number of entries of the axis.
        support: half the triangle's base in entries, at least 1. 1 is plain linear interpolation; the shrink
            factor makes an antialiased reduction.
        outside: what is beyond the first and the last entry.

    Raises:
        ValueError: if `support` is below 1 or `size` below 1.
    """
    if support < 1 or size < 1:
        raise ValueError(f"interpolation needs support >= 1 and size >= 1, got {support} and {size}")
    x = np.asarray(positions, dtype=np.float64).reshape(-1)
    if outside == "edge":
        # Far outside everything is the edge's value; so the number of weights stays small.
        x = np.clip(x, -support, size - 1 + support)
    first = np.ceil(x - support).astype(np.int64)
    taps = first[:, None] + np.arange(math.floor(2 * support) + 1)
    weights = np.maximum(0.0, 1.0 - np.abs(taps - x[:, None]) / support)
    weights /= weights.sum(axis=1, keepdims=True)
    if outside == "edge":
        taps = np.clip(taps, 0, size - 1)
    elif outside == "mirror":
        reached = (taps >= -RIM) & (taps < size + RIM)
        taps = np.mod(taps, 2 * size)
        taps = np.where(reached, np.minimum(taps, 2 * size - 1 - taps), -1)

    used = (weights > 0) & (taps >= 0) & (taps < size)
    if not used.any():
        return AxisWeights(0, torch.zeros(len(x), 0))
    start, stop = int(taps[used].min()), int(taps[used].max()) + 1
    matrix = np.zeros((len(x), stop - start), dtype=np.float32)
    rows = np.broadcast_to(np.arange(len(x))[:, None], taps.shape)
    np.add.at(matrix, (rows[used], taps[used] - start), weights[used])
    return AxisWeights(start, torch.from_numpy(matrix))


def crop_to_grid(
    volume: npt.NDArray[np.generic],
    roi: Roi,
    transform: Callable[[Tensor], Tensor] | None = None,
    antialias: bool = True,
    outside: Outside = "zeros",
    samples: float | None = None,
) -> Tensor:
    """Resample the part of `volume` under `roi` to the region's grid.

    Interpolation is trilinear. Along an axis where the region is shrunk, `antialias` widens the triangle by
    the shrink factor, as ``interpolate(antialias=True)`` does; without it the result equals ``grid_sample``
    with ``align_corners=False`` and ``padding_mode="zeros"``. An aligned region (one cell per voxel) is
    copied exactly.

    Args:
        volume: (D, H, W), any real dtype; only the voxels that carry weight are read.
        roi: the region; it may lie partly or wholly outside the volume.
        transform: maps float32 voxels to float32 voxels one by one, before interpolation; it is called on
            pieces of the region.
        antialias: see above.
        outside: what is outside the volume; zeros are those after `transform`.
        samples: where a cell covers more voxels than twice this along an axis, read only every n-th of them,
            so that at least this many are left of each cell; None reads all. For looks at a large volume
            that need not be exact.

    Returns:
        float32 tensor of shape ``roi.grid``.

    Raises:
        ValueError: if `volume` is not 3D.
    """
    if volume.ndim != 3:
        raise ValueError(f"a crop needs a 3D volume, got shape {volume.shape}")
    if roi.is_aligned and (outside == "zeros" or roi.box.lies_in(volume.shape)):
        return _copy_window(volume, roi, transform)

    steps = [1 if samples is None else max(1, int(spacing / samples)) for spacing in roi.spacing]
    volume = volume[:: steps[0], :: steps[1], :: steps[2]]
    axes = []
    for size, lo, spacing, cells, step in zip(
        volume.shape, roi.box.lo, roi.spacing, roi.grid, steps, strict=True
    ):
        centres = ((np.arange(cells) + 0.5) * spacing + lo - 0.5) / step
        axes.append(axis_weights(centres, size, max(1.0, spacing / step) if antialias else 1.0, outside))
    z, y, x = axes
    region = volume[z.start : z.stop, y.start : y.stop, x.start : x.stop]
    if region.size == 0:
        return torch.zeros(roi.grid)

    # Slabs of a few slices shrink to the grid's height and width while they are in the cache.
    planes = torch.empty(region.shape[0], roi.grid[1], roi.grid[2])
    step = max(1, _CHUNK_VOXELS // (region.shape[1] * region.shape[2]))
    for begin in range(0, region.shape[0], step):
        slab = _as_float(region[begin : begin + step], transform)
        planes[begin : begin + step] = y.matrix @ (slab @ x.matrix.T)
    return (z.matrix @ planes.flatten(1)).reshape(roi.grid)


def resampled(values: Tensor, source: Roi, target: Roi) -> Tensor:
    """Values (of shape ``source.grid``) at the cells of another region; outside the source as at its edge."""
    weights = []
    for count, lo, size, start, cell, cells in zip(
        target.grid, target.box.lo, target.spacing, source.box.lo, source.spacing, source.grid, strict=True
    ):
        centres = lo + (np.arange(count) + 0.5) * size
        weights.append(axis_weights((centres - start) / cell - 0.5, cells, outside="edge"))
    z, y, x = weights
    part = values[z.start : z.stop, y.start : y.stop, x.start : x.stop]
    planes = y.matrix @ (part @ x.matrix.T)
    return (z.matrix @ planes.flatten(1)).reshape(target.grid)


def paste_from_grid(values: Tensor, roi: Roi, shape: Sequence[int]) -> tuple[Region, Tensor]:
    """Resample values on a region's grid at the voxels of an image of `shape`.

    Interpolation is trilinear; between the box's faces and the outermost cell centres the edge values are
    held. An aligned region is copied exactly.

    Args:
        values: tensor of shape ``roi.grid``.
        roi: the region.
        shape: the image's (D, H, W).

    Returns:
        The voxels whose centre lies inside ``roi.box`` and inside the image, as slices (possibly empty),
        and a float32 tensor with the values there.

    Raises:
        ValueError: if `values` does not have the grid's shape.
    """
    if tuple(values.shape) != roi.grid:
        raise ValueError(f"values to paste need the grid's shape {roi.grid}, got {tuple(values.shape)}")
    region = roi.box.centres(shape)
    result = values.float()
    if roi.is_aligned:
        starts = [voxels.start - int(lo) for voxels, lo in zip(region, roi.box.lo, strict=True)]
        lengths = [voxels.stop - voxels.start for voxels in region]
        z, y, x = (slice(a, a + n) if n else slice(0, 0) for a, n in zip(starts, lengths, strict=True))
        return region, result[z, y, x].clone()

    # From the first axis to the last, so that the largest product, along x, has contiguous rows.
    for axis, voxels in enumerate(region):
        centres = np.arange(voxels.start, voxels.stop) + 0.5 - roi.box.lo[axis]
        weights = axis_weights(centres / roi.spacing[axis] - 0.5, roi.grid[axis], outside="edge")
        entries = result.narrow(axis, weights.start, weights.stop - weights.start)
        matrix = weights.matrix.to(result.device)
        if axis == 0:
            result = (matrix @ entries.flatten(1)).reshape(-1, *entries.shape[1:])
        elif axis == 1:
            result = matrix @ entries
        else:
            result = entries @ matrix.T
    return region, result


def _copy_window(
    volume: npt.NDArray[np.generic], roi: Roi, transform: Callable[[Tensor], Tensor] | None
) -> Tensor:
    result = torch.zeros(roi.grid)
    z, y, x = roi.box.voxels(volume.shape)
    part = volume[z, y, x]
    if part.size:
        target = [
            slice(voxels.start - int(lo), voxels.stop - int(lo))
            for voxels, lo in zip((z, y, x), roi.box.lo, strict=True)
        ]
        result[target[0], target[1], target[2]] = _as_float(part, transform)
    return result


def _as_float(voxels: npt.NDArray[np.generic], transform: Callable[[Tensor], Tensor] | None) -> Tensor:
    values = torch.from_numpy(voxels.astype(np.float32))
    return values if transform is None else transform(values)


def _rows(points: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return np.asarray(points, dtype=np.float64).reshape(-1, 3)


def _cut(start: int, stop: int, size: int) -> slice:
    start = min(max(start, 0), size)
    return slice(start, min(max(stop, start), size))


def _region(slices: Sequence[slice]) -> Region:
    z, y, x = slices
    return z, y, x

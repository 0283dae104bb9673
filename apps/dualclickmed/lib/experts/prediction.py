"""Logits in the part of a volume where they matter, and label maps made of several of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from torch import Tensor

from ..imaging.geometry import Box, Position, Region, Roi, paste_from_grid

LEAST_INSIDE, LARGEST_PART = 0.5, 0.7
"""A part lies inside the whole by at least the first share of its own voxels, and has at most the second
share of the whole's."""
SHELL, LEAST_AROUND = 2, 0.2
"""The whole is on at least this share of the voxels up to so many outside the part: what lies beside an
object is none of its parts, though its box may reach there."""
LEAST_BOX_INSIDE = 0.9
"""The same of the parts' boxes: users draw them a little off."""
NOWHERE: Region = (slice(0, 0), slice(0, 0), slice(0, 0))


@dataclass(frozen=True)
class Prediction:
    """One object's logits at the voxels of `region`; everything outside is background.

    Attributes:
        region: which voxels (z, y, x), as slices; possibly none.
        logits: float32, as large as the region; the object is where they are above 0.
        handicap: what its logits are lowered by where they are compared with those of another object.
        part_of: values of the objects that this one is a part of: it takes its voxels from them, whatever
            the logits.
    """

    region: Region
    logits: npt.NDArray[np.float32]
    handicap: float = 0.0
    part_of: frozenset[int] = frozenset()

    @property
    def nbytes(self) -> int:
        return self.logits.nbytes

    def claims(self, part: Region) -> npt.NDArray[np.float32]:
        """Logits as they are compared with those of other objects, in a part of the region."""
        return self.logits[part] - np.float32(self.handicap) if self.handicap else self.logits[part]

    def trimmed(self) -> Prediction:
        """The same object in the smallest region that holds all of it."""
        part = filled_region(self.logits > 0)
        z, y, x = (
            slice(whole.start + s.start, whole.start + s.stop)
            for whole, s in zip(self.region, part, strict=True)
        )
        return replace(self, region=(z, y, x), logits=np.ascontiguousarray(self.logits[part]))

    def at(self, points: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Logits at voxels (N, 3) of the volume; minus infinity outside the region."""
        starts = np.asarray([s.start for s in self.region])
        stops = np.asarray([s.stop for s in self.region])
        inside = ((points >= starts) & (points < stops)).all(axis=1)
        values = np.full(len(points), -np.inf, dtype=np.float32)
        z, y, x = (points[inside] - starts).T
        values[inside] = self.logits[z, y, x]
        return values


def paste_object(logits: Tensor, roi: Roi, shape: Sequence[int]) -> Prediction:
    """Logits on a region's grid as a prediction at the volume's voxels.

    Interpolation gives a positive value only next to a positive cell, so only that part of the region is
    resampled: about a sixth of it, as the region is 1.8 times the prompts' box along each axis.

    Args:
        logits: on the CPU, of shape ``roi.grid``.
        roi: the region.
        shape: the volume's (D, H, W).
    """
    found = filled_region((logits > 0).numpy())
    if found == NOWHERE:
        return Prediction(NOWHERE, np.zeros((0, 0, 0), dtype=np.float32))
    cells = [slice(max(s.start - 1, 0), min(s.stop + 1, n)) for s, n in zip(found, roi.grid, strict=True)]
    z, y, x = cells
    region, values = paste_from_grid(logits[z, y, x], _part(roi, cells), shape)
    return Prediction(region, values.numpy())


def merge(shape: Sequence[int], predictions: Sequence[tuple[int, Prediction]]) -> npt.NDArray[np.uint8]:
    """A label map: of the objects whose logit is above 0, each voxel takes the value of the one with the
    highest, after their handicaps. An object has no voxel that one of its parts claims.

    Args:
        shape: the volume's (D, H, W).
        predictions: values (1 to 255) and predictions, several for one value where an object has several
            parts; of equal logits the earlier one in this sequence wins.

    Returns:
        uint8 (D, H, W), 0 where no object is.
    """
    labels = np.zeros(tuple(shape), dtype=np.uint8)
    for at, (value, prediction) in enumerate(predictions):
        wins = prediction.logits > 0
        for _, part in predictions:
            shared = intersection(prediction.region, part.region) if value in part.part_of else None
            if shared is not None:
                wins[within(shared, prediction.region)] &= part.logits[within(shared, part.region)] <= 0
        for other_value, other in predictions[:at]:
            shared = intersection(prediction.region, other.region)
            if shared is None:
                continue
            mine, theirs = within(shared, prediction.region), within(shared, other.region)
            held = labels[shared] == other_value
            wins[mine] &= ~(held & (other.claims(theirs) >= prediction.claims(mine)))
        labels[prediction.region][wins] = value
    return labels


def merged_labels_at(
    points: npt.NDArray[np.int64], predictions: Sequence[tuple[int, Prediction]]
) -> npt.NDArray[np.uint8]:
    """What `merge` gives at voxels (N, 3)."""
    best = np.full(len(points), -np.inf, dtype=np.float32)
    values = np.zeros(len(points), dtype=np.uint8)
    found = [prediction.at(points) for _, prediction in predictions]
    for (value, prediction), logits in zip(predictions, found, strict=True):
        claims = np.where(logits > 0, logits - np.float32(prediction.handicap), -np.inf)
        for (_, part), theirs in zip(predictions, found, strict=True):
            if value in part.part_of:
                claims[theirs > 0] = -np.inf
        values[claims > best] = value
        best = np.maximum(best, claims)
    return values


def parts_of(
    predictions: Mapping[int, Sequence[Prediction]], boxes: Mapping[int, Box] | None = None
) -> dict[int, frozenset[int]]:
    """Which objects are parts of which others: those that lie mostly inside a much larger one, by their boxes
    or as they were found.

    Args:
        predictions: value to predictions, each object's as found alone.
        boxes: value to the box that the user drew, where there is one.

    Returns:
        For every value, the values of the objects that it is a part of.
    """
    if len(predictions) < 2:
        return {value: frozenset() for value in predictions}
    drawn = boxes or {}
    masks = {value: _one_mask(parts) for value, parts in predictions.items()}
    sizes = {value: int(np.count_nonzero(mask)) for value, (_, mask) in masks.items()}
    wholes: dict[int, set[int]] = {value: set() for value in predictions}
    for value, other in itertools.permutations(predictions, 2):
        if sizes[value] == 0 or sizes[other] == 0:
            continue
        nested = value in drawn and other in drawn and _holds(drawn[other], drawn[value])
        smaller = sizes[value] <= LARGEST_PART * sizes[other]
        if (nested or smaller) and _surrounds(masks[other], masks[value], nested):
            wholes[value].add(other)
    return {value: frozenset(found) for value, found in wholes.items()}


def _one_mask(parts: Sequence[Prediction]) -> tuple[Region, npt.NDArray[np.bool_]]:
    """Where an object was found: a region and the mask in it."""
    region = enclosing_region([part.trimmed().region for part in parts])
    mask = np.zeros([s.stop - s.start for s in region], dtype=np.bool_)
    for part in parts:
        shared = intersection(part.region, region)
        if shared is not None:
            mask[within(shared, region)] |= part.logits[within(shared, part.region)] > 0
    return region, mask


def _surrounds(
    whole: tuple[Region, npt.NDArray[np.bool_]], part: tuple[Region, npt.NDArray[np.bool_]], nested: bool
) -> bool:
    """Whether one mask lies in another: the voxels that it shares with it, and those just outside it."""
    (region, mask), (place, mine) = whole, part
    margin = SHELL + 1
    z, y, x = (slice(s.start - margin, s.stop + margin) for s in place)
    wider = (z, y, x)
    mine = np.pad(mine, margin)
    theirs = np.zeros_like(mine)
    shared = intersection(wider, region)
    if shared is None:
        return False
    theirs[within(shared, wider)] = mask[within(shared, region)]
    shell = ndimage.binary_dilation(mine, iterations=SHELL) & ~mine
    inside = np.count_nonzero(mine & theirs) / np.count_nonzero(mine)
    around = np.count_nonzero(shell & theirs) / np.count_nonzero(shell)
    return bool((nested or inside >= LEAST_INSIDE) and around >= LEAST_AROUND)


def _holds(whole: Box, part: Box) -> bool:
    """Whether a box lies in a much larger one, but for a little."""
    shared = [
        max(0.0, min(a, b) - max(c, d))
        for a, b, c, d in zip(whole.hi, part.hi, whole.lo, part.lo, strict=True)
    ]
    mine, theirs, common = (math.prod(sides) for sides in (part.sides, whole.sides, shared))
    return mine <= LARGEST_PART * theirs and common >= LEAST_BOX_INSIDE * mine


def filled_region(mask: npt.NDArray[np.generic]) -> Region:
    """The smallest region that holds every non-zero voxel; `NOWHERE` if there is none."""
    return Box.of_mask(mask).voxels(mask.shape) if mask.any() else NOWHERE


def enclosing_region(regions: Sequence[Region]) -> Region:
    """The smallest region that holds all of those that are not empty."""
    filled = [region for region in regions if all(s.stop > s.start for s in region)]
    if not filled:
        return NOWHERE
    z, y, x = (
        slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*filled, strict=True)
    )
    return z, y, x


def within(inner: Region, outer: Region) -> Region:
    """The voxels of `inner`, a part of `outer`, counted from where `outer` begins."""
    z, y, x = (slice(a.start - b.start, a.stop - b.start) for a, b in zip(inner, outer, strict=True))
    return z, y, x


def intersection(a: Region, b: Region) -> Region | None:
    """The voxels of both regions; None if there are none."""
    z, y, x = (slice(max(s.start, t.start), min(s.stop, t.stop)) for s, t in zip(a, b, strict=True))
    return (z, y, x) if all(s.start < s.stop for s in (z, y, x)) else None


def _part(roi: Roi, cells: Sequence[slice]) -> Roi:
    """Some cells of a region as a region of its own."""
    lo, hi, grid = [], [], []
    for s, n, a, b, size in zip(cells, roi.grid, roi.box.lo, roi.box.hi, roi.spacing, strict=True):
        lo.append(a + s.start * size)
        # Rounding must not lose the voxels at the region's own end.
        hi.append(b if s.stop == n else a + s.stop * size)
        grid.append(s.stop - s.start)
    return Roi(Box(_triple(lo), _triple(hi)), (grid[0], grid[1], grid[2]))


def _triple(values: Sequence[float]) -> Position:
    return values[0], values[1], values[2]

"""Logits in the part of a volume where they matter, and label maps made of several of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..imaging.geometry import Box, Region, Roi, paste_from_grid

NOWHERE: Region = (slice(0, 0), slice(0, 0), slice(0, 0))


@dataclass(frozen=True)
class Prediction:
    """One object's logits at the voxels of `region`; everything outside is background.

    Attributes:
        region: which voxels (z, y, x), as slices; possibly none.
        logits: float32, as large as the region; the object is where they are above 0.
        handicap: what its logits are lowered by where they are compared with those of another object.
    """

    region: Region
    logits: npt.NDArray[np.float32]
    handicap: float = 0.0

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
    highest, after their handicaps.

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
        values[claims > best] = value
        best = np.maximum(best, claims)
    return values


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
    return Roi(Box.between(lo, hi), (grid[0], grid[1], grid[2]))

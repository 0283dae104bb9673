"""The last step of `strategy=fused`: a network's logits, refined by the image's edges and the clicks.

The prior of a cell is the sum of four logits: the network's; the log ratio of how common the cell's intensity
is inside the object and around it; the evidence of the clicks; and a penalty outside the box. All but the
first are estimated anew for every request. A random walk with this prior (`random_walker`) moves the border
to edges of the image; clicked cells are its seeds.

A click is evidence for the cells that are near and look alike. How far it reaches follows from where it is:
users correct what is most wrong, and click into the middle of it, so a click that contradicts the mask that
they saw reaches about as far as that mask's border, and never beyond half way to a click of the other kind.
One that agrees with the mask changes nothing, and is a seed in later steps. Far from a new click the previous
mask is kept (`held_away_from_clicks`), which is why a correction rarely harms.

docs/fusion.md says where each constant was chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import edt
import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from ...imaging.geometry import Box, Index, Roi, crop_to_grid
from ...imaging.volume import Volume
from ..inputs import representative_clicks
from .random_walker import Field, edge_weights, solve

Mask = npt.NDArray[np.bool_]

MOST_CELLS = 64
"""Cells along an axis at most: one for each voxel in a small region, wider ones in a large one."""
NETWORK_WEIGHT, NETWORK_LIMIT = 1.5, 4.0
"""Weight of the network's logits, and the range they are clipped to then: the network is over-confident."""
INTENSITY_WEIGHT, INTENSITY_LIMIT = 0.5, 3.0
"""Weight of the log ratio of intensities, and the range it is clipped to first."""
BOX_SLOPE, BOX_LIMIT = 16.0, 6.0
"""Logit taken from a cell outside the box for each half side that it is away, and the most that is taken."""
NEAR_BOX = 1.15
"""Up to here, in half sides of the box, cells may count as object when intensities are learned."""
CLICK_LOGIT = 6.0
"""What a click adds to its own cell."""
CLICK_REACH = 1.3
"""How far a click reaches, as a multiple of its depth in what it contradicts."""
LEAST_DEPTH = 1.0
"""Depth of a click that contradicts nothing, in shortest sides of a cell."""
RIVAL_SHARE = 0.5
"""Part of the way to the nearest click of the other kind that a click may reach."""
CLICK_WIDTH = 0.07
"""Difference of rank at which a cell no longer looks like the clicked one (one standard deviation)."""
HELD = 0.15
"""Logit by which a new answer must be beyond 0 to change the previous mask away from the click."""
HELD_FROM = 2.0
"""Distance, in multiples of the click's reach, at which 0.4 of `HELD` applies; far beyond it all of it."""
FAR_SHARE = 1.0
"""Cells that clicks without a box may change beyond their reach, for each that they change within it."""
KEPT_LOGIT = 0.05
"""Logit of a cell that keeps its side because of `FAR_SHARE`: hardly any, because its answer was another."""
CONTRAST, LEAST_LINK = 1.0, 1e-3
"""Difference that counts as an edge, in median differences of neighbours; the smallest edge weight."""
TRUST = 0.1
"""Weight of the prior against the edges where the prior is certain."""
UNSURE = 0.2
"""The same where the prior knows nothing, as a part of `TRUST`."""
SHORT_SIDE = 10.0
"""Cells along a side of the box below which walkers step less readily along that axis: steps that hardly move
the border of a large object must not lead out of one of three slices."""
SHRUNK, SHRUNK_FAR = 0.43, 0.1
"""A random walk shrinks small and thin objects, so the threshold of the mask may be lowered from 0.5 to the
one that keeps the prior's volume. It is lowered to there if that one is at least `SHRUNK`, and not at all if
it is at most `SHRUNK_FAR`, because image edges then removed the volume. Between the two it is lowered by a
part of that difference, which rises linearly from 0 to 1."""
ELLIPSOID_SLOPE = np.float32(3.0)
"""Logit of the ellipsoid in the middle of its box, falling to 0 on its surface."""
BINS, BLUR, FLOOR = 32, 1.5, 0.05
"""Bins along each axis of a histogram of two, their blur, and the share of the region's own mixed in."""
_LEVELS = 1024
_LEAST = 1e-4
_CLIPPED = (0.5, 99.5)


@dataclass(frozen=True, eq=False)
class RegionFeatures:
    """Features of a region's image, which do not depend on the prompts.

    Attributes:
        roi: the region; its grid is that of all arrays.
        step: millimetres of a cell along (z, y, x).
        links: edge weights along each axis, in (0, 1 + `LEAST_LINK`].
        rank: in [0, 1), the share of the region that is darker than the mean of a cell's 3^3 surroundings.
        kind: a cell's bin in the histogram of two axes, its own intensity and that mean.
    """

    roi: Roi
    step: tuple[float, float, float]
    links: tuple[Field, Field, Field]
    rank: Field
    kind: npt.NDArray[np.int16]

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in (*self.links, self.rank, self.kind))

    @classmethod
    def of(cls, volume: Volume, box: Box) -> RegionFeatures:
        """The features of the region of all voxels whose centres are in `box`.

        Raises:
            ValueError: there is none.
        """
        region = box.centres(volume.shape)
        lo, hi = (tuple(float(getattr(s, end)) for s in region) for end in ("start", "stop"))
        sides = [s.stop - s.start for s in region]
        z, y, x = (min(MOST_CELLS, side) for side in sides)
        roi = Roi(Box.between(lo, hi), (z, y, x))
        dz, dy, dx = (a * b for a, b in zip(roi.spacing, volume.spacing, strict=True))
        image = crop_to_grid(volume.array, roi, volume.to_real).numpy()
        low, high = np.percentile(image, _CLIPPED)
        image = np.clip((image - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
        mean = ndimage.uniform_filter(image, 3, mode="nearest")
        rank = _ranks(mean)
        kind = (_ranks(image) * BINS).astype(np.int16) * BINS + (rank * BINS).astype(np.int16)
        links = edge_weights(image, (dz, dy, dx), CONTRAST * _usual_difference(image), LEAST_LINK)
        return cls(roi, (dz, dy, dx), links, rank, kind)

    def cell(self, index: Index) -> Index:
        """The cell that a voxel of the region lies in."""
        return self.roi.cell(index)


@dataclass(frozen=True)
class CellClick:
    """A click at a cell of a region."""

    cell: Index
    positive: bool


@dataclass(frozen=True, eq=False)
class ClickEvidence:
    """How strongly clicks claim every cell of a region for the object or for the background.

    Attributes:
        fore, back: of each kind of click, in [0, 1]: 1 at a click, 0 where none reaches.
    """

    fore: Field
    back: Field

    @classmethod
    def nothing(cls, shape: Index) -> ClickEvidence:
        return cls(np.zeros(shape, np.float32), np.zeros(shape, np.float32))

    @property
    def balance(self) -> Field:
        """1 at a foreground click, -1 at one of the background."""
        return self.fore - self.back


@dataclass(frozen=True, eq=False)
class Depths:
    """Depth in mm of a click at each cell, inside the region where it would correct the mask; 0 elsewhere.

    Each kind's are computed when they are first asked for: most clicks need one.

    Attributes:
        step: millimetres of a cell along (z, y, x).
        before: the mask.
        missing: what the mask may lack.
    """

    step: tuple[float, float, float]
    before: Mask
    missing: Mask

    @classmethod
    def of(cls, features: RegionFeatures, before: Mask, box: Box | None) -> Depths:
        """Depths of clicks that correct a mask: distances to the border of the part to be corrected.

        Args:
            features: of the region.
            before: the mask that the user saw.
            box: around the object, if the user drew one.
        """
        # A foreground click contradicts what is not in the mask but in the box, and no more than that.
        missing = ~before if box is None else ~before & (beyond(features.roi, box) <= 0)
        return cls(features.step, before, missing)

    @cached_property
    def fore(self) -> Field:
        """Of foreground clicks, inside what the mask lacks."""
        return self._inside(self.missing)

    @cached_property
    def back(self) -> Field:
        """Of background clicks, inside the mask."""
        return self._inside(self.before)

    def _inside(self, wrong: Mask) -> Field:
        depth: Field = edt.edt(np.ascontiguousarray(wrong), anisotropy=self.step, black_border=True)
        return depth

    def at(self, click: CellClick) -> float:
        """The depth of one click."""
        return float((self.fore if click.positive else self.back)[click.cell])


def refined(
    features: RegionFeatures,
    opinion: Field,
    box: Box | None,
    clicks: Sequence[CellClick] = (),
    evidence: ClickEvidence | None = None,
) -> Field:
    """The probability of the object at every cell.

    Args:
        features: of the region.
        opinion: the network's logits at the cells.
        box: around the object, if the user drew one, in voxel edges.
        clicks: those in the region, which are certain; in any order.
        evidence: their evidence about their surroundings.

    Returns:
        float32 of the region's grid, at most rounding outside [0, 1].
    """
    logits = np.clip(NETWORK_WEIGHT * opinion, -NETWORK_LIMIT, NETWORK_LIMIT)
    outside = np.zeros_like(logits) if box is None else beyond(features.roi, box)
    logits -= np.minimum(BOX_SLOPE * outside, BOX_LIMIT)
    if evidence is not None:
        logits += CLICK_LOGIT * evidence.balance
    share = sigmoid(logits)
    logits += INTENSITY_WEIGHT * _intensity_ratio(features.kind, share * (outside < NEAR_BOX - 1), 1 - share)
    prior = sigmoid(logits)
    trust = np.asarray(TRUST * (UNSURE + (1 - UNSURE) * np.abs(2 * prior - 1)), dtype=np.float32)
    links = features.links if box is None else _shortened(features, box)
    found = solve(links, prior, trust, [(c.cell, float(c.positive)) for c in clicks])
    return _unshrunk(found, prior)


def held_away_from_clicks(
    features: RegionFeatures,
    found: Field,
    before: Field,
    reaches: Sequence[tuple[CellClick, float]],
    bounded: bool = False,
) -> Field:
    """Probabilities after some new clicks, with the mask before them where the new ones leave it in doubt.

    Args:
        features: of the region.
        found: the probabilities that all clicks give.
        before: those that the user saw before the new clicks.
        reaches: the new clicks and how far each reaches, in mm.
        bounded: whether the mask may change elsewhere only as much as it changes near the clicks
            (`FAR_SHARE`), where `found` is surest.

    Returns:
        As `found` near the new clicks; elsewhere the mask changes only where `found` says so by more than
        `HELD`. As `before` where no click is new.
    """
    if not reaches:
        return before
    near = np.zeros_like(found)
    for click, reach in reaches:
        np.maximum(near, _around(features, click.cell, HELD_FROM * reach), out=near)
    after = sigmoid(logit(found) + HELD * (1 - near) * np.where(before > 0.5, np.float32(1), np.float32(-1)))
    return _bounded(after, before > 0.5, near >= 0.5) if bounded else after


def _bounded(after: Field, before: Mask, near: Mask) -> Field:
    """`after`, but on the side of `before` in the far cells whose change is least sure.

    `FAR_SHARE` then holds for what is added, and for what is removed.
    """
    for inside in (False, True):
        changed = (before == inside) & ((after > 0.5) != inside)
        far = changed & ~near
        most = int(FAR_SHARE * (changed & near).sum())
        if far.sum() > most:
            sure = np.abs(logit(after))
            surest_kept = np.partition(sure[far], -most - 1)[-most - 1]
            kept = np.float32(1 / (1 + math.exp(-KEPT_LOGIT if inside else KEPT_LOGIT)))
            after = np.where(far & (sure <= surest_kept), kept, after)
    return after


def _shortened(features: RegionFeatures, box: Box) -> list[Field]:
    """The region's links, weaker along axes on which the box has few cells (`SHORT_SIDE`)."""
    return [
        link if side >= SHORT_SIDE * cell else link * np.float32((side / (SHORT_SIDE * cell)) ** 2)
        for link, side, cell in zip(features.links, box.sides, features.roi.spacing, strict=True)
    ]


def _unshrunk(found: Field, prior: Field) -> Field:
    """Probabilities with the border where it keeps the prior's volume, if that is near 0.5 (`SHRUNK`)."""
    volume = int((prior > 0.5).sum())
    if not 0 < volume < found.size:
        return found
    border = float(np.partition(found, found.size - volume, axis=None)[found.size - volume])
    share = (border - SHRUNK_FAR) / (SHRUNK - SHRUNK_FAR)
    border = 0.5 - (0.5 - min(border, 0.5)) * min(max(share, 0.0), 1.0)
    return sigmoid(logit(found) - np.float32(np.log(border / (1 - border))))


def beyond(roi: Roi, box: Box) -> Field:
    """How far each cell is outside a box: the most over the axes, in half sides of the box; 0 inside."""
    found = np.zeros(roi.grid, dtype=np.float32)
    for away in _from_the_middle(roi, box):
        np.maximum(found, (np.abs(away) - 1).astype(np.float32), out=found)
    return found


def inscribed_ellipsoid(roi: Roi, box: Box) -> Field:
    """The probability of the ellipsoid in a box at every cell: one half on its surface."""
    square = np.zeros(roi.grid, dtype=np.float32)
    for away in _from_the_middle(roi, box):
        square += np.square(away).astype(np.float32)
    return sigmoid(ELLIPSOID_SLOPE * (1 - np.sqrt(square)))


def _from_the_middle(roi: Roi, box: Box) -> Iterator[npt.NDArray[np.floating[Any]]]:
    """For each axis, how far its cells are from the middle of a box, in half sides; shaped to broadcast."""
    for axis, (count, start, size) in enumerate(zip(roi.grid, roi.box.lo, roi.spacing, strict=True)):
        centres = start + (np.arange(count) + 0.5) * size
        away = (centres - box.centre[axis]) / (box.sides[axis] / 2)
        yield away.reshape([-1 if a == axis else 1 for a in range(3)])


def accumulate_click_evidence(
    features: RegionFeatures,
    new: Sequence[CellClick],
    clicks: Sequence[CellClick],
    deep: Depths,
    earlier: ClickEvidence,
) -> tuple[ClickEvidence, list[tuple[CellClick, float]]]:
    """Add the evidence of some new clicks to that of earlier ones.

    Args:
        features: of the region.
        new: clicks that were given since; of a scribble some stand for all
            (`inputs.representative_clicks`).
        clicks: all so far, the new ones among them; those of the other kind bound how far a click reaches.
        deep: for the mask that the user saw before the new clicks.
        earlier: the evidence of the clicks before them.

    Returns:
        At each cell and for each kind the strongest evidence of one click; and the new clicks with their
            reach in mm.
    """
    least = LEAST_DEPTH * min(features.step)
    found = {True: earlier.fore.copy(), False: earlier.back.copy()}
    reaches = []
    for click, rival in representative_clicks(new, features.step, others=clicks):
        # Several clicks at once share what is wrong: none reaches beyond its neighbour.
        depth = min(deep.at(click), _nearest(click, new, features.step))
        reach = CLICK_REACH * max(depth, least)
        reach = max(min(reach, RIVAL_SHARE * rival), least)
        unlike = (features.rank - features.rank[click.cell]) / CLICK_WIDTH
        # Flat in the middle and steep at its reach: a Gaussian would leak into what was right.
        near = _around(features, click.cell, reach) * np.exp(-0.5 * np.square(unlike))
        np.maximum(found[click.positive], near, out=found[click.positive])
        reaches.append((click, reach))
    return ClickEvidence(found[True], found[False]), reaches


def _nearest(click: CellClick, clicks: Sequence[CellClick], step: Sequence[float]) -> float:
    """Millimetres from a click to the nearest other one of its kind; infinity without one."""
    others = np.asarray([c.cell for c in clicks if c.positive == click.positive and c != click])
    if not len(others):
        return math.inf
    return float(np.linalg.norm((others - click.cell) * np.asarray(step), axis=1).min())


def _around(features: RegionFeatures, cell: Index, reach: float) -> Field:
    """1 at a cell and about it, falling with the fourth power of the distance, 0.6 at `reach` mm."""
    return np.exp(-0.5 * np.square(_squared_distance(features, cell, reach)))


def _squared_distance(features: RegionFeatures, cell: Index, unit: float) -> Field:
    z, y, x = (
        np.square((np.arange(n, dtype=np.float32) - at) * np.float32(side / unit))
        for n, at, side in zip(features.roi.grid, cell, features.step, strict=True)
    )
    return z[:, None, None] + y[:, None] + x


def _ranks(image: Field) -> Field:
    """For values in [0, 1], the share of all cells that are lower, by a fine histogram."""
    level = np.minimum((image * _LEVELS).astype(np.intp), _LEVELS - 1)
    counts = np.bincount(level.ravel(), minlength=_LEVELS)
    below = (np.cumsum(counts) - counts).astype(np.float32) / np.float32(image.size)
    return below[level]


def _usual_difference(image: Field) -> float:
    """The median difference of face neighbours, of those that differ."""
    differences = np.concatenate([np.abs(np.diff(image, axis=axis)).ravel() for axis in range(3)])
    differences = differences[differences > 0]
    return (float(np.median(differences)) if differences.size else 0.0) + 1e-3


def _intensity_ratio(kind: npt.NDArray[np.int16], inside: Field, outside: Field) -> Field:
    """Log ratio of how common each cell's intensities are among two weighted sets of cells."""

    def histogram(weights: Field | None) -> npt.NDArray[np.float64]:
        counts = np.bincount(kind.ravel(), None if weights is None else weights.ravel(), BINS * BINS)
        spread = ndimage.gaussian_filter(counts.reshape(BINS, BINS).astype(np.float64), BLUR, mode="nearest")
        return spread / max(float(spread.sum()), 1e-9)

    # Where both sets are empty the region's own histogram makes the ratio 1.
    usual = FLOOR * histogram(None) + 1e-12
    ratio = np.log(((1 - FLOOR) * histogram(inside) + usual) / ((1 - FLOOR) * histogram(outside) + usual))
    table = np.clip(ratio, -INTENSITY_LIMIT, INTENSITY_LIMIT).astype(np.float32)
    return table.ravel()[kind]


def logit(probability: Field) -> Field:
    """Probabilities as logits, finite for those of 0 and 1 as well."""
    inside = np.clip(probability, _LEAST, 1 - _LEAST)
    return np.asarray(np.log(inside / (1 - inside)), dtype=np.float32)


def sigmoid(logits: Field) -> Field:
    """Logits as probabilities."""
    return torch.sigmoid(torch.from_numpy(logits)).numpy()

"""Interactive segmentation without learning: the baseline that a network has to beat.

Graph cut, random walker and region growing share one setting: a region around the prompts, at most
`MAX_CELLS` cells of about equal sides in millimetres, grey levels by the same intensity map as our experts,
and three kinds of evidence in log ratios:

- shape: the ellipsoid in the box, or the surroundings of the clicks; outside a given box is background;
- intensity: histograms of both sides that begin with the shape and are refined a few times;
- clicks: their surroundings are seeds, and evidence for what is near.

Every method answers one object with scores on the volume's voxels, above 0 inside, or a mask.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch
from scipy import ndimage
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow
from scipy.special import expit
from skimage.segmentation import random_walker as solve_random_walker

from ..experts.inputs import map_at_points, map_in_box
from ..imaging.geometry import Box, Index, Roi, crop_to_grid, paste_from_grid
from ..imaging.prompts import Click, Prompts
from ..imaging.volume import Volume
from .metrics import Mask, ellipsoid_in_box

CellScores = npt.NDArray[np.float32]

MAX_CELLS = 110_000
"""Cells of a region at most; larger regions are shrunk, along their finest axes first."""
MARGIN = 0.15
"""Background around a box, as a part of its sides."""
LEAST_MARGIN = 3.0
"""The same in voxels, at least."""
REACH = 24
"""Half the side of the region where there is no box, in voxels of the finest axis."""
CLICK_RADIUS = 0.12
"""Of a click's surroundings, as a part of the box's shortest side in millimetres."""
BINS = 48
BIN_BLUR = 1.5
ROUNDS = 3
"""How often the intensity model is refined."""
MOST_EVIDENCE = 2.5
"""Bound of the log ratio that an intensity alone may give."""
SHAPE_WEIGHT = 4.0
"""Steepness of the shape prior: its log ratio would be this at the box's centre, and is 0 on the inscribed
ellipsoid.
"""
MOST_SHAPE = 2.2
"""Its bound inside, below that of intensities, so that these may open a hole in the middle."""
POINT_REACH = 12
"""Without a box: where the prior of a click's surroundings is 0, in voxels of the finest axis."""
POINT_WEIGHT = 1.5
LEAST_SHAPE = -4.0
CLICK_WEIGHT = 6.0
"""Log ratio at a click; falls off as a Gaussian."""
CLICK_REACH = 0.2
"""Its width, as a part of the box's shortest side in millimetres."""


@dataclass(frozen=True)
class ClassicalProblem:
    """The surroundings of one object's prompts on a grid.

    Attributes:
        roi: the grid's place in the volume.
        step: millimetres of a cell along (z, y, x).
        grey: float32, [0, 1].
        shape: float32, log ratio of the shape prior; -inf where only background can be.
        clicks: float32, log ratio that the clicks add near them.
        inside, outside: seeds.
    """

    roi: Roi
    step: tuple[float, float, float]
    grey: CellScores
    shape: CellScores
    clicks: CellScores
    inside: Mask
    outside: Mask

    def pasted(self, scores: CellScores, volume: Volume) -> CellScores:
        """Scores on the grid as scores of the whole volume, with the clicks' own voxels."""
        found = np.full(volume.shape, -1, dtype=np.float32)
        region, values = paste_from_grid(
            torch.from_numpy(np.ascontiguousarray(scores)), self.roi, volume.shape
        )
        found[region] = values.numpy()
        return found


def problem_of(volume: Volume, prompts: Prompts) -> ClassicalProblem:
    """The problem of one object.

    Raises:
        PromptError: there is neither a box nor a foreground click.
    """
    box = prompts.enclosing_box()
    spacing = np.asarray(volume.spacing)
    bounded = prompts.box is not None
    if bounded:
        intensity = map_in_box(volume, prompts.box or box, "auto")
        around = Box(*_grown(box, [max(LEAST_MARGIN, MARGIN * side) for side in box.sides], volume.shape))
    else:
        intensity = map_at_points(volume, prompts.foreground, "auto")
        margin = [max(LEAST_MARGIN, REACH * spacing.min() / s) for s in spacing]
        around = Box(*_grown(box, margin, volume.shape))
    grid = _grid(around, volume.spacing)
    roi = Roi(around, grid)
    values = crop_to_grid(volume.array, roi, lambda stored: intensity(volume.to_real(stored)))
    grey = np.asarray(values.numpy() / 255, dtype=np.float32)
    step = tuple(float(a * b) for a, b in zip(roi.spacing, volume.spacing, strict=True))

    centres = [
        np.asarray((np.arange(n) + 0.5) * cell + lo, dtype=np.float64)
        for n, cell, lo in zip(grid, roi.spacing, roi.box.lo, strict=True)
    ]  # of cells, in voxel edges
    inside = np.zeros(grid, dtype=np.bool_)
    outside = np.zeros(grid, dtype=np.bool_)
    if bounded:
        radius = _radius(centres, box)
        shape = np.minimum(SHAPE_WEIGHT * (1 - radius), MOST_SHAPE)
        for axis, at in enumerate(centres):
            beyond = (at < box.lo[axis]) | (at >= box.hi[axis])
            outside |= beyond.reshape([-1 if a == axis else 1 for a in range(3)])
    else:
        reach = POINT_REACH * spacing.min()
        nearest = np.min([_distance(centres, c, spacing) for c in prompts.clicks if c.positive], axis=0)
        shape = np.maximum(POINT_WEIGHT * (1 - (nearest / reach) ** 2), LEAST_SHAPE)
        # The object is assumed not to reach the faces of the region.
        outside[[0, -1]] = outside[:, [0, -1]] = outside[:, :, [0, -1]] = True

    sides = box.sides if bounded else [2 * reach / s for s in spacing]
    short = min(side * s for side, s in zip(sides, volume.spacing, strict=True))
    clicks = np.zeros(grid, dtype=np.float32)
    size = max(CLICK_RADIUS * short, 1.01 * max(step))
    for click in sorted(prompts.clicks, key=lambda c: c.positive):
        distance = _distance(centres, click, spacing)
        if distance.min() > 2 * max(step):
            continue
        near = distance <= size
        clicks += (
            (1 if click.positive else -1)
            * CLICK_WEIGHT
            * np.exp(-0.5 * (distance / (CLICK_REACH * short)) ** 2)
        )
        if click.positive:
            inside |= near
            outside &= ~near
        else:
            inside &= distance > 2 * size
            outside |= near
    inside &= ~outside
    return ClassicalProblem(
        roi, (step[0], step[1], step[2]), grey, cast("CellScores", shape), clicks, inside, outside
    )


def evidence(problem: ClassicalProblem) -> CellScores:
    """Evidence of each cell's grey level: log ratio of two histograms, refined by the mask that they give."""
    levels = np.clip((problem.grey * BINS).astype(np.int64), 0, BINS - 1)
    share = _share(problem.shape + problem.clicks, problem)
    ratio = np.zeros_like(problem.grey)
    for _ in range(ROUNDS):
        inside, outside = (
            ndimage.gaussian_filter1d(
                np.bincount(levels.ravel(), weights=weights.ravel(), minlength=BINS), BIN_BLUR, mode="nearest"
            )
            for weights in (share, 1 - share)
        )
        inside, outside = (h / h.sum() + 1e-3 / BINS for h in (inside, outside))
        table = np.clip(np.log(inside / outside), -MOST_EVIDENCE, MOST_EVIDENCE).astype(np.float32)
        ratio = table[levels]
        share = _share(ratio + problem.shape + problem.clicks, problem)
    return ratio


def ellipsoid(volume: Volume, prompts: Prompts) -> Mask:
    """The ellipsoid inscribed in the box of all positive prompts; clicks move nothing else."""
    box = prompts.enclosing_box()
    return ellipsoid_in_box(volume.shape, box.lo, box.hi)


GRAPH_LAMBDA = 3.0
"""Cost of a cut where there is no contrast."""
GRAPH_SIGMA = 0.8
"""Contrast that makes a cut cheap, in root mean squares of the region's own differences."""
LEAST_SIGMA = 0.01
CAPACITY = 10_000
"""Whole units in which the flow is counted for a cost of 1."""


def graph_cut(volume: Volume, prompts: Prompts) -> CellScores:
    """GrabCut's idea in 3D: intensity model, shape prior and clicks as costs of a cell, contrast as cost of a
    cut (between the six neighbours of a cell), solved exactly by SciPy.
    """
    place = problem_of(volume, prompts)
    ratio = evidence(place) + place.shape + place.clicks
    probability = np.clip(_share(ratio, place), 1e-4, 1 - 1e-4).astype(np.float32)
    probability[place.inside], probability[place.outside] = 1 - 1e-6, 1e-6
    differences = [np.diff(place.grey, axis=axis) for axis in range(3)]
    squares, count = (sum(float(f(d)) for d in differences) for f in (lambda d: np.square(d).sum(), np.size))
    sigma = max(LEAST_SIGMA, GRAPH_SIGMA * math.sqrt(squares / count))
    return place.pasted(minimum_cut(place.grey, probability, sigma).astype(np.float32) - 0.5, volume)


def minimum_cut(grey: CellScores, probability: CellScores, sigma: float) -> Mask:
    """The cells on the inside of the cheapest cut.

    Args:
        grey: float32 (D, H, W); cutting between neighbours costs GRAPH_LAMBDA exp(-difference^2 / 2 sigma^2).
        probability: of being inside, in (0, 1); minus the logarithm of a side's probability is its cost.
        sigma: a contrast.
    """
    cells = np.arange(grey.size, dtype=np.int32).reshape(grey.shape)
    source, sink = grey.size, grey.size + 1
    ratio = (np.log(probability) - np.log1p(-probability)).ravel()
    ends = [
        (np.full(grey.size, source, np.int32), cells.ravel(), np.maximum(ratio, 0)),
        (cells.ravel(), np.full(grey.size, sink, np.int32), np.maximum(-ratio, 0)),
    ]
    for axis, size in enumerate(grey.shape):
        one, other = (cells.take(range(*part), axis).ravel() for part in ((size - 1,), (1, size)))
        cost = GRAPH_LAMBDA * np.exp(-np.square(np.diff(grey, axis=axis)).ravel() / (2 * sigma**2))
        ends += [(one, other, cost), (other, one, cost)]
    start, end, costs = (np.concatenate(part) for part in zip(*ends, strict=True))
    capacity = np.rint(costs * CAPACITY).astype(np.int32)
    graph = csr_array((capacity, (start, end)), shape=(sink + 1, sink + 1))
    left = graph - maximum_flow(graph, source, sink).flow
    left.eliminate_zeros()
    inside = np.zeros(sink + 1, dtype=bool)
    inside[breadth_first_order(left, source, return_predecessors=False)] = True
    return inside[: grey.size].reshape(grey.shape)


WALKER_BETA = 130.0
"""skimage's default."""
CERTAIN = 0.88
"""Probability that makes a cell a seed of the random walker."""


def random_walker(volume: Volume, prompts: Prompts) -> CellScores:
    """Grady's random walker by scikit-image.

    Seeds are the problem's and the cells of which intensity, shape and clicks together are certain; from few
    seeds alone a random walker gives masks that are too small.
    """
    place = problem_of(volume, prompts)
    guess = _share(evidence(place) + place.shape + place.clicks, place)
    labels = np.zeros(place.grey.shape, dtype=np.int8)
    labels[guess > CERTAIN], labels[guess < 1 - CERTAIN] = 1, 2
    if not ((labels == 1).any() and (labels == 2).any() and (labels == 0).any()):
        return place.pasted(guess - 0.5, volume)
    with warnings.catch_warnings():
        # Cells that seeds of one kind enclose take that kind, and that is what the solver makes of them.
        warnings.simplefilter("ignore")
        inside = solve_random_walker(
            place.grey / max(float(place.grey.std()), 1e-6),
            labels,
            beta=WALKER_BETA,
            mode="cg_j",
            tol=1e-3,
            return_full_prob=True,
            spacing=np.asarray(place.step) / min(place.step),
        )[0]
    return place.pasted(inside.astype(np.float32) - 0.5, volume)


GROWTH = 1.5
GROWTH_ROUNDS = 4


def region_growing(volume: Volume, prompts: Prompts) -> CellScores:
    """ITK's confidence-connected region growing from the cells that are certain, inside the box, holes
    filled.
    """
    place = problem_of(volume, prompts)
    ratio = evidence(place)
    # A seed that looks like the background would let the region grow into it.
    seeds = (_share(ratio + place.shape + place.clicks, place) > CERTAIN) & (ratio > 0) | place.inside
    if not seeds.any():
        return place.pasted(place.inside.astype(np.float32) - 0.5, volume)
    # Far below every grey level, so that growth ends there.
    image = sitk.GetImageFromArray(np.where(place.outside, np.float32(-10), place.grey))
    grown = sitk.ConfidenceConnected(
        image,
        seedList=[(int(x), int(y), int(z)) for z, y, x in np.argwhere(seeds)],
        numberOfIterations=GROWTH_ROUNDS,
        multiplier=GROWTH,
        initialNeighborhoodRadius=0,
    )
    found = ndimage.binary_opening(sitk.GetArrayFromImage(grown) > 0) | seeds
    parts, _ = ndimage.label(ndimage.binary_fill_holes(found))
    found = np.isin(parts, np.unique(parts[seeds])) & ~place.outside
    return place.pasted(found.astype(np.float32) - 0.5, volume)


def _share(ratio: CellScores, problem: ClassicalProblem) -> CellScores:
    share = expit(ratio)
    share[problem.inside], share[problem.outside] = 1, 0
    return share


def _grown(
    box: Box, margin: list[float], shape: Index
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    lo = [max(0.0, math.floor(a - m)) for a, m in zip(box.lo, margin, strict=True)]
    hi = [min(float(n), math.ceil(b + m)) for b, m, n in zip(box.hi, margin, shape, strict=True)]
    return (lo[0], lo[1], lo[2]), (hi[0], hi[1], hi[2])


def _grid(box: Box, spacing: tuple[float, float, float]) -> Index:
    """One cell for each voxel, or fewer along the axes that are finest in millimetres."""
    sides = [round(side) for side in box.sides]
    size = min(spacing)
    while True:
        grid = [max(2, min(n, math.ceil(n * s / size))) for n, s in zip(sides, spacing, strict=True)]
        if math.prod(grid) <= MAX_CELLS:
            return grid[0], grid[1], grid[2]
        size *= 1.03


def _radius(centres: list[npt.NDArray[np.float64]], box: Box) -> CellScores:
    total = np.zeros([len(c) for c in centres], dtype=np.float32)
    for axis, at in enumerate(centres):
        scaled = ((at - box.centre[axis]) / (box.sides[axis] / 2)) ** 2
        total += scaled.astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    return total


def _distance(
    centres: list[npt.NDArray[np.float64]], click: Click, spacing: npt.NDArray[np.float64]
) -> CellScores:
    """Millimetres from a click to each cell."""
    total = np.zeros([len(c) for c in centres], dtype=np.float32)
    for axis, at in enumerate(centres):
        offset = ((at - click.index[axis] - 0.5) * spacing[axis]) ** 2
        total += offset.astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    return np.sqrt(total)

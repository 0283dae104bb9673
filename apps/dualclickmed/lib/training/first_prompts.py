"""What a simulated user gives first: a box, extreme points, or a click inside an object."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..imaging.geometry import Box, Index
from .batches import GlobalSample
from .recipes import Recipe

# How often the simulated box is exact, drawn on the middle slice only (as the challenge does), or sloppy.
BOX_EXACT, BOX_MIDDLE = 0.5, 0.2
BOX_SLOPPINESS = 0.12

STARTS = ("box", "extreme", "corner", "point")
EXTREME_SHOWN = 4


def simulated_box(mask: npt.NDArray[np.bool_], rng: np.random.Generator) -> Box:
    """The box that a user would draw around a (D, H, W) mask: exact, of the middle slice, or a little off."""
    exact = Box.of_mask(mask)
    draw = rng.random()
    if draw < BOX_EXACT:
        return exact
    if draw < BOX_EXACT + BOX_MIDDLE:
        middle = mask[int((exact.lo[0] + exact.hi[0]) / 2)]
        if not middle.any():
            return exact
        plane = Box.of_mask(middle[None])
        return Box((exact.lo[0], plane.lo[1], plane.lo[2]), (exact.hi[0], plane.hi[1], plane.hi[2]))
    shift = rng.normal(size=(2, 3)) * BOX_SLOPPINESS / 2
    sides = np.array(exact.sides)
    lo = np.array(exact.lo) + np.round(shift[0] * sides)
    hi = np.maximum(np.array(exact.hi) + np.round(shift[1] * sides), lo + 1)
    return Box.between(lo, hi)


def first_box(mask: npt.NDArray[np.bool_], recipe: Recipe, rng: np.random.Generator) -> tuple[Box, bool]:
    """The box about a (D, H, W) mask that an object's first prompts stand for, and whether they are extreme
    points.

    Extreme points enclose the object exactly; corner points are a box drawn by two clicks; a start by points
    has two clicks inside the object, whose box is the region's, as in serving.
    """
    if recipe.starts[1:] == (0.0, 0.0, 0.0):
        return (Box.of_mask(mask) if recipe.exact_boxes else simulated_box(mask, rng)), False
    shares = np.asarray(recipe.starts) / sum(recipe.starts)
    start = STARTS[int(rng.choice(len(STARTS), p=shares))]
    if start == "extreme":
        return Box.of_mask(mask), True
    if start == "point":
        inside = np.argwhere(mask)
        picked = inside[rng.integers(len(inside), size=2)]
        return Box.around([(int(z), int(y), int(x)) for z, y, x in picked]), False
    return (Box.of_mask(mask) if recipe.exact_boxes else simulated_box(mask, rng)), False


def extreme_points(truth: Tensor, rng: np.random.Generator) -> Tensor:
    """Four of the six extreme voxels (4, 3) of a mask on its grid: what serving shows of six such clicks."""
    at = torch.nonzero(truth)
    found = []
    for axis in range(3):
        for end in (at[:, axis].min(), at[:, axis].max()):
            face = at[at[:, axis] == end]
            found.append(face[int(rng.integers(len(face)))])
    order = torch.as_tensor(rng.permutation(len(found))[:EXTREME_SHOWN])
    return torch.stack(found)[order].float()


def first_points(sample: GlobalSample, recipe: Recipe, rng: np.random.Generator) -> Tensor:
    """(4, 3) first points besides the box's centre, NaN where there are none; (0, 3) if no start has any."""
    if recipe.starts[1] == 0 and recipe.clicked == 0:
        return torch.zeros(0, 3)
    if sample.extreme:
        return extreme_points(sample.truth, rng)
    points = torch.full((EXTREME_SHOWN, 3), torch.nan)
    if sample.clicked:
        points[0] = torch.tensor(interior_voxel(sample.truth & sample.valid, rng))
    return points


def interior_voxel(mask: Tensor, rng: np.random.Generator) -> Index:
    """A voxel inside a mask (D, H, W), mostly away from its surface."""
    at = torch.nonzero(mask)
    if len(at) > 200 and rng.random() < 0.8:
        inner = mask.clone()
        for _ in range(2):
            inner = eroded(inner)
        if bool(inner.any()):
            at = torch.nonzero(inner)
    z, y, x = at[int(rng.integers(len(at)))].tolist()
    return z, y, x


def surface_voxel(mask: Tensor, rng: np.random.Generator) -> Index:
    """A voxel of a mask (D, H, W) that has a neighbour outside it."""
    at = torch.nonzero(mask & ~eroded(torch.nn.functional.pad(mask, (1,) * 6))[1:-1, 1:-1, 1:-1])
    z, y, x = at[int(rng.integers(len(at)))].tolist()
    return z, y, x


def eroded(mask: Tensor) -> Tensor:
    """The voxels of a mask whose six neighbours belong to it; beyond a border comes the opposite one."""
    kept = mask.clone()
    for axis in range(3):
        kept &= mask.roll(1, axis) & mask.roll(-1, axis)
    return kept

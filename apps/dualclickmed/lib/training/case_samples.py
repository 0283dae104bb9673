"""Training samples cut from labelled cases, by the same geometry and intensities that serving uses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..experts.inputs import local_input, map_at_points, map_in_box
from ..imaging.geometry import Box, Index, Outside, Roi, crop_to_grid, global_roi, window_at
from .augment import local_augmentation
from .batches import GlobalSample, LocalSample
from .first_prompts import first_box, interior_voxel, surface_voxel
from .opened import Found, OpenedCase
from .recipes import Recipe
from .regions import inside, jittered, window_about

# Where an object fills more of a window than this, the window moves to its surface, so that it shows an edge.
WINDOW_FILLED = 0.9

Order = Callable[[int], npt.NDArray[np.integer]]
"""The order in which objects are asked for: from their number to a permutation of their indices."""


def global_crop(
    opened: OpenedCase, found: Found, box: Box, roi: Roi, outside: Outside = "zeros"
) -> GlobalSample:
    """One object of a case on the grid of a region: grey levels in [0, 255] by the values in `box`, truth and
    valid.

    Its `normalise_global` is what the global expert computes for that box. An object so thin that no cell is
    half filled consists of the cells that it fills most.
    """
    volume = opened.volume
    grey_map = map_in_box(volume, box, "auto")
    grey = crop_to_grid(volume.array, roi, lambda stored: grey_map(volume.to_real(stored)), outside=outside)
    share = crop_to_grid(opened.labels, roi, lambda values: (values == found.value).float(), outside=outside)
    truth = share > 0.5
    if not bool(truth.any()):
        truth = share >= share.max() / 2
    return GlobalSample(grey, truth, inside(volume.shape, roi))


def case_crops(
    opened: OpenedCase, rng: np.random.Generator, recipe: Recipe, order: Order | None = None
) -> list[GlobalSample]:
    """Crops of up to `recipe.targets` objects of a case, each object as likely as any other or the first of
    `order`; grey levels.
    """
    crops = []
    for place in (order or rng.permutation)(len(opened.objects))[: recipe.targets]:
        found = opened.objects[int(place)]
        box, extreme = drawn_box(opened, found, recipe, rng)
        clicked = rng.random() < recipe.clicked
        roi = _window(opened, found, recipe, rng) if clicked else global_roi(box, grid=(recipe.grid,) * 3)
        crop = global_crop(opened, found, box, roi, recipe.outside)
        if not clicked:
            crops.append(crop._replace(extreme=extreme))
        elif bool((crop.truth & crop.valid).any()):
            crops.append(crop._replace(clicked=True))
    return crops


def _window(opened: OpenedCase, found: Found, recipe: Recipe, rng: np.random.Generator) -> Roi:
    """A region about a click in an object, in the volume's voxels."""
    mask = opened.mask(found)
    click = interior_voxel(torch.from_numpy(mask), rng)
    roi = window_about(mask, click, opened.volume.spacing, recipe.grid, rng)
    return Roi(_shifted(roi.box, found), roi.grid)


def _shifted(box: Box, found: Found) -> Box:
    """A box in an object's region as one of the volume."""
    lo, hi = (
        tuple(edge + s.start for edge, s in zip(edges, found.region, strict=True))
        for edges in (box.lo, box.hi)
    )
    return Box.between(lo, hi)


def drawn_box(opened: OpenedCase, found: Found, recipe: Recipe, rng: np.random.Generator) -> tuple[Box, bool]:
    """`first_box` of an object of a case, in the volume's voxels."""
    box, extreme = first_box(opened.mask(found), recipe, rng)
    return _shifted(box, found), extreme


def local_case_sample(
    opened: OpenedCase, rng: np.random.Generator, recipe: Recipe, order: Order | None = None
) -> LocalSample:
    """A window of a case (`window_of`), augmented, with a first click in each of its objects."""
    image, valid, truths = local_augmentation(recipe)(*window_of(opened, rng, recipe, order), rng)
    return LocalSample(image, valid, [(truth, list(interior_voxel(truth, rng))) for truth in truths])


def window_of(
    opened: OpenedCase, rng: np.random.Generator, recipe: Recipe, order: Order | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """A window of a case about an object, each of them as likely as any other however large it is, or the
    first of `order`: image and valid (S, S, S), and truths (K, S, S, S).

    Other objects in the window are asked for on the same features, if a click in them leads to the same
    intensities. An object larger than the window is cut by it.
    """
    size = (recipe.size,) * 3
    objects = [opened.objects[int(i)] for i in (order or rng.permutation)(len(opened.objects))]
    mask = torch.from_numpy(opened.mask(objects[0]))
    at = _moved(interior_voxel(mask, rng), objects[0])
    roi = window_at(jittered(at, rng), size)
    labels = crop_to_grid(opened.labels, roi)
    if float((labels == objects[0].value).float().mean()) > WINDOW_FILLED:
        at = _moved(surface_voxel(mask, rng), objects[0])
        roi = window_at(at, size)
        labels = crop_to_grid(opened.labels, roi)
    grey_map = map_at_points(opened.volume, [at], "auto")
    image = local_input(opened.volume, roi, grey_map)[0, 0]
    found = []
    for each in objects:
        truth = labels == each.value
        if each is not objects[0]:
            if int(truth.sum()) < recipe.smallest:
                continue
            voxel = roi.to_voxel([interior_voxel(truth, rng)])[0].round().astype(int)
            place = (int(voxel[0]), int(voxel[1]), int(voxel[2]))
            if map_at_points(opened.volume, [place], "auto") != grey_map:
                continue
        found.append(truth)
        if len(found) == recipe.targets:
            break
    return image, inside(opened.volume.shape, roi), torch.stack(found)


def _moved(voxel: Index, found: Found) -> Index:
    z, y, x = (v + s.start for v, s in zip(voxel, found.region, strict=True))
    return z, y, x

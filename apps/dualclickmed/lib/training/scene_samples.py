"""Training samples cut from generated scenes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from ..imaging.geometry import Roi, crop_to_grid, global_roi, window_at
from ..imaging.intensity import normalise_global, normalise_local
from .batches import GlobalSample, LocalSample
from .first_prompts import first_box, interior_voxel
from .generated import SyntheticVolume
from .recipes import Recipe
from .regions import inside, jittered, window_about

BORDER_SHARE = 0.25
# Pieces of objects: fewest voxels, how far the cut bends, and the share of the object that they are.
SMALLEST_PART, PART_BEND, PART_SHARE = 24, 0.25, (0.3, 0.7)
# Local targets of fewer voxels are left out, and larger ones are preferred by this power of their volume: a
# scene holds many small objects for each large one.
MIN_LOCAL_TARGET, SIZE_PREFERENCE = 120, 0.4
# Scenes that cover less than this part of the window are mostly border; few of them are used.
SMALL_SCENE, SMALL_SCENE_SHARE = 0.6, 0.2


def _symmetry(rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """A random order of the axes and the axes to flip: scenes have no up or down."""
    order = [int(v) for v in rng.permutation(3)]
    flips = [axis for axis in range(3) if rng.random() < 0.5]
    return order, flips


def _turned(values: Tensor, order: list[int], flips: list[int]) -> Tensor:
    return values.permute(order).flip(flips)


def _touches_border(mask: npt.NDArray[np.bool_]) -> bool:
    return any(bool(mask.take((0, -1), axis=axis).any()) for axis in range(3))


def part_of(mask: npt.NDArray[np.bool_], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """A piece of an object, cut off by a bent surface that nothing in the image shows.

    Lobes, segments and other anatomical parts are like this: only the box and the clicks tell them from the
    rest. Long objects are mostly cut across.
    """
    at = np.argwhere(mask)
    if len(at) < 4 * SMALLEST_PART:
        return mask
    centred = at - at.mean(axis=0)
    spreads, axes = np.linalg.eigh(np.cov(centred.T) + np.eye(3))
    along = (centred @ axes) / np.sqrt(spreads)
    normal = rng.normal(size=3) * np.sqrt(spreads)
    normal /= np.linalg.norm(normal)
    side = rng.normal(size=3)
    height = along @ normal + PART_BEND * rng.normal() * (along @ (side / np.linalg.norm(side))) ** 2
    kept = height < np.quantile(height, rng.uniform(*PART_SHARE))
    part = np.zeros_like(mask)
    part[tuple(at[kept].T)] = True
    return part


def one_component(mask: npt.NDArray[np.bool_], rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """One connected part of a mask, large ones more often; the mask itself where no part is large enough."""
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.reshape(-1))
    sizes[0] = 0
    weights = np.where(sizes >= SMALLEST_PART, sizes.astype(float) ** SIZE_PREFERENCE, 0.0)
    if not weights.any():
        return mask
    return np.asarray(parts == int(rng.choice(len(sizes), p=weights / weights.sum())))


def _asked(
    mask: npt.NDArray[np.bool_], scene: SyntheticVolume, recipe: Recipe, rng: np.random.Generator
) -> tuple[Roi, bool, bool]:
    """The region that the first prompt makes, whether that is extreme points, and whether it is a click."""
    if rng.random() < recipe.clicked:
        click = interior_voxel(torch.from_numpy(mask), rng)
        return window_about(mask, click, scene.spacing, recipe.grid, rng), False, True
    box, extreme = first_box(mask, recipe, rng)
    return global_roi(box, grid=(recipe.grid,) * 3), extreme, False


def global_samples(scene: SyntheticVolume, rng: np.random.Generator, recipe: Recipe) -> list[GlobalSample]:
    """Up to `recipe.targets` samples of one scene, each on the grid of its RoI."""
    masks = [scene.mask(scene.targets[int(i)]).numpy(force=True) for i in rng.permutation(len(scene.targets))]
    # Scenes are small, so their border cuts many objects, unlike in real images: keep only some of those.
    masks = [m for m in masks if rng.random() < BORDER_SHARE or not _touches_border(m)] or masks
    array = scene.image.numpy(force=True)
    samples = []
    for mask in masks[: recipe.targets]:
        if rng.random() < recipe.parts:
            mask = part_of(mask, rng)
        if rng.random() < recipe.components:
            mask = one_component(mask, rng)
        roi, extreme, clicked = _asked(mask, scene, recipe, rng)
        image = normalise_global(crop_to_grid(array, roi, outside=recipe.outside))
        truth = crop_to_grid(mask.astype(np.uint8), roi, outside=recipe.outside) > 0.5
        valid = inside(array.shape, roi)
        if not bool((truth & valid).any()):
            continue
        order, flips = _symmetry(rng)
        image, truth, valid = (_turned(v, order, flips) for v in (image, truth, valid))
        samples.append(GlobalSample(image, truth, valid, extreme, clicked))
    return samples


def local_scene_sample(
    scene: SyntheticVolume, rng: np.random.Generator, recipe: Recipe
) -> LocalSample | None:
    """A window of a scene with up to `recipe.targets` objects, or None if there is nothing worth asking for.

    A window is centred near an interior voxel of one target; the other targets whose interior it holds are
    asked for on the same features, which costs little and teaches that the click decides, not the window.
    """
    size = recipe.size
    if max(scene.image.shape) < SMALL_SCENE * size and rng.random() > SMALL_SCENE_SHARE:
        return None
    masks = [m for m in map(scene.mask, scene.targets) if int(m.sum()) >= MIN_LOCAL_TARGET]
    if not masks:
        return None
    weights = np.array([float(m.sum()) for m in masks]) ** SIZE_PREFERENCE
    count = min(recipe.targets, len(masks))
    picked = rng.choice(len(masks), size=count, replace=False, p=weights / weights.sum())
    masks = [masks[int(i)] for i in picked]
    roi = window_at(jittered(interior_voxel(masks[0], rng), rng), (size, size, size))
    array = scene.image.numpy(force=True)
    low, high = np.percentile(array[::2, ::2, ::2], (1, 99))
    image = crop_to_grid(array, roi, lambda v: normalise_local(v, float(low), float(high)))
    order, flips = _symmetry(rng)
    objects = []
    for mask in masks:
        truth = crop_to_grid(mask.numpy(force=True).astype(np.uint8), roi) > 0.5
        if int(truth.sum()) < MIN_LOCAL_TARGET:
            continue
        truth = _turned(truth, order, flips)
        objects.append((truth, list(interior_voxel(truth, rng))))
    if not objects:
        return None
    valid = inside(array.shape, roi)
    return LocalSample(_turned(image, order, flips), _turned(valid, order, flips), objects)

"""Augmentation of labelled cases (paper, section 3.2).

Generated scenes vary enough by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandFlipd,
    RandGaussianNoised,
    RandRotate90d,
    RandScaleIntensityd,
    RandShiftIntensityd,
)
from torch import Tensor
from torch.nn import functional

from ..imaging.intensity import normalise_global
from .recipes import Recipe

if TYPE_CHECKING:
    from .batches import GlobalSample

IMAGE, TRUTH, VALID = "image", "truth", "valid"
_KEYS = (IMAGE, TRUTH, VALID)

GlobalAugmentation = Callable[["GlobalSample", np.random.Generator], "GlobalSample"]
LocalAugmentation = Callable[[Tensor, Tensor, Tensor, np.random.Generator], tuple[Tensor, Tensor, Tensor]]


def global_augmentation(recipe: Recipe) -> GlobalAugmentation:
    """Random affine of the grid and flips, on grey levels, then the global expert's normalisation.

    What comes from outside the grid is 0 as outside an image, and is not valid for clicks. A transform that
    would lose the whole object is left out.
    """
    move = global_movement(recipe)

    def augment(sample: GlobalSample, rng: np.random.Generator) -> GlobalSample:
        sample = move(sample, rng)
        return sample._replace(image=normalise_global(sample.image))

    return augment


def global_movement(recipe: Recipe) -> GlobalAugmentation:
    """`global_augmentation` without the normalisation."""

    def move(sample: GlobalSample, rng: np.random.Generator) -> GlobalSample:
        maps = torch.stack([sample.image, sample.truth.float(), sample.valid.float()])
        flips = [axis + 1 for axis in range(3) if rng.random() < recipe.flip]
        done = maps.flip(flips)
        if rng.random() < recipe.affine:
            scales, shifts = drawn_affine(recipe, rng)
            done = moved(done, scales, shifts)
        image, truth, valid = done[0], done[1] > 0.5, done[2] > 0.5
        if bool((truth & valid).any()):
            sample = sample._replace(image=image, truth=truth, valid=valid)
        return sample

    return move


def drawn_affine(recipe: Recipe, rng: np.random.Generator) -> tuple[list[float], list[float]]:
    """Scales and shifts (z, y, x) of a random affine as in TorchIO's RandomAffine, which the authors use.

    A scale is itself uniform between its bounds (above 1 enlarges), a shift uniform to both sides, in voxels
    of the grid.
    """
    scales = [float(rng.uniform(*bounds)) for bounds in (recipe.scale_z, recipe.scale_xy, recipe.scale_xy)]
    return scales, [float(v) for v in rng.uniform(-recipe.shift, recipe.shift, size=3)]


def moved(maps: Tensor, scales: Sequence[float], shifts: Sequence[float]) -> Tensor:
    """Maps (C, D, H, W) scaled about the grid's centre and then moved by `shifts` voxels (z, y, x), with
    trilinear interpolation and zeros from outside.
    """
    # The matrix leads from output to input, in the order (x, y, z) and in units of half the grid.
    matrix = torch.zeros(1, 3, 4)
    for row, axis in enumerate((2, 1, 0)):
        matrix[0, row, row] = 1 / scales[axis]
        matrix[0, row, 3] = -2 * shifts[axis] / maps.shape[axis + 1] / scales[axis]
    grid = functional.affine_grid(matrix, [1, *maps.shape], align_corners=False)
    return functional.grid_sample(maps[None], grid, align_corners=False)[0]


@lru_cache(maxsize=8)
def _local_transforms(recipe: Recipe) -> Compose:
    share = recipe.intensity
    return Compose(
        [
            *(RandFlipd(_KEYS, prob=recipe.flip, spatial_axis=axis) for axis in range(3)),
            *(
                RandRotate90d(_KEYS, prob=recipe.rotate, max_k=3, spatial_axes=axes)
                for axes in ((0, 1), (0, 2), (1, 2))
            ),
            RandScaleIntensityd(IMAGE, factors=recipe.intensity_scale, prob=share),
            RandShiftIntensityd(IMAGE, offsets=recipe.intensity_shift, prob=share),
            RandGaussianNoised(IMAGE, prob=share, mean=0.0, std=recipe.noise),
        ]
    )


def local_augmentation(recipe: Recipe) -> LocalAugmentation:
    """Flips, quarter turns, scaled and shifted intensities and noise, for a window.

    Takes image and valid (S, S, S), truths (K, S, S, S) and a generator; returns the three.
    """

    def augment(
        image: Tensor, valid: Tensor, truths: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        if recipe.flip == recipe.rotate == recipe.intensity == 0:
            return image, valid, truths
        done = _seeded(_local_transforms(recipe), rng)(
            {IMAGE: image[None], TRUTH: truths, VALID: valid[None]}
        )
        valid = plain(done[VALID][0]).bool()
        # Outside the image there are zeros in serving, whatever its intensities.
        return plain(done[IMAGE][0]) * valid, valid, plain(done[TRUTH]).bool()

    return augment


def _seeded(transforms: Compose, rng: np.random.Generator) -> Compose:
    transforms.set_random_state(seed=int(rng.integers(2**31)))
    return transforms


def plain(values: Any) -> Tensor:
    """An array, tensor or MetaTensor as a tensor, without the meta data that later operations would carry."""
    return torch.as_tensor(values.as_tensor() if hasattr(values, "as_tensor") else values).contiguous()

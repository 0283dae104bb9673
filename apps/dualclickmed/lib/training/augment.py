"""Augmentation of labelled cases with MONAI's transforms (paper, section 3.2).

Generated scenes vary enough by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.transforms import (
    Compose,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandRotate90d,
    RandScaleIntensityd,
    RandShiftIntensityd,
)
from torch import Tensor

from ..imaging.intensity import normalise_global
from .recipes import Recipe

if TYPE_CHECKING:
    from .batches import GlobalSample

IMAGE, TRUTH, VALID = "image", "truth", "valid"
_KEYS = (IMAGE, TRUTH, VALID)

GlobalAugmentation = Callable[["GlobalSample", np.random.Generator], "GlobalSample"]
LocalAugmentation = Callable[[Tensor, Tensor, Tensor, np.random.Generator], tuple[Tensor, Tensor, Tensor]]


@lru_cache(maxsize=8)
def _global_transforms(recipe: Recipe) -> Compose:
    (z_low, z_high), (low, high), shift = recipe.scale_z, recipe.scale_xy, recipe.shift
    flips = [RandFlipd(_KEYS, prob=recipe.flip, spatial_axis=axis) for axis in range(3)]
    # MONAI's matrix leads from the output to the input, so a factor of 2 shrinks: the inverse is meant.
    affine = RandAffined(
        _KEYS,
        prob=recipe.affine,
        scale_range=((1 / z_high - 1, 1 / z_low - 1), *(((1 / high - 1, 1 / low - 1),) * 2)),
        translate_range=(shift,) * 3,
        mode="bilinear",
        padding_mode="zeros",
    )
    return Compose([*flips, affine])


def global_augmentation(recipe: Recipe) -> GlobalAugmentation:
    """Random affine of the grid and flips, on grey levels, then the global expert's normalisation.

    What comes from outside the grid is 0 as outside an image, and is not valid for clicks. A transform that
    would lose the whole object is left out.
    """

    def augment(sample: GlobalSample, rng: np.random.Generator) -> GlobalSample:
        if recipe.affine > 0 or recipe.flip > 0:
            done = _seeded(_global_transforms(recipe), rng)(
                {
                    IMAGE: sample.image[None],
                    TRUTH: sample.truth[None].float(),
                    VALID: sample.valid[None].float(),
                }
            )
            if bool(((done[TRUTH] > 0.5) & (done[VALID] > 0.5)).any()):
                sample = sample._replace(
                    image=plain(done[IMAGE][0]),
                    truth=plain(done[TRUTH][0]) > 0.5,
                    valid=plain(done[VALID][0]) > 0.5,
                )
        return sample._replace(image=normalise_global(sample.image))

    return augment


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

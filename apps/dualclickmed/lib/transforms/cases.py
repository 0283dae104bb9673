"""From a labelled case to the samples that a training takes, stage by stage: what the app's trainers run.

Global expert: load, a region for each object, random affine, normalisation, first clicks. Local expert: load,
a window about an object, augmentation, first clicks. Between predictions: discrepancy, clicks. The stages are
the functions of `training` with MONAI's calling convention. They draw from the dictionary's `rng`, so that an
inserted transform does not change the draws of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import Transform

from ..imaging.intensity import normalise_global
from ..imaging.volume import from_array
from ..training.augment import global_movement, local_augmentation, plain
from ..training.batches import GlobalSample
from ..training.case_samples import case_crops, window_of
from ..training.first_prompts import first_points, interior_voxel
from ..training.opened import OpenedCase, OpenedCases, find_objects
from ..training.pipeline import CASE, CLICKED, EXTREME, IMAGE, LABEL, ORDER, POINTS, RNG, VALID, Context
from ..training.recipes import Recipe
from .clicks import AddClicksd, FindDiscrepancyd, one_channel

OPENED = "opened"
Data = Mapping[Hashable, Any]


def sample_transforms(context: Context) -> list[Callable[[Any], Any]]:
    """From the key `case` to samples of the recipe's expert."""
    recipe = context.recipe
    if recipe.kind == "global":
        return [
            LoadCased(context.cases),
            ObjectRoisd(recipe),
            RandMoved(recipe),
            NormaliseRoid(),
            FirstClicksd(recipe),
        ]
    return [LoadCased(context.cases), ObjectWindowd(recipe), RandWindowd(recipe), FirstClicksd(recipe)]


def click_transforms(context: Context) -> list[Callable[[Any], Any]]:
    """From `pred`, `label` and `valid` to clicks where the prediction is wrong."""
    return [FindDiscrepancyd(), AddClicksd(strategy=context.recipe.clicks, valid=VALID)]


class LoadCased(Transform):
    """Open the case: `image` (1, D, H, W) with the values that its volume stores, `label` (1, D, H, W).

    Both are views of what is kept in memory: a transform that changes them makes copies, as MONAI's do. The
    volume itself, with spacing and real units, is under `opened`.
    """

    def __init__(self, cases: OpenedCases) -> None:
        self.cases = cases

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        opened = self.cases.get(data[CASE])
        return {**data, OPENED: opened, IMAGE: opened.volume.array[None], LABEL: opened.labels[None]}


def _as_given(data: Data, recipe: Recipe) -> OpenedCase:
    """The opened case with the image and the label that the dictionary holds now."""
    opened: OpenedCase = data[OPENED]
    volume, labels, objects = opened.volume, opened.labels, opened.objects
    if not _is_view(data[IMAGE], volume.array):
        real = volume.to_real(one_channel(data[IMAGE], IMAGE).float()).numpy()
        volume = from_array(real, volume.spacing, volume.modality)
    if not _is_view(data[LABEL], labels):
        labels = one_channel(data[LABEL], LABEL).numpy().astype(labels.dtype)
        objects = find_objects(labels, recipe.smallest)
    return OpenedCase(volume, labels, objects)


def _is_view(values: Any, array: np.ndarray) -> bool:
    return isinstance(values, np.ndarray) and np.may_share_memory(values, array)


class ObjectRoisd(Transform):
    """The global expert's regions about boxes of up to `recipe.targets` objects: one dictionary for each.

    `image` (1, G, G, G) holds grey levels in [0, 255], `label` and `valid` are bool; `extreme` and `clicked`
    say what the first prompt is.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __call__(self, data: Data) -> list[dict[Hashable, Any]]:
        crops = case_crops(_as_given(data, self.recipe), data[RNG], self.recipe, data[ORDER])
        return [_put(data, crop) for crop in crops]


def _put(data: Data, sample: GlobalSample) -> dict[Hashable, Any]:
    kept = {key: value for key, value in data.items() if key != OPENED}
    return {
        **kept,
        IMAGE: sample.image[None],
        LABEL: sample.truth[None],
        VALID: sample.valid[None],
        EXTREME: sample.extreme,
        CLICKED: sample.clicked,
    }


def _sample(data: Data) -> GlobalSample:
    return GlobalSample(
        one_channel(data[IMAGE], IMAGE),
        one_channel(data[LABEL], LABEL) > 0,
        one_channel(data[VALID], VALID) > 0,
        data[EXTREME],
        data[CLICKED],
    )


class RandMoved(Transform):
    """Flips and a random affine of a region, as the recipe has them."""

    def __init__(self, recipe: Recipe) -> None:
        self.move = global_movement(recipe)

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        return _put(data, self.move(_sample(data), data[RNG]))


class NormaliseRoid(Transform):
    """Grey levels of a region as the global expert takes them."""

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        return {**data, IMAGE: normalise_global(one_channel(data[IMAGE], IMAGE))[None]}


class ObjectWindowd(Transform):
    """The local expert's window about an object: `image` and `valid` (1, S, S, S), `label` (K, S, S, S), the
    object and others in the window.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        opened = _as_given(data, self.recipe)
        image, valid, truths = window_of(opened, data[RNG], self.recipe, data[ORDER])
        kept = {key: value for key, value in data.items() if key != OPENED}
        return {**kept, IMAGE: image[None], VALID: valid[None], LABEL: truths}


class RandWindowd(Transform):
    """The augmentation of a window, as the recipe has it."""

    def __init__(self, recipe: Recipe) -> None:
        self.augment = local_augmentation(recipe)

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        image, valid, truths = self.augment(
            one_channel(data[IMAGE], IMAGE), one_channel(data[VALID], VALID), plain(data[LABEL]), data[RNG]
        )
        return {**data, IMAGE: image[None], VALID: valid[None], LABEL: truths}


class FirstClicksd(Transform):
    """First clicks under `points`: besides the box's centre (4, 3), NaN where there are none, for the global
    expert; one inside each object (K, 3) for the local one.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __call__(self, data: Data) -> dict[Hashable, Any]:
        if self.recipe.kind == "global":
            return {**data, POINTS: first_points(_sample(data), self.recipe, data[RNG])}
        clicks = [interior_voxel(truth > 0, data[RNG]) for truth in plain(data[LABEL])]
        return {**data, POINTS: torch.tensor(clicks)}

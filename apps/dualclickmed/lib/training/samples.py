"""Training samples cut from generated scenes, by the same geometry and intensities that serving uses."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..geometry import Box, crop_to_grid, global_roi, window_at
from ..intensity import normalise_global, normalise_local
from .generated import Scene, make_scene

# How often the simulated box is exact, drawn on the middle slice only (as the challenge does), or sloppy.
BOX_EXACT, BOX_MIDDLE = 0.5, 0.2
BOX_SLOPPINESS = 0.12
BORDER_SHARE = 0.25
# Local targets of fewer voxels are left out, and larger ones are preferred by this power of their volume: a
# scene holds many small objects for each large one.
MIN_LOCAL_TARGET, SIZE_PREFERENCE = 120, 0.4
# Scenes of less than this part of the window are mostly border; few of them are enough to know them.
SMALL_SCENE, SMALL_SCENE_SHARE = 0.6, 0.2


class GlobalBatch(NamedTuple):
    """image (B, 1, 64, 64, 64) normalised; truth and valid (B, 64, 64, 64) bool."""

    image: Tensor
    truth: Tensor
    valid: Tensor


class LocalBatch(NamedTuple):
    """image (W, 1, S, S, S) windows; truth and valid (B, S, S, S) bool; owner (B,) window of each object;
    first (B, 1, 3) voxel of the first click."""

    image: Tensor
    truth: Tensor
    valid: Tensor
    owner: Tensor
    first: Tensor


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
    return Box((float(lo[0]), float(lo[1]), float(lo[2])), (float(hi[0]), float(hi[1]), float(hi[2])))


def _symmetry(rng: np.random.Generator) -> tuple[list[int], list[int]]:
    """A random order of the axes and the axes to flip: scenes have no up or down."""
    order = [int(v) for v in rng.permutation(3)]
    flips = [axis for axis in range(3) if rng.random() < 0.5]
    return order, flips


def _turned(values: Tensor, order: list[int], flips: list[int]) -> Tensor:
    return values.permute(order).flip(flips)


def _touches_border(mask: npt.NDArray[np.bool_]) -> bool:
    return any(bool(mask.take((0, -1), axis=axis).any()) for axis in range(3))


def global_samples(scene: Scene, rng: np.random.Generator, count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Up to `count` samples (image, truth, valid) of one scene, each on the 64-voxel grid of its RoI."""
    masks = [scene.mask(scene.targets[int(i)]).numpy(force=True) for i in rng.permutation(len(scene.targets))]
    # Scenes are small, so many objects are cut by their border, which real images rarely do: keep some of
    # those only.
    masks = [m for m in masks if rng.random() < BORDER_SHARE or not _touches_border(m)] or masks
    array = scene.image.numpy(force=True)
    inside = np.ones(array.shape, dtype=np.uint8)
    samples = []
    for mask in masks[:count]:
        roi = global_roi(simulated_box(mask, rng))
        image = normalise_global(crop_to_grid(array, roi))
        truth = crop_to_grid(mask.astype(np.uint8), roi) > 0.5
        if not bool(truth.any()):
            continue
        valid = crop_to_grid(inside, roi) > 0.5
        order, flips = _symmetry(rng)
        samples.append(
            (_turned(image, order, flips), _turned(truth, order, flips), _turned(valid, order, flips))
        )
    return samples


class GlobalSource(Dataset[GlobalBatch]):
    """Batches for the global expert: batch number n depends on the seed and n alone, so a run resumes
    exactly.

    Args:
        scenes: scenes made for each batch.
        targets: objects taken from each scene; the batch size is at most `scenes * targets`.
        seed: of the whole sequence.
        device: where scenes are made; the batch is returned there.
    """

    def __init__(self, scenes: int, targets: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.scenes, self.targets, self.seed, self.device = scenes, targets, seed, torch.device(device)

    def __getitem__(self, number: int) -> GlobalBatch:
        rng = np.random.default_rng((self.seed, number))
        samples: list[tuple[Tensor, Tensor, Tensor]] = []
        for _ in range(self.scenes):
            samples += global_samples(make_scene(rng, device=self.device), rng, self.targets)
        image, truth, valid = (torch.stack(parts).to(self.device) for parts in zip(*samples, strict=True))
        return GlobalBatch(image[:, None], truth, valid)


class LocalSource(Dataset[LocalBatch]):
    """Batches for the local expert: windows with several targets each, numbered as in `GlobalSource`.

    A window is centred near an interior voxel of one target; the other targets whose interior it holds are
    asked for on the same features, which costs little and teaches that the click decides, not the window.
    """

    def __init__(
        self, windows: int, targets: int, seed: int, size: int = 96, device: torch.device | str = "cpu"
    ) -> None:
        self.windows, self.targets, self.seed, self.size = windows, targets, seed, size
        self.device = torch.device(device)

    def __getitem__(self, number: int) -> LocalBatch:
        rng = np.random.default_rng((self.seed, number))
        images: list[Tensor] = []
        truths, valids, owners, firsts = [], [], [], []
        while len(images) < self.windows:
            scene = make_scene(rng, size=int(self.size * rng.uniform(0.8, 1.25)), device=self.device)
            found = self._window(scene, rng)
            if found is None:
                continue
            image, inside, objects = found
            for truth, click in objects:
                truths.append(truth)
                valids.append(inside)
                owners.append(len(images))
                firsts.append(click)
            images.append(image)
        return LocalBatch(
            torch.stack(images)[:, None].to(self.device),
            torch.stack(truths).to(self.device),
            torch.stack(valids).to(self.device),
            torch.tensor(owners, device=self.device),
            torch.tensor(firsts, device=self.device)[:, None],
        )

    def _window(
        self, scene: Scene, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, list[tuple[Tensor, list[int]]]] | None:
        if max(scene.image.shape) < SMALL_SCENE * self.size and rng.random() > SMALL_SCENE_SHARE:
            return None
        masks = [m for m in map(scene.mask, scene.targets) if int(m.sum()) >= MIN_LOCAL_TARGET]
        if not masks:
            return None
        weights = np.array([float(m.sum()) for m in masks]) ** SIZE_PREFERENCE
        count = min(self.targets, len(masks))
        picked = rng.choice(len(masks), size=count, replace=False, p=weights / weights.sum())
        masks = [masks[int(i)] for i in picked]
        centre = self._interior(masks[0], rng)
        jitter = rng.integers(-6, 7, size=3) if rng.random() < 0.5 else np.zeros(3, dtype=int)
        z, y, x = (int(v) for v in centre + jitter)
        roi = window_at((z, y, x), (self.size, self.size, self.size))
        array = scene.image.numpy(force=True)
        low, high = np.percentile(array[::2, ::2, ::2], (1, 99))
        image = crop_to_grid(array, roi, lambda v: normalise_local(v, float(low), float(high)))
        inside = crop_to_grid(np.ones(array.shape, dtype=np.uint8), roi) > 0.5
        order, flips = _symmetry(rng)
        objects = []
        for mask in masks:
            truth = crop_to_grid(mask.numpy(force=True).astype(np.uint8), roi) > 0.5
            if int(truth.sum()) < MIN_LOCAL_TARGET:
                continue
            truth = _turned(truth, order, flips)
            objects.append((truth, [int(v) for v in self._interior(truth, rng)]))
        if not objects:
            return None
        return _turned(image, order, flips), _turned(inside, order, flips), objects

    def _interior(self, mask: Tensor, rng: np.random.Generator) -> np.ndarray:
        """A voxel inside the mask, mostly away from its surface."""
        at = torch.nonzero(mask)
        if len(at) > 200 and rng.random() < 0.8:
            inner = mask.clone()
            for _ in range(2):
                inner = _eroded(inner)
            if bool(inner.any()):
                at = torch.nonzero(inner)
        return at[int(rng.integers(len(at)))].numpy(force=True)


def _eroded(mask: Tensor) -> Tensor:
    """The voxels of a mask whose six neighbours belong to it."""
    kept = mask.clone()
    for axis in range(3):
        kept &= mask.roll(1, axis) & mask.roll(-1, axis)
    return kept

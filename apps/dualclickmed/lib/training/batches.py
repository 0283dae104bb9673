"""The samples of a training step, single objects or windows, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class GlobalBatch(NamedTuple):
    """image (B, 1, G, G, G) normalised; truth and valid (B, G, G, G) bool; points (B, N, 3) and labels (B, N)
    of first prompts besides the box's centre, N is 0 or 4 with label -1 where there are none; boxed (B,)
    bool, whether there is a box, whose centre is the first prompt."""

    image: Tensor
    truth: Tensor
    valid: Tensor
    points: Tensor
    labels: Tensor
    boxed: Tensor


class LocalBatch(NamedTuple):
    """image (W, 1, S, S, S) windows; truth and valid (B, S, S, S) bool; owner (B,) window of each object;
    first (B, 1, 3) voxel of the first click."""

    image: Tensor
    truth: Tensor
    valid: Tensor
    owner: Tensor
    first: Tensor


class Loaded(NamedTuple):
    """A batch, None if no case could be used, and the cases that turned out unusable: id to the reason."""

    batch: GlobalBatch | LocalBatch | None
    troubles: dict[str, str]


class GlobalSample(NamedTuple):
    """grey or normalised image, truth and valid, each (G, G, G); whether the first prompt is the object's
    extreme points; whether it is a click in a window instead of a box."""

    image: Tensor
    truth: Tensor
    valid: Tensor
    extreme: bool = False
    clicked: bool = False


class LocalSample(NamedTuple):
    """A window: image and valid (S, S, S), and for each object its truth (S, S, S) and a first click."""

    image: Tensor
    valid: Tensor
    objects: list[tuple[Tensor, list[int]]]


def global_batch(slots: Sequence[list[tuple[GlobalSample, Tensor]]]) -> GlobalBatch:
    """One batch of the samples of all slots, each with its further first points (`first_points`)."""
    samples = [sample for slot in slots for sample, _ in slot]
    points = torch.stack([first for slot in slots for _, first in slot])
    given = ~points.isnan().any(dim=-1)
    return GlobalBatch(
        torch.stack([s.image for s in samples])[:, None],
        torch.stack([s.truth for s in samples]),
        torch.stack([s.valid for s in samples]),
        points.nan_to_num(),
        torch.where(given, 1, -1),
        torch.tensor([not s.clicked for s in samples]),
    )


def local_batch(windows: Sequence[LocalSample]) -> LocalBatch:
    """One batch of windows and their objects."""
    objects = [(owner, w.valid, *found) for owner, w in enumerate(windows) for found in w.objects]
    return LocalBatch(
        torch.stack([w.image for w in windows])[:, None],
        torch.stack([truth for _, _, truth, _ in objects]),
        torch.stack([valid for _, valid, _, _ in objects]),
        torch.tensor([owner for owner, _, _, _ in objects]),
        torch.tensor([click for _, _, _, click in objects])[:, None],
    )

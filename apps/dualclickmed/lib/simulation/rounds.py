"""The rounds of clicks that training runs (paper, section 2.3), on one image embedding for each sample."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..networks.global_network import GlobalFeatures, RegionNetwork, box_centre_prompt
from ..networks.local_network import LocalFeatures, LocalNetwork
from .clicks import Draws, Strategy, balanced, boundary_attenuated


def global_rounds(
    network: RegionNetwork,
    features: GlobalFeatures,
    truth: Tensor,
    valid: Tensor,
    interactions: int,
    points_each: int,
    draws: Draws,
    together: bool = False,
    strategy: Strategy = boundary_attenuated,
    first: tuple[Tensor, Tensor] | None = None,
    last_only: bool = False,
    boxed: Tensor | None = None,
) -> Iterator[Tensor]:
    """Predict from the box and after the simulated clicks, one mask at a time.

    The first mask comes from the box alone. Each interaction then draws `points_each` clicks from the
    errors of the mask so far; they are added one by one, with a mask predicted after each (6 x 5 in the
    paper). With `together` an interaction adds between one and `points_each` clicks at once and predicts
    one mask: as many clicks seen for a fraction of the cost. The mask prompt is the mask at the start of the
    interaction or the first mask, at random: serving passes the first mask with all clicks, the challenge
    passes the last one.

    Masks are made when they are asked for, so that whoever consumes them may let go of one (and of what its
    gradient needs) before the next is made.

    Args:
        features: of B encoded images.
        truth, valid: (B, G, G, G) bool on the grid of the images.
        draws: random numbers of the batch.
        strategy: how clicks are drawn.
        first: further first prompts: points (B, N, 3) in grid voxels and labels (B, N).
        last_only: show the network the newest click instead of all.
        boxed: (B,) bool, which samples have a box (None: all).

    Yields:
        `global_masks` logits, each (B, G, G, G), resampled when the network's mask is smaller.
    """
    grid = truth.shape[-1]
    points, labels = box_centre_prompt(network, len(truth), grid, truth.device)
    if boxed is not None:
        labels = torch.where(boxed[:, None], labels, -1)
    if first is not None:
        points = torch.cat([points, first[0].to(points.dtype)], dim=1)
        labels = torch.cat([labels, first[1]], dim=1)
    raw = network.decode(features, points, labels, None)
    output = _full(raw, grid)
    raw = raw.detach()
    begun = network.to_mask_prompt(raw)
    shown = output.detach().float()
    yield output
    for _ in range(interactions):
        count = 1 + int(draws.one() * points_each) if together else points_each
        clicks = strategy(shown, truth, valid, count, draws)
        mask = network.to_mask_prompt(raw) if draws.one() < 0.5 else begun
        for new in [slice(0, count)] if together else [slice(i, i + 1) for i in range(count)]:
            points = torch.cat([points, clicks.points[:, new].to(points.dtype)], dim=1)
            labels = torch.cat([labels, clicks.labels[:, new]], dim=1)
            start = points.shape[1] - 1 if last_only else 0
            raw = network.decode(features, points[:, start:], labels[:, start:], mask)
            output = _full(raw, grid)
            raw = raw.detach()
            shown = output.detach().float()
            yield output


def global_masks(interactions: int, points_each: int, together: bool) -> int:
    """How many masks `global_rounds` yields."""
    return 1 + interactions * (1 if together else points_each)


def local_rounds(
    network: LocalNetwork,
    features: LocalFeatures,
    truth: Tensor,
    valid: Tensor,
    owner: Tensor,
    first_points: Tensor,
    rounds: int,
    draws: Draws,
    strategy: Strategy = balanced,
    last_only: bool = False,
) -> Iterator[Tensor]:
    """Predict after the first click and after every correction of the mask so far, one mask at a time.

    Args:
        features: of W encoded windows.
        truth, valid: (B, D, H, W) bool, the objects asked for; several may share a window.
        owner: (B,) int64, the window of each object.
        first_points: (B, 1, 3) the first, positive click of each object.
        rounds: predictions for each object.
        draws: random numbers of the batch.
        strategy: how clicks are drawn.
        last_only: show the network the newest click instead of all.

    Yields:
        `rounds` logits, each (B, D, H, W).
    """
    points = first_points.to(torch.float32)
    labels = torch.ones(points.shape[:2], dtype=torch.long, device=points.device)
    for turn in range(rounds):
        start = points.shape[1] - 1 if last_only else 0
        logits = network.decode(features.index(owner), points[:, start:], labels[:, start:])[:, 0]
        shown = logits.detach().float()
        yield logits
        if turn + 1 < rounds:
            clicks = strategy(shown, truth, valid, 1, draws)
            points = torch.cat([points, clicks.points.to(points.dtype)], dim=1)
            labels = torch.cat([labels, clicks.labels], dim=1)


def _full(logits: Tensor, grid: int) -> Tensor:
    """(B, 1, M, M, M) logits at the grid's size, without the channel."""
    if logits.shape[-1] != grid:
        logits = torch.nn.functional.interpolate(
            logits, size=(grid,) * 3, mode="trilinear", align_corners=False
        )
    return logits[:, 0]

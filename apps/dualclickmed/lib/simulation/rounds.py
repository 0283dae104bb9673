"""The rounds of clicks that training runs (paper, section 2.3), on one image embedding for each sample."""

from __future__ import annotations

import torch
from torch import Tensor

from ..networks.build import GlobalNetwork, LocalNetwork
from .clicks import Strategy, balanced, boundary_attenuated


def box_centre_prompt(
    network: GlobalNetwork, batch: int, grid: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The first prompt of the global expert: the centre of the box, which is the centre of the grid.

    Returns:
        points (B, 1, 3) in grid voxels and labels (B, 1).
    """
    points = torch.full((batch, 1, 3), (grid - 1) / 2, device=device)
    labels = torch.full((batch, 1), network.config.box_label, device=device, dtype=torch.long)
    return points, labels


def global_rounds(
    network: GlobalNetwork,
    image: Tensor,
    truth: Tensor,
    valid: Tensor,
    interactions: int,
    points_each: int,
    generator: torch.Generator,
    together: bool = False,
    strategy: Strategy = boundary_attenuated,
) -> list[Tensor]:
    """Encode once, then predict from the box and after the simulated clicks.

    The first mask comes from the box alone. Each interaction then draws `points_each` clicks from the
    errors of the mask so far; they are added one by one, with a mask predicted after each (6 x 5 in the
    paper). With `together` an interaction adds between one and `points_each` clicks at once and predicts
    one mask: as many clicks seen for
    a fraction of the cost. The mask prompt is the mask at the start of the interaction or the first mask,
    at random: serving passes the first mask with all clicks, the challenge passes the last one.

    Args:
        image: (B, 1, 64, 64, 64) normalised.
        truth, valid: (B, 64, 64, 64) bool.

    Returns:
        1 + interactions * points_each logits (1 + interactions when `together`), each (B, 64, 64, 64),
        resampled when the network's mask is smaller.
    """
    grid = image.shape[-1]
    features = network.encode(image)
    points, labels = box_centre_prompt(network, len(image), grid, image.device)
    raw = network.decode(features, points, labels, None)
    outputs = [_full(raw, grid)]
    first = network.to_mask_prompt(raw.detach())
    for _ in range(interactions):
        count = points_each
        if together:
            count = 1 + int(torch.randint(points_each, (), generator=generator, device=image.device))
        clicks = strategy(outputs[-1].detach().float(), truth, valid, count, generator)
        last = network.to_mask_prompt(raw.detach())
        coin = float(torch.rand((), generator=generator, device=image.device))
        mask = last if coin < 0.5 else first
        for new in [slice(0, count)] if together else [slice(i, i + 1) for i in range(count)]:
            points = torch.cat([points, clicks.points[:, new].to(points.dtype)], dim=1)
            labels = torch.cat([labels, clicks.labels[:, new]], dim=1)
            raw = network.decode(features, points, labels, mask)
            outputs.append(_full(raw, grid))
    return outputs


def local_rounds(
    network: LocalNetwork,
    image: Tensor,
    truth: Tensor,
    valid: Tensor,
    owner: Tensor,
    first_points: Tensor,
    rounds: int,
    generator: torch.Generator,
    strategy: Strategy = balanced,
) -> list[Tensor]:
    """Encode each window once, then predict after the first click and after every correction of it.

    Args:
        image: (W, 1, D, H, W) windows.
        truth, valid: (B, D, H, W) bool, the objects asked for; several may share a window.
        owner: (B,) int64, the window of each object.
        first_points: (B, 1, 3) the first, positive click of each object.
        rounds: predictions for each object.

    Returns:
        `rounds` logits, each (B, D, H, W).
    """
    features = network.encode(image).index(owner)
    points = first_points.to(torch.float32)
    labels = torch.ones(points.shape[:2], dtype=torch.long, device=image.device)
    outputs: list[Tensor] = []
    for turn in range(rounds):
        logits = network.decode(features, points, labels)[:, 0]
        outputs.append(logits)
        if turn + 1 < rounds:
            clicks = strategy(logits.detach().float(), truth, valid, 1, generator)
            points = torch.cat([points, clicks.points.to(points.dtype)], dim=1)
            labels = torch.cat([labels, clicks.labels], dim=1)
    return outputs


def _full(logits: Tensor, grid: int) -> Tensor:
    """(B, 1, M, M, M) logits at the grid's size, without the channel."""
    if logits.shape[-1] != grid:
        logits = torch.nn.functional.interpolate(
            logits, size=(grid,) * 3, mode="trilinear", align_corners=False
        )
    return logits[:, 0]

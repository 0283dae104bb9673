"""Where a simulated annotator clicks: the strategies that training draws its corrections from (paper,
section 2.3).

Every strategy takes a batch of predictions and truths and gives one or several clicks for each sample, as
indices into the grid. Where a sample has nothing to correct its clicks carry the padding label, which
networks ignore.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

PADDING_LABEL = -1
# Paper, section 2.3: Gaussian filter of the false prediction map, and how many of its highest voxels count.
ATTENUATION_SIGMA = 1.0
ATTENUATION_TOP = 64
# Paper, section 2.3: shares of clicks from false positives, false negatives and the confused region.
BALANCED_SHARES = (0.1, 0.5, 0.4)
# The paper says "near the 0.5 decision threshold"; this is how near.
CONFUSED_MARGIN = 0.1


class Clicks(NamedTuple):
    """A batch of simulated clicks.

    Attributes:
        points: (B, N, 3) int64 voxel indices (z, y, x) of the grid.
        labels: (B, N) int64: 1 foreground, 0 background, -1 where a sample has nothing to click.
    """

    points: Tensor
    labels: Tensor


Strategy = Callable[[Tensor, Tensor, Tensor, int, torch.Generator], Clicks]


def _blur(values: Tensor, sigma: float) -> Tensor:
    """Gaussian filter of (B, D, H, W) with zeros outside, as products with one matrix per axis."""
    for axis in (1, 2, 3):
        n = values.shape[axis]
        index = torch.arange(n, device=values.device, dtype=values.dtype)
        kernel = torch.exp(-0.5 * ((index[:, None] - index[None]) / sigma) ** 2)
        values = torch.tensordot(values, kernel, dims=([axis], [0])).movedim(-1, axis)
    return values


def _indices(flat: Tensor, shape: torch.Size) -> Tensor:
    """Flat positions (B, N) to (z, y, x) triples (B, N, 3)."""
    _, height, width = shape
    return torch.stack([flat // (height * width), flat // width % height, flat % width], dim=-1)


def _labelled(flat: Tensor, truth: Tensor, found: Tensor) -> Clicks:
    labels = torch.gather(truth.flatten(1).long(), 1, flat)
    labels = torch.where(found, labels, torch.full_like(labels, PADDING_LABEL))
    return Clicks(_indices(flat, truth.shape[1:]), labels)


def boundary_attenuated(
    logits: Tensor, truth: Tensor, valid: Tensor, count: int, generator: torch.Generator
) -> Clicks:
    """Clicks inside the errors, away from their surface (paper, section 2.3; the global expert's strategy).

    The false prediction map is filtered by a Gaussian of sigma 1; clicks are drawn uniformly from its 64
    highest voxels. Only false voxels count among the 64, so that a small error gets its click inside it.

    Args:
        logits: (B, D, H, W) prediction, foreground above 0.
        truth: (B, D, H, W) bool.
        valid: (B, D, H, W) bool, the voxels that a user can click (inside the image).
        count: clicks for each sample.
        generator: random source on the tensors' device.
    """
    wrong = ((logits > 0) != truth) & valid
    depth = (_blur(wrong.float(), ATTENUATION_SIGMA) * wrong).flatten(1)
    top = torch.topk(depth, min(ATTENUATION_TOP, depth.shape[1]), dim=1)
    usable = (top.values > 0).sum(dim=1, keepdim=True)
    draw = torch.rand((len(logits), count), generator=generator, device=logits.device)
    chosen = (draw * usable).long().clamp_max(top.indices.shape[1] - 1)
    return _labelled(torch.gather(top.indices, 1, chosen), truth, usable > 0)


def uniform_error(
    logits: Tensor, truth: Tensor, valid: Tensor, count: int, generator: torch.Generator
) -> Clicks:
    """Clicks drawn uniformly from all false voxels: what SAM-Med3D and VISTA3D do, kept for comparison."""
    wrong = (((logits > 0) != truth) & valid).flatten(1)
    return _labelled(_draw(wrong, count, generator), truth, wrong.any(dim=1, keepdim=True))


def balanced(logits: Tensor, truth: Tensor, valid: Tensor, count: int, generator: torch.Generator) -> Clicks:
    """Clicks from false positives, false negatives and the confused region in the shares 0.1, 0.5 and 0.4.

    The local expert's strategy (paper, section 2.3). The region is drawn for each click; an empty region's
    share goes to the others. A click in the confused region carries the truth there. Arguments as in
    `boundary_attenuated`.
    """
    positive = logits > 0
    regions = torch.stack(
        [
            positive & ~truth & valid,
            ~positive & truth & valid,
            ((torch.sigmoid(logits) - 0.5).abs() < CONFUSED_MARGIN) & valid,
        ],
        dim=1,
    ).flatten(2)
    shares = torch.tensor(BALANCED_SHARES, device=logits.device)[None] * regions.any(dim=2)
    found = shares.sum(dim=1, keepdim=True) > 0
    shares = torch.where(found, shares, torch.ones_like(shares))
    kind = torch.multinomial(shares, count, replacement=True, generator=generator)
    points, labels = [], []
    for turn in range(count):
        region = torch.gather(regions, 1, kind[:, turn, None, None].expand(-1, 1, regions.shape[2]))[:, 0]
        clicks = _labelled(_draw(region, 1, generator), truth, found)
        points.append(clicks.points)
        labels.append(clicks.labels)
    return Clicks(torch.cat(points, dim=1), torch.cat(labels, dim=1))


def _draw(region: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Flat positions (B, count) drawn uniformly from a boolean (B, V) region; position 0 where it is empty.

    The r-th true voxel is found in the running count, which costs one pass however many voxels there are.
    """
    running = region.cumsum(dim=1, dtype=torch.int32)
    total = running[:, -1:]
    draw = torch.rand((len(region), count), generator=generator, device=region.device)
    rank = (draw * total).to(torch.int32).minimum((total - 1).clamp_min(0)) + 1
    return torch.searchsorted(running, rank).clamp_max(region.shape[1] - 1)

"""Random walks as input channels: how far an object reaches from what is known of it, by the image's edges.

A network of few convolutions follows an even organ to its end only as far as it sees, and each click tells it
something about few voxels. The solution of a random walk with priors (Grady 2005) is global: it carries every
click, the box and the previous mask to the edges of the image. The network learns where to believe it.

A fixed number of conjugate-gradient steps makes the solution a function of its input that is the same in
training and in serving, however the samples are batched.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .layers import without_autocast
from .prompt_encoder import BACKGROUND, FOREGROUND
from .walk_solver import solve_walks

STEPS = 12
"""Steps of conjugate gradients; each carries a click one voxel further. In a noisy ball they leave an error
of 0.003 on the mean and of 0.05 at most. The network was trained with 24, and answers no worse with these
(docs/experiments.md)."""
CONTRAST = 0.7
"""Difference of intensities that counts as an edge, in mean differences of neighbours."""
LEAST_LINK = 1e-3
"""Part of the readiness to step that no edge can take."""
UNSURE = 0.2
"""Weight of the prior where it knows nothing, as a part of `trust`."""
CERTAIN = 10.0
"""Weight of a click at its voxel, where a step between two equal voxels has weight 1."""


def random_walks(
    image: Tensor, starts: Sequence[Tensor], trusts: Sequence[float], points: Tensor, labels: Tensor
) -> Tensor:
    """The probability that a walk from each voxel ends inside the object, for each of some priors.

    A walker steps to a face neighbour the more readily the more alike the two voxels are. It may stop at
    every voxel, the more readily where the prior is surer, and then counts as inside with the prior's
    probability there. A clicked voxel stops almost every walker.

    Args:
        image: (B, D, H, W) intensities.
        starts: N priors, (B, D, H, W) logits each.
        trusts: of each prior the weight of stopping where it is certain.
        points: (B, P, 3) clicked positions (z, y, x) in voxels; a voxel's centre is an integer.
        labels: (B, P) 1 foreground, 0 background; others have no effect.

    Returns:
        (B, N, D, H, W) float32 in [0, 1]. No gradient flows through it.
    """
    with torch.no_grad(), without_autocast(image):
        prior = torch.sigmoid(torch.stack(list(starts), dim=1).float())
        weight = torch.tensor(trusts, device=prior.device).view(-1, 1, 1, 1)
        stop = weight * (UNSURE + (1 - UNSURE) * (2 * prior - 1).abs())
        stopped = stop * prior
        counts = (labels == FOREGROUND) | (labels == BACKGROUND)
        inside = _clicked(points, labels == FOREGROUND, image.shape)
        clicked = _clicked(points, counts, image.shape)
        # A voxel that was clicked as both is as likely inside as not.
        known = (inside / clicked.clamp_min(1))[:, None]
        there = (clicked > 0)[:, None]
        stop = torch.where(there, CERTAIN, stop)
        stopped = torch.where(there, CERTAIN * known, stopped)
        first = torch.where(there, known, prior)
        # What one sample needs fits into a processor's cache, a batch does not; a GPU would rather have all.
        count = 1 if image.device.type == "cpu" else max(1, len(image))
        parts = zip(*(t.split(count) for t in (*_links(image.float()), stop, stopped, first)), strict=True)
        found = [solve_walks((z, y, x), *given, most_steps=STEPS) for z, y, x, *given in parts]
        return torch.cat(found).clamp_(0, 1)


def _clicked(points: Tensor, which: Tensor, shape: torch.Size) -> Tensor:
    """How many of the chosen points (B, N) lie in each voxel of (B, D, H, W)."""
    sample, point = which.nonzero(as_tuple=True)
    last = torch.tensor(shape[1:], device=points.device) - 1
    voxel = torch.minimum(points[sample, point].round().long().clamp_min(0), last)
    counts = torch.zeros(shape, device=points.device)
    return counts.index_put_((sample, *voxel.unbind(dim=1)), counts.new_ones(len(sample)), accumulate=True)


def _links(image: Tensor) -> list[Tensor]:
    """How readily a walker steps to the next voxel along each axis, (B, D, H, W); 0 at the far face."""
    differences = [image.diff(dim=axis) for axis in (1, 2, 3)]
    usual = torch.stack([d.abs().mean(dim=(1, 2, 3)) for d in differences]).mean(dim=0)
    contrast = (CONTRAST * usual + 1e-3).view(-1, 1, 1, 1)
    found = []
    for axis, difference in enumerate(differences, 1):
        link = torch.zeros_like(image)
        inner = link.narrow(axis, 0, difference.shape[axis])
        inner.copy_(torch.exp(-0.5 * (difference / contrast).square()) + LEAST_LINK)
        found.append(link)
    return found

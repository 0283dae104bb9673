"""Random walks as input channels: how far an object reaches from what is known of it, by the image's edges.

A network of few convolutions follows an even organ to its end only as far as it sees, and each click tells it
something about few voxels. The solution of a random walk with priors (Grady 2005) is global: it carries every
click, the box and the previous mask to the edges of the image. The network learns where to believe it.

A fixed number of conjugate-gradient steps makes the solution a function of its input that is the same in
training and in serving, however the samples are batched.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .layers import without_autocast
from .prompt_encoder import BACKGROUND, FOREGROUND

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
_LEAST = 1e-20


def random_walk(image: Tensor, logits: Tensor, points: Tensor, labels: Tensor, trust: float) -> Tensor:
    """The probability that a walk from each voxel ends inside the object.

    A walker steps to a face neighbour the more readily the more alike the two voxels are. It may stop at
    every voxel, the more readily where the prior is surer, and then counts as inside with the prior's
    probability there. A clicked voxel stops almost every walker.

    Args:
        image: (B, D, H, W) intensities.
        logits: (B, D, H, W) the prior.
        points: (B, N, 3) clicked positions (z, y, x) in voxels; a voxel's centre is an integer.
        labels: (B, N) 1 foreground, 0 background; others have no effect.
        trust: weight of stopping where the prior is certain.

    Returns:
        (B, D, H, W) float32 in [0, 1]. No gradient flows through it.
    """
    with torch.no_grad(), without_autocast(image):
        prior = torch.sigmoid(logits.float())
        stop = trust * (UNSURE + (1 - UNSURE) * (2 * prior - 1).abs())
        stopped = stop * prior
        given = (labels == FOREGROUND) | (labels == BACKGROUND)
        inside = _clicked(points, labels == FOREGROUND, prior.shape)
        clicked = _clicked(points, given, prior.shape)
        # A voxel that was clicked as both is as likely inside as not.
        known = inside / clicked.clamp_min(1)
        stop = torch.where(clicked > 0, CERTAIN, stop)
        stopped = torch.where(clicked > 0, CERTAIN * known, stopped)
        first = torch.where(clicked > 0, known, prior)
        # What one sample needs fits into a processor's cache, a batch does not; a GPU would rather have all.
        count = 1 if image.device.type == "cpu" else max(1, len(image))
        parts = zip(*(t.split(count) for t in (image.float(), stop, stopped, first)), strict=True)
        return torch.cat([_solved(*part) for part in parts])


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


def _solved(image: Tensor, stop: Tensor, stopped: Tensor, first: Tensor) -> Tensor:
    """`STEPS` steps of conjugate gradients with the diagonal as preconditioner, from `first` on."""
    links = _links(image)
    # Neighbours are a fixed number of places apart in flat rows, where operations are fastest.
    _, height, width = first.shape[1:]
    steps = [
        (link.flatten(1)[:, :-apart], apart)
        for link, apart in zip(links, (height * width, width, 1), strict=True)
    ]
    diagonal, stopped, x = stop.flatten(1).clone(), stopped.flatten(1), first.flatten(1).clone()
    for link, apart in steps:
        diagonal[:, :-apart] += link
        diagonal[:, apart:] += link

    def system(x: Tensor) -> Tensor:
        result = diagonal * x
        for link, apart in steps:
            result[:, :-apart].addcmul_(link, x[:, apart:], value=-1)
            result[:, apart:].addcmul_(link, x[:, :-apart], value=-1)
        return result

    inverse = 1 / diagonal
    residual = stopped - system(x)
    direction = inverse * residual
    size = _product(residual, direction)
    for _ in range(STEPS):
        applied = system(direction)
        length = size / _product(direction, applied).clamp_min(_LEAST)
        x.addcmul_(length, direction)
        residual.addcmul_(length, applied, value=-1)
        scaled = inverse * residual
        previous, size = size, _product(residual, scaled)
        direction = scaled.addcmul_(direction, size / previous.clamp_min(_LEAST))
    return x.clamp_(0, 1).view_as(first)


def _product(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a, b, dim=1)[:, None]

"""Evidence of the box before any click: whether an intensity is more common inside it than around it.

The global RoI is always 1.8 times the box (`geometry.GLOBAL_SCALE`): the box fills a known part of the grid
and no prompt is needed here. The evidence belongs to the image embedding and is cached with it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 64
# Normalised intensities; what lies outside counts in the first or last bin.
LOWEST, HIGHEST = -2.5, 3.5
# Bins that a value is spread over: histograms of a small object are ragged.
SMOOTHING = 1.5
# Share of even values mixed into each histogram, which bounds the evidence of values that are rare in both.
FLOOR = 0.05
LIMIT = 3.0
# Half side of the RoI in half sides of the box (paper, section 2.2).
BOX_SCALE = 1.8
# From this radius on (1 is the ellipsoid inscribed in the box) a voxel counts as surroundings.
OUTER = 1.15


def box_evidence(image: Tensor, radius: Tensor) -> Tensor:
    """Log-likelihood ratio of each voxel's intensity, inside the box's ellipsoid against around it.

    Args:
        image: (B, 1, D, H, W) normalised RoIs.
        radius: (D, H, W) distance of each voxel from the RoI's centre, 1 at the middle of its faces.

    Returns:
        (B, 2, D, H, W) float32 in [-1, 1]: from the intensities and from their means over 3^3 voxels,
        which see through noise.
    """
    image = image.detach().float()
    smooth = F.avg_pool3d(image, 3, stride=1, padding=1, count_include_pad=False)
    reach = radius.float() * BOX_SCALE
    inner = (1 - reach.square()).clamp_min(0).flatten()
    outer = (reach > OUTER).float().flatten()
    return torch.cat([_ratio(image, inner, outer), _ratio(smooth, inner, outer)], dim=1)


def _ratio(image: Tensor, inner: Tensor, outer: Tensor) -> Tensor:
    batch = len(image)
    at = ((image.flatten(1) - LOWEST) * (BINS / (HIGHEST - LOWEST))).long().clamp_(0, BINS - 1)
    histograms = []
    for weights in (inner, outer):
        counts = torch.zeros(batch, BINS, device=image.device)
        counts.scatter_add_(1, at, weights.expand(batch, -1))
        counts = counts @ _spread(image.device)
        histograms.append((1 - FLOOR) * counts / counts.sum(dim=1, keepdim=True) + FLOOR / BINS)
    ratio = (histograms[0] / histograms[1]).log().clamp(-LIMIT, LIMIT) / LIMIT
    return torch.gather(ratio, 1, at).reshape(image.shape)


def _spread(device: torch.device) -> Tensor:
    index = torch.arange(BINS, device=device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * ((index[:, None] - index[None]) / SMOOTHING) ** 2)
    return kernel / kernel.sum(dim=1, keepdim=True)

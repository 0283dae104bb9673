"""How far each click reaches: clicks of both kinds compete for the voxels between them.

A network of few convolutions sees a click only nearby. These maps carry it across the region: every click
has an influence on every voxel that falls with the distance, in the second map also with the difference of
intensities, and a voxel belongs to the kind with the larger influence. Between two clicks the border lies
half way, or at the image's edge, as with the seeds of a random walker but in closed form.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .layers import sample_at, without_autocast

POWER = 1.5
"""The force falls with this power of the squared distance (in voxels of the map)."""
REST = 6.0
"""Distance at which a single click's force equals the resistance, in voxels of the map."""
INTENSITY_WIDTH = 0.35
"""Difference of normalised intensities that counts as one deviation."""
MAPS = 2


def click_influence(unit: Tensor, positive: Tensor, negative: Tensor, image: Tensor) -> Tensor:
    """Which kind of click each voxel belongs to, and how surely.

    Args:
        unit: (B, N, 3) positions (z, y, x) with 0 and 1 the outer edges of the grid.
        positive, negative: (B, N) bool, of which kind point n is; of neither it has no effect.
        image: (B, 1, D, H, W) smoothed, normalised intensities at the maps' size.

    Returns:
        (B, 2, D, H, W) float32 in (-1, 1): 1 foreground, -1 background, 0 where no click reaches; by distance
        alone, and by distance and intensity. No gradient flows through it.
    """
    with torch.no_grad(), without_autocast(unit):
        image = image.float()
        size = image.shape[2:]
        at = unit.float() * unit.new_tensor(size, dtype=torch.float32) - 0.5
        values = sample_at(image, unit)  # (B, N, 1)
        pulls = image.new_zeros(2, len(image), MAPS, *size)
        squares = [
            (torch.arange(n, dtype=torch.float32, device=unit.device) - at[..., axis, None]).square()
            for axis, n in enumerate(size)
        ]
        # One point at a time: memory does not grow with the clicks.
        for i in range(unit.shape[1]):
            z, y, x = (square[:, i] for square in squares)
            distance = z[:, :, None, None] + y[:, None, :, None] + x[:, None, None, :]
            force = (1 + distance).pow_(-POWER)
            alike = ((image[:, 0] - values[:, i, :, None, None]) / INTENSITY_WIDTH).square_()
            both = torch.stack([force, force * alike.mul_(-0.5).exp_()], dim=1)
            for pull, kind in zip(pulls, (positive, negative), strict=True):
                pull += both * kind[:, i].view(-1, 1, 1, 1, 1)
        fore, back = pulls
        return (fore - back) / (fore + back + (1 + REST**2) ** -POWER)

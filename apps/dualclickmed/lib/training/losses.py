"""Dice + focal loss (paper, section 2.4)."""

from __future__ import annotations

import torch
from torch import Tensor

FOCAL_GAMMA = 2.0
# Keeps the Dice of an object of a few voxels from jumping between 0 and 1.
DICE_SMOOTH = 1.0


def dice_focal(logits: Tensor, truth: Tensor, focal_weight: float = 1.0) -> Tensor:
    """Mean over the batch of soft Dice loss plus weighted focal loss.

    Args:
        logits: (B, D, H, W).
        truth: (B, D, H, W) bool or float in [0, 1].
        focal_weight: factor of the focal term.

    Returns:
        A scalar, computed in float32.
    """
    x = logits.float().flatten(1)
    y = truth.to(x.dtype).flatten(1)
    p = torch.sigmoid(x)
    overlap = (p * y).sum(dim=1)
    dice = 1 - (2 * overlap + DICE_SMOOTH) / (p.sum(dim=1) + y.sum(dim=1) + DICE_SMOOTH)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(x, y, reduction="none")
    missed = (p + y - 2 * p * y).clamp(0, 1)
    focal = (missed**FOCAL_GAMMA * entropy).mean(dim=1)
    return (dice + focal_weight * focal).mean()


def hard_dice(logits: Tensor, truth: Tensor) -> Tensor:
    """(B,) Dice of the thresholded masks; 1 where both are empty."""
    mask = (logits > 0).flatten(1)
    truth = truth.flatten(1)
    both = (mask & truth).sum(dim=1).float()
    total = (mask.sum(dim=1) + truth.sum(dim=1)).float()
    return torch.where(total > 0, 2 * both / total.clamp_min(1), torch.ones_like(total))

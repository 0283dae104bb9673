"""Dice + focal loss (paper, section 2.4)."""

from __future__ import annotations

import torch
from monai.losses import DiceFocalLoss
from torch import Tensor

FOCAL_GAMMA = 2.0
# Keeps the Dice of an object of a few voxels from jumping between 0 and 1.
DICE_SMOOTH = 1.0


def dice_focal(logits: Tensor, truth: Tensor, focal_weight: float = 1.0) -> Tensor:
    """Mean over the batch of soft Dice loss plus weighted focal loss.

    Args:
        logits: (B, D, H, W).
        truth: (B, D, H, W) bool.
        focal_weight: factor of the focal term.

    Returns:
        A scalar, computed in float32.
    """
    loss = DiceFocalLoss(
        sigmoid=True,
        gamma=FOCAL_GAMMA,
        smooth_nr=DICE_SMOOTH,
        smooth_dr=DICE_SMOOTH,
        lambda_focal=focal_weight,
    )
    return loss(logits.float()[:, None], truth[:, None].float())


def hard_dice(logits: Tensor, truth: Tensor) -> Tensor:
    """(B,) Dice of the thresholded masks; 1 where both are empty."""
    mask = (logits > 0).flatten(1)
    truth = truth.flatten(1)
    both = (mask & truth).sum(dim=1).float()
    total = (mask.sum(dim=1) + truth.sum(dim=1)).float()
    return torch.where(total > 0, 2 * both / total.clamp_min(1), torch.ones_like(total))

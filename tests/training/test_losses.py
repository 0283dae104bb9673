"""Dice + focal against their formulas, written out."""

from __future__ import annotations

import math

import pytest
import torch
from dualclickmed.training.losses import dice_focal, hard_dice


def test_value_on_a_tiny_case() -> None:
    probabilities = [0.9, 0.2, 0.6, 0.3]
    truth = [1.0, 0.0, 0.0, 1.0]
    overlap = sum(p * t for p, t in zip(probabilities, truth, strict=True))
    dice = 1 - (2 * overlap + 1) / (sum(probabilities) + sum(truth) + 1)
    focal = 0.0
    for p, t in zip(probabilities, truth, strict=True):
        right = p if t else 1 - p
        focal -= (1 - right) ** 2 * math.log(right) / 4
    logits = torch.logit(torch.tensor(probabilities)).reshape(1, 1, 2, 2)
    got = dice_focal(logits, torch.tensor(truth).reshape(1, 1, 2, 2) > 0, focal_weight=3.0)
    assert float(got) == pytest.approx(dice + 3 * focal, rel=1e-5)


def test_batch_is_the_mean_of_its_samples() -> None:
    torch.manual_seed(0)
    logits, truth = torch.randn(3, 4, 4, 4), torch.rand(3, 4, 4, 4) > 0.5
    each = [float(dice_focal(logits[i : i + 1], truth[i : i + 1])) for i in range(3)]
    assert float(dice_focal(logits, truth)) == pytest.approx(sum(each) / 3, rel=1e-5)


def test_a_sure_right_mask_costs_nothing_and_extreme_logits_stay_finite() -> None:
    truth = torch.zeros(1, 6, 6, 6, dtype=torch.bool)
    truth[0, 2:4, 2:4, 2:4] = True
    logits = torch.where(truth, 200.0, -200.0).requires_grad_()
    loss = dice_focal(logits, truth)
    loss.backward()
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert bool(torch.isfinite(logits.grad).all())  # type: ignore[arg-type]
    assert float(dice_focal(-logits.detach(), truth)) > 50


def test_hard_dice() -> None:
    truth = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]).bool().reshape(3, 1, 1, 4)
    logits = torch.tensor([[1.0, -1, 1, -1], [-1, -1, -1, -1], [-1, 1, -1, -1]]).reshape(3, 1, 1, 4)
    assert hard_dice(logits, truth).tolist() == [0.5, 1.0, 0.0]

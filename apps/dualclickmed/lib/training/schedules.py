"""How the learning rate goes through a run, as functions of how much of it is over."""

from __future__ import annotations

import math

from .recipes import Recipe


def rate_factor(recipe: Recipe, step: int, done: float) -> float:
    """What the peak rate is multiplied by.

    Args:
        recipe: names the schedule and its numbers.
        step: of the optimiser, from 0, for the linear warm-up.
        done: part of the run that is over, in [0, 1], by steps or by time.

    Returns:
        flat: 1, then linearly to 0 in the last `cooldown` of the run; multistep: `drop` to the number of
        milestones passed (Table 2, global); cosine: half a wave from 1 to 0 (Table 2, local). Each times the
        warm-up.
    """
    warm = min(1.0, (step + 1) / recipe.warmup) if recipe.warmup else 1.0
    if recipe.schedule == "multistep":
        return warm * recipe.drop ** sum(done >= milestone for milestone in recipe.milestones)
    if recipe.schedule == "cosine":
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    left = (1.0 - done) / recipe.cooldown if recipe.cooldown > 0 else 1.0
    return warm * min(1.0, max(0.0, left))

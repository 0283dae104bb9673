"""How the learning rate goes through a run, as functions of how much of it is over."""

from __future__ import annotations

import math

from .recipes import Recipe


def rate_factor(recipe: Recipe, done: float, steps: int) -> float:
    """What the peak rate is multiplied by.

    Args:
        recipe: names the schedule and its numbers.
        done: part of the run that is over, in [0, 1], by steps or by time.
        steps: of the run; the first of them has a rate above 0.

    Returns:
        flat: 1, then linearly to 0 in the last `cooldown` of the run; multistep: `drop` to the number of
        milestones passed (Table 2, global); cosine: half a wave from 1 to 0 after the warm-up (Table 2,
        local). In the first `warmup` of the run it rises linearly.
    """
    warm = min(1.0, (done + 1 / steps) / recipe.warmup) if recipe.warmup else 1.0
    if recipe.schedule == "multistep":
        return warm * recipe.drop ** sum(done >= milestone for milestone in recipe.milestones)
    if recipe.schedule == "cosine":
        left = max(0.0, min(1.0, done) - recipe.warmup) / max(1e-9, 1 - recipe.warmup)
        return warm * 0.5 * (1 + math.cos(math.pi * left))
    left = (1.0 - done) / recipe.cooldown if recipe.cooldown > 0 else 1.0
    return warm * min(1.0, max(0.0, left))

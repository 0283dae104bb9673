"""Dice of weights on fixed objects that no training has seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..simulation.clicks import STRATEGIES, Draws
from .learner import Learner
from .losses import hard_dice
from .opened import OpenedCases
from .samples import GENERATED, Samples
from .sources import LabelledCase, WeightedSource

# Seeds far from any run's own, so that what is measured was never trained on.
VALIDATION_SEED = 1_000_003
VALIDATION_BATCHES = 12


def validate(
    learner: Learner, network: nn.Module, cases: Sequence[LabelledCase] | None, cache_bytes: int
) -> dict[str, float]:
    """Mean Dice of a network on fixed objects, from the first prompt and after each click.

    Args:
        learner: its recipe says which clicks are simulated.
        network: in evaluation mode.
        cases: whose objects are measured; None: fixed generated objects.
        cache_bytes: memory for opened cases.

    Raises:
        UserError: no case can be used.
    """
    recipe = dataclasses.replace(learner.recipe, affine=0.0, flip=0.0, rotate=0.0, intensity=0.0)
    data = GENERATED if not cases else (WeightedSource(cases),)
    source = Samples(recipe, data, VALIDATION_SEED, opened=OpenedCases(recipe, cache_bytes))
    number = VALIDATION_BATCHES if not cases else -(-len(cases) // recipe.scenes)
    totals: list[Tensor] = []
    with torch.inference_mode():
        for turn in range(number):
            learner.check()
            batch = source[turn].batch
            if batch is None:
                raise UserError("None of the validation cases can be used.")
            batch = type(batch)(*(part.to(learner.device) for part in batch))
            draws = Draws(learner.generator(turn, VALIDATION_SEED))
            with learner.autocast():
                features = cast(Any, network).encode(batch.image)
                masks = learner.masks(network, features, batch, draws, STRATEGIES[recipe.clicks])
                # Of alternatives the first, which the next interaction goes on from.
                dice = [hard_dice(mask[:, 0], batch.truth) for mask in masks]
            totals.append(torch.stack(dice, dim=1).cpu())
    means = torch.cat(totals).mean(dim=0).tolist()
    names = ["first prompt"] + [f"{i} clicks" for i in range(1, len(means))]
    return {name: round(mean, 4) for name, mean in zip(names, means, strict=True)}

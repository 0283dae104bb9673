"""The length of a run and its sources, computed from its recipe and its data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from ..errors import UserError
from ..simulation.rounds import GlobalRounds
from .recipes import Recipe
from .samples import GENERATED
from .sources import LabelledCase, WeightedSource


def with_replay(recipe: Recipe, data: Sequence[WeightedSource] | None) -> tuple[WeightedSource, ...]:
    """The sources of a run: those given with the recipe's share of generated scenes, or these alone."""
    if not data:
        return GENERATED
    if recipe.replay > 0 and all(source.cases != "generated" for source in data):
        total = sum(source.weight for source in data)
        return (*data, WeightedSource("generated", total * recipe.replay / (1 - recipe.replay)))
    return tuple(data)


def labelled_cases(data: Sequence[WeightedSource]) -> list[LabelledCase]:
    """All labelled cases of the sources."""
    return [case for source in data if source.cases != "generated" for case in cast(Any, source.cases)]


def steps_of(
    recipe: Recipe,
    data: Sequence[WeightedSource],
    world: int = 1,
    counts: Mapping[str, int] | None = None,
) -> int:
    """Optimiser steps of a run: the recipe's, or those in which its epochs ask for every labelled object.

    An object of the global expert is one crop; the local expert has a window about each, in which other
    objects are asked for besides.

    Args:
        recipe: its epochs, or its steps where it has none.
        data: sources of samples; what is drawn from generated scenes is no part of an epoch.
        world: processes that share the work.
        counts: objects of each labelled case.

    Raises:
        UserError: epochs were asked for, but there are no labelled cases, or no object in them.
    """
    if not recipe.epochs:
        return recipe.steps
    cases = labelled_cases(data)
    if not cases:
        raise UserError(
            f"The recipe counts {recipe.epochs} epochs over labelled cases, but there are none; "
            "name them with --data, or give --steps."
        )
    each = recipe.targets if recipe.kind == "global" else 1
    visits = sum(-(-(counts or {}).get(case.id, 1) // each) for case in cases)
    if not visits:
        raise UserError("None of the labelled cases can be used: there is no object to train on.")
    total = sum(source.weight for source in data)
    share = sum(source.weight for source in data if source.cases != "generated") / total
    slots = recipe.scenes * world * recipe.accumulate
    return recipe.epochs * math.ceil(visits / slots / share - 1e-9)


def global_plan(recipe: Recipe) -> GlobalRounds:
    """The interactions of a step of the global expert."""
    return GlobalRounds(recipe.interactions, recipe.points, recipe.mode, recipe.last_only)


def masks_of(recipe: Recipe) -> int:
    """Predictions for each object in a step."""
    return recipe.interactions if recipe.kind == "local" else global_plan(recipe).masks

"""Objects per second of training recipes, measured in turns so that they can be compared."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..errors import UserError
from ..experts.precision import training_precision
from ..training.learner import Learner
from ..training.parallel import Team
from ..training.plan import masks_of
from ..training.recipes import Recipe
from ..training.samples import Samples


@dataclass(frozen=True)
class Speed:
    """What a step of a recipe takes, medians.

    Attributes:
        recipe: its name.
        masks: predictions for each object in a step.
        objects: in a step, mean.
        making: seconds to make the samples of a step from generated scenes, in the training process.
        step: seconds of the step itself.
        processor: seconds of all processor cores in the step, which other work on the machine changes less.
        objects_per_second: with the samples made beforehand, as with `--workers`.
        precision: what it computes in.
    """

    recipe: str
    masks: int
    objects: float
    making: float
    step: float
    processor: float
    objects_per_second: float
    precision: str


class _Turn:
    """One recipe in training, and what its steps took."""

    def __init__(self, recipe: Recipe, device: str) -> None:
        self.recipe = dataclasses.replace(recipe, epochs=0)
        self.device = torch.device(device)
        self.dtype = training_precision(self.device)
        self.learner = Learner(self.recipe, Team(0, 1, self.device), self.dtype)
        self.samples = Samples(self.recipe)
        self.taken: list[tuple[int, float, float, float]] = []

    def step(self, number: int) -> None:
        begin = time.perf_counter()
        batches = []
        for turn in range(self.recipe.accumulate):
            batch = self.samples[number * self.recipe.accumulate + turn].batch
            assert batch is not None, "generated scenes always have objects"
            batches.append(type(batch)(*(part.to(self.device) for part in batch)))
        made, processor = time.perf_counter(), time.process_time()
        objects = self.learner.optimise(batches, number, 1.0).samples
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.taken.append(
            (objects, made - begin, time.perf_counter() - made, time.process_time() - processor)
        )


def training_speeds(recipes: Mapping[str, Recipe], steps: int, device: str = "cpu") -> list[Speed]:
    """Objects per second of recipes on generated scenes, from random weights.

    The recipes take turns, one step each, so that other work on the machine hits them alike; the first step
    of each is not counted.

    Args:
        recipes: by name.
        steps: of each recipe that count.
        device: where they train.

    Raises:
        UserError: fewer than one step.
    """
    if steps < 1:
        raise UserError(f"At least one step must be measured, but {steps} were asked for.")
    turns = {name: _Turn(recipe, device) for name, recipe in recipes.items()}
    for number in range(steps + 1):
        for turn in turns.values():
            turn.step(number)
    return [_speed(name, turn) for name, turn in turns.items()]


def _speed(name: str, turn: _Turn) -> Speed:
    objects, making, step, processor = zip(*turn.taken[1:], strict=True)
    each = statistics.median(taken / count for count, _, taken, _ in turn.taken[1:])
    return Speed(
        name,
        masks_of(turn.recipe),
        statistics.mean(objects),
        statistics.median(making),
        statistics.median(step),
        statistics.median(processor),
        1 / each,
        "float32" if turn.dtype is None else str(turn.dtype).removeprefix("torch."),
    )

"""Samples from labelled cases, and clicks, by MONAI dictionary transforms.

A training is given hooks, functions that make lists of transforms; `transforms.cases` has those that the
app's trainers start from. What these draw comes from the sample's own random numbers, which travel in the
dictionary; transforms of MONAI are seeded for each sample. So a sample depends on the recipe, the seed and
its number alone.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose
from torch import Tensor

from ..errors import UserError
from ..simulation.clicks import PADDING_LABEL, Clicks, Draws
from .augment import plain
from .batches import GlobalSample, LocalSample
from .case_samples import Order
from .opened import OpenedCases
from .recipes import Recipe
from .sources import LabelledCase

CASE, RNG, ORDER = "case", "rng", "order"
"""Keys that a sample begins with: the case, its random numbers, the order in which objects are asked for."""
IMAGE, LABEL, VALID = "image", "label", "valid"
POINTS, POINT_LABELS, PRED = "points", "point_labels", "pred"
EXTREME, CLICKED = "extreme", "clicked"
DRAWS, COUNT = "draws", "count"
"""Keys of the clicks' random numbers, and of how many are to be added."""


@dataclass(frozen=True)
class Context:
    """The context that a hook makes its transforms from.

    Attributes:
        recipe: of the training, with samples as the network takes them.
        cases: opens labelled cases and keeps them in memory.
    """

    recipe: Recipe
    cases: OpenedCases


Transforms = Sequence[Callable[[Any], Any]]
Hook = Callable[[Context], Transforms]


@dataclass(frozen=True)
class Hooks:
    """The hooks of a training; functions or class methods of a module, so that other processes find them.

    Attributes:
        samples: the transforms from a case to its samples.
        clicks: the transforms that add clicks where a prediction is wrong.
    """

    samples: Hook
    clicks: Hook

    def names(self) -> list[str]:
        """The hooks' names, by which `hooks_named` finds them in another process.

        Raises:
            UserError: a hook is part of a function, or of an object.
        """
        return [_name_of(hook) for hook in (self.samples, self.clicks)]


def hooks_named(names: Sequence[str]) -> Hooks:
    """The hooks that `Hooks.names` has named."""
    found = []
    for name in names:
        module, _, path = name.partition(":")
        found.append(attrgetter(path)(importlib.import_module(module)))
    return Hooks(*found)


def _name_of(hook: Hook) -> str:
    owner = getattr(hook, "__self__", None)
    path = hook.__qualname__
    if owner is not None:
        path = f"{getattr(owner, '__qualname__', '<object>')}.{hook.__name__}"
    if "<" in path:
        raise UserError(
            f"Several processes train, and they cannot find the transforms of '{path}': make it a function "
            "or a class method of a module."
        )
    return f"{hook.__module__ if owner is None else owner.__module__}:{path}"


class SamplePipeline:
    """Samples of labelled cases by the transforms of a hook.

    Args:
        hook: makes them.
        context: from what.
    """

    def __init__(self, hook: Hook, context: Context) -> None:
        self.compose = Compose(list(hook(context)))

    def global_samples(
        self, case: LabelledCase, rng: np.random.Generator, order: Order | None, seed: int
    ) -> list[tuple[GlobalSample, Tensor]]:
        """Regions of some objects of a case, each with its first points besides the box's centre.

        Args:
            case: to be opened.
            rng: the sample's random numbers.
            order: as for `case_samples.case_crops`.
            seed: of transforms that draw from MONAI's random states.

        Raises:
            UserError: the case cannot be used.
        """
        return [
            (
                GlobalSample(
                    _volume(item, IMAGE).float(),
                    _volume(item, LABEL) > 0,
                    _volume(item, VALID) > 0,
                    bool(item[EXTREME]),
                    bool(item[CLICKED]),
                ),
                plain(item[POINTS]),
            )
            for item in self._items(case, rng, order, seed)
        ]

    def local_sample(
        self, case: LabelledCase, rng: np.random.Generator, order: Order | None, seed: int
    ) -> LocalSample:
        """A window of a case and the objects in it; arguments and errors as for `global_samples`."""
        (item,) = self._items(case, rng, order, seed)
        truths = plain(item[LABEL]) > 0
        clicks = plain(item[POINTS]).tolist()
        return LocalSample(
            _volume(item, IMAGE).float(), _volume(item, VALID) > 0, list(zip(truths, clicks, strict=True))
        )

    def _items(
        self, case: LabelledCase, rng: np.random.Generator, order: Order | None, seed: int
    ) -> list[dict[str, Any]]:
        self.compose.set_random_state(seed=seed)
        try:
            done = self.compose({CASE: case, RNG: rng, ORDER: order})
        except RuntimeError as error:
            # MONAI wraps whatever a transform raises.
            if isinstance(error.__cause__, UserError):
                raise error.__cause__ from None
            raise
        return done if isinstance(done, list) else [done]


def _volume(item: dict[str, Any], key: str) -> Tensor:
    return plain(item[key])[0]


class ComposedClicks:
    """A strategy of clicks (`simulation.clicks`) by the transforms of a hook, object by object."""

    def __init__(self, hook: Hook, context: Context) -> None:
        self.compose = Compose(list(hook(context)))
        self._batch: torch.Generator | None = None
        self._turn = 0

    def __call__(self, logits: Tensor, truth: Tensor, valid: Tensor, count: int, draws: Draws) -> Clicks:
        """Clicks for (B, D, H, W); `count` for each object, padded where the transforms add fewer."""
        blocks: list[Tensor] = []
        points, labels = [], []
        if draws.generator is not self._batch:
            self._batch, self._turn = draws.generator, 0
        self._turn += len(logits)
        seed = draws.generator.initial_seed() + self._turn
        for row in range(len(logits)):
            self.compose.set_random_state(seed=(seed + row) % 2**32)
            done = self.compose(
                {
                    PRED: logits[row][None],
                    LABEL: truth[row][None],
                    VALID: valid[row][None],
                    DRAWS: _RowDraws(draws.generator, draws.first, draws.total, len(logits), row, blocks),
                    COUNT: count,
                }
            )
            given = plain(done[POINTS]).to(truth.device).long()[:count]
            kinds = plain(done[POINT_LABELS]).to(truth.device).long()[:count]
            missing = count - len(given)
            points.append(torch.cat([given, given.new_zeros(missing, 3)]))
            labels.append(torch.cat([kinds, kinds.new_full((missing,), PADDING_LABEL)]))
        return Clicks(torch.stack(points), torch.stack(labels))


@dataclass
class _RowDraws(Draws):
    """The draws of one row of a batch: the n-th call takes its row of the n-th numbers of the whole batch.

    Attributes:
        rows: of this process's part of the batch.
        row: which of them.
        blocks: the numbers drawn so far, shared by all rows.
    """

    rows: int = 1
    row: int = 0
    blocks: list[Tensor] = field(default_factory=list)
    turn: int = 0

    def rand(self, rows: int, count: int) -> Tensor:
        if self.turn == len(self.blocks):
            self.blocks.append(super().rand(self.rows, count))
        block = self.blocks[self.turn]
        self.turn += 1
        return block[self.row : self.row + 1, :count]

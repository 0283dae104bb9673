"""Batches of training samples from mixed sources: labelled cases and generated scenes.

Batch number n depends on the recipe, the data, the seed and n alone, so that a run resumes exactly. A batch
is made in slots; every slot has its own random numbers and its own part of the cases. Two processes with two
slots each therefore draw what one process with four slots draws, and each of them reads its own files.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import UserError
from .augment import global_augmentation
from .batches import GlobalSample, Loaded, LocalSample, global_batch, local_batch
from .case_samples import Order, case_crops, local_case_sample
from .dressed import dressed_scene
from .first_prompts import first_points
from .generated import make_scene
from .opened import OpenedCases
from .pipeline import SamplePipeline
from .recipes import Recipe
from .scene_samples import global_samples, local_scene_sample
from .sources import LabelledCase, WeightedSource

if TYPE_CHECKING:
    from .prepare import PreparedCrops

_T = TypeVar("_T")
# Pieces of a label map that are looked at before it counts as unusable.
DRESSED_TRIES = 20
GENERATED = (WeightedSource("generated"),)


class Share(NamedTuple):
    """The number of this process in a run, from 0, and how many there are."""

    rank: int = 0
    world: int = 1


ALONE = Share()


class Samples(Dataset[Loaded]):
    """Batches of a recipe from mixed sources.

    Args:
        recipe: its kind decides whether the batches are `GlobalBatch` or `LocalBatch`.
        data: the sources; every slot of a batch draws one by their weights.
        seed: of the whole sequence.
        share: the slots that this process fills.
        opened: how cases are opened, and their memory.
        prepared: crops made beforehand, which spare the global expert opening the volumes.
        counts: objects of each labelled case by id. A case then comes as often as it has objects (for each
            `targets` of them, global expert), each time with others of them, until all have been asked for.
            None: every case comes once in a round, with any of its objects.
        device: where scenes are made; the batch is returned there.

    Attributes:
        pipeline: to make the samples of labelled cases by; None: by the functions of `case_samples`.
    """

    def __init__(
        self,
        recipe: Recipe,
        data: Sequence[WeightedSource] = GENERATED,
        seed: int = 1,
        share: Share = ALONE,
        opened: OpenedCases | None = None,
        prepared: PreparedCrops | None = None,
        counts: Mapping[str, int] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.recipe, self.data, self.seed = recipe, tuple(data), seed
        self.share = share
        self.device = torch.device(device)
        self.opened = OpenedCases(recipe) if opened is None else opened
        self.prepared = prepared
        self.pipeline: SamplePipeline | None = None
        self.counts = counts
        self._visits: dict[tuple[int, int], list[tuple[LabelledCase, int]]] = {}
        self._weights = np.array([source.weight for source in self.data])
        self._weights = self._weights / self._weights.sum()
        self._bad: dict[str, str] = {}

    def __getitem__(self, number: int) -> Loaded:
        troubles: dict[str, str] = {}
        fill = self._global_slot if self.recipe.kind == "global" else self._local_slot
        slots = range(self.share.rank * self.recipe.scenes, (self.share.rank + 1) * self.recipe.scenes)
        try:
            filled = [fill(number, slot, troubles) for slot in slots]
        except _NothingUsable:
            return Loaded(None, troubles)
        batch = global_batch(filled) if self.recipe.kind == "global" else local_batch(filled)  # type: ignore[arg-type]
        return Loaded(type(batch)(*(part.to(self.device) for part in batch)), troubles)

    def _own_seed(self, number: int, slot: int) -> int:
        """A seed for random numbers that are independent of the slot's own."""
        return int(np.random.SeedSequence((self.seed, number, slot)).generate_state(1)[0])

    def _source(self, rng: np.random.Generator) -> WeightedSource:
        if len(self.data) == 1:
            return self.data[0]
        return self.data[int(rng.choice(len(self.data), p=self._weights))]

    def _global_slot(
        self, number: int, slot: int, troubles: dict[str, str]
    ) -> list[tuple[GlobalSample, Tensor]]:
        rng = np.random.default_rng((self.seed, number, slot))
        source = self._source(rng)
        if source.cases != "generated":

            def take(case: LabelledCase, order: Order | None) -> list[tuple[GlobalSample, Tensor]]:
                if self.pipeline is not None:
                    return self.pipeline.global_samples(case, rng, order, self._own_seed(number, slot))
                if case.dressed:
                    return self._with_points(self._dressed(case, rng), rng)
                augment = global_augmentation(self.recipe)
                return self._with_points([augment(c, rng) for c in self._crops(case, rng, order)], rng)

            return self._from_cases(source.cases, number, slot, take, troubles)
        samples: list[GlobalSample] = []
        while not samples:
            samples = global_samples(make_scene(rng, device=self.device), rng, self.recipe)
        return self._with_points(samples, rng)

    def _with_points(
        self, samples: Sequence[GlobalSample], rng: np.random.Generator
    ) -> list[tuple[GlobalSample, Tensor]]:
        return [(sample, first_points(sample, self.recipe, rng)) for sample in samples]

    def _dressed(self, case: LabelledCase, rng: np.random.Generator) -> list[GlobalSample]:
        """Samples of a label map without an image."""
        opened = self.opened.get(case)
        regions = [found.region for found in opened.objects]
        for _ in range(DRESSED_TRIES):
            scene = dressed_scene(opened.labels, opened.volume.spacing, regions, rng, device=self.device)
            samples = [] if scene is None else global_samples(scene, rng, self.recipe)
            if samples:
                return samples
        raise UserError(f"Case '{case.id}': no piece of the label map shows an object.")

    def _crops(self, case: LabelledCase, rng: np.random.Generator, order: Order | None) -> list[GlobalSample]:
        if self.prepared is not None:
            crops = self.prepared.crops(case, rng, self.recipe.targets, order)
            if crops is not None:
                return crops
        return case_crops(self.opened.get(case), rng, self.recipe, order)

    def _local_slot(self, number: int, slot: int, troubles: dict[str, str]) -> LocalSample:
        rng = np.random.default_rng((self.seed, number, slot))
        source = self._source(rng)
        if source.cases != "generated":

            def take(case: LabelledCase, order: Order | None) -> LocalSample:
                if self.pipeline is not None:
                    return self.pipeline.local_sample(case, rng, order, self._own_seed(number, slot))
                return local_case_sample(self.opened.get(case), rng, self.recipe, order)

            return self._from_cases(source.cases, number, slot, take, troubles)
        while True:
            scene = make_scene(rng, size=int(self.recipe.size * rng.uniform(0.8, 1.25)), device=self.device)
            sample = local_scene_sample(scene, rng, self.recipe)
            if sample is not None:
                return sample

    def _from_cases(
        self,
        cases: Sequence[LabelledCase],
        number: int,
        slot: int,
        take: Callable[[LabelledCase, Order | None], _T],
        troubles: dict[str, str],
    ) -> _T:
        """Apply `take` to the slot's case, or to the next one if it can't be used."""
        own = self._own(cases, slot)
        epoch, place = divmod(number, len(own))
        order = np.random.default_rng((self.seed, epoch, slot)).permutation(len(own))
        for turn in range(len(own)):
            case, visit = own[int(order[(place + turn) % len(own)])]
            if case.id in self._bad:
                continue
            try:
                return take(case, self._order(case, epoch, visit))
            except UserError as error:
                self._bad[case.id] = troubles[case.id] = str(error)
        troubles.update({case.id: self._bad[case.id] for case, _ in own})
        raise _NothingUsable

    def _own(self, cases: Sequence[LabelledCase], slot: int) -> list[tuple[LabelledCase, int]]:
        """The cases of a slot, each as often as it comes in an epoch, with the number of the visit."""
        known = self._visits.get((id(cases), slot))
        if known is not None:
            return known
        slots = self.recipe.scenes * self.share.world
        own = cases[slot::slots] if len(cases) >= slots else cases
        each = self.recipe.targets if self.recipe.kind == "global" else 1
        # A case that can't be used comes once, so that it is reported.
        visits = [
            (case, visit)
            for case in own
            for visit in range(1 if self.counts is None else max(1, -(-self.counts[case.id] // each)))
        ]
        self._visits[id(cases), slot] = visits
        return visits

    def _order(self, case: LabelledCase, epoch: int, visit: int) -> Order | None:
        """The order of objects for a visit, which begins behind those of the visit before."""
        if self.counts is None:
            return None
        seed = (self.seed, epoch, zlib.crc32(case.id.encode()))
        first = visit * (self.recipe.targets if self.recipe.kind == "global" else 1)
        return lambda count: np.roll(np.random.default_rng(seed).permutation(count), -first)


class _NothingUsable(Exception):
    """Every case of a slot is unusable."""

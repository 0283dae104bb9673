"""Both experts as one: which of them answers, how several objects share the volume, and clicks that hold."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch

from ..byte_cache import ByteCache
from ..errors import PromptError, WeightsError
from ..imaging.geometry import Box, Index, Region, paste_from_grid
from ..imaging.prompts import Prompts
from ..imaging.volume import Volume
from ..strategies import DEFAULT_STRATEGY, STRATEGIES
from .click_constraints import enforce_clicks
from .fused.strategy import Fusion, Refined
from .global_expert import GlobalExpert
from .local_expert import LocalExpert
from .prediction import Prediction, enclosing_region, merge, within
from .timing import StageTimer

logger = logging.getLogger(__name__)

UNREFINED = ("pt",)
"""Modalities in which ``fused`` leaves objects with a box to the global expert: uptake is too blurred for
edges to decide. On the few volumes that were measured, the expert alone scored higher."""
BOX_WEIGHT = 4.0
"""The advantage that ``fused`` gives the object with the smaller box at a voxel that two objects claim, in
logits for each unit of the log of the boxes' volumes. So an object inside another takes its voxels from it,
and one that spreads too far does not cover many small ones."""
MAX_LABELS = 255


@dataclass(frozen=True, eq=False)
class Result:
    """What `DualExpert.segment` found.

    Attributes:
        labels: uint8 (D, H, W) in the volume's order: 0 background, else one of `values`.
        values: the value in `labels` of each label, 1 for the first one asked for.
        strategies: the expert that each label was routed to, "global" or "local"; with `fused` the
            global one is also asked about those of the local one.
        enforced: clicked voxels where the networks had to be overruled.
        stages: seconds by part: crop, encode, decode, refine, paste, merge, enforce; what was cached is
            absent.
        refined: what `fused` knows about each label besides its mask; empty with other strategies.
    """

    labels: npt.NDArray[np.uint8]
    values: dict[str, int]
    strategies: dict[str, str]
    enforced: list[Index]
    stages: dict[str, float]
    refined: dict[str, Refined] = field(default_factory=dict)

    def uncertainty(self) -> npt.NDArray[np.float32]:
        """How unsure each voxel is, (D, H, W) in [0, 1], the most over all labels.

        1 where an object is as likely as not. 0 where nothing was asked, and everywhere with a strategy
        other than ``fused``, as the networks' own logits are no probabilities.
        """
        found = np.zeros(self.labels.shape, dtype=np.float32)
        region, values = self.uncertain_part()
        found[region] = values
        return found

    def uncertain_part(self) -> tuple[Region, npt.NDArray[np.float32]]:
        """The voxels outside of which `uncertainty` is 0, and what it is inside."""
        shape = self.labels.shape
        parts = [
            paste_from_grid(torch.from_numpy(part.uncertainty), part.roi, shape)
            for part in self.refined.values()
        ]
        whole = enclosing_region([region for region, _ in parts])
        found = np.zeros([s.stop - s.start for s in whole], dtype=np.float32)
        for region, values in parts:
            inner = within(region, whole)
            np.maximum(found[inner], values.numpy(), out=found[inner])
        return whole, found

    def suggestions(self) -> dict[str, Index]:
        """For each label that has one, the voxel (z, y, x) where a click would tell most."""
        found = {label: part.where_next() for label, part in self.refined.items()}
        return {label: voxel for label, voxel in found.items() if voxel is not None}

    def mask(self, label: str) -> npt.NDArray[np.bool_]:
        """Where one label is, bool (D, H, W)."""
        return self.labels == self.values[label]


@dataclass(frozen=True, eq=False)
class _Asked:
    """One object that is asked for: its checked prompts, "global" or "local", and the expert that answers."""

    given: Prompts
    route: str
    expert: GlobalExpert | LocalExpert


class DualExpert:
    """Routes each object to an expert and joins the answers (section 2.1).

    Args:
        global_expert: None where its weights are not at hand; what needs it then raises WeightsError.
        local_expert: likewise.
        cache: holds what `fused` finds out between requests; usually the one that both experts share.
    """

    def __init__(
        self, global_expert: GlobalExpert | None, local_expert: LocalExpert | None, cache: ByteCache
    ) -> None:
        self.global_expert = global_expert
        self.local_expert = local_expert
        self._fusion = Fusion(cache)

    def segment(
        self,
        volume: Volume,
        prompts: Mapping[str, Prompts],
        strategy: str = DEFAULT_STRATEGY,
        intensity: str = "auto",
    ) -> Result:
        """Segment every label from its own prompts.

        ``paper`` sends objects with a box to the global expert and those with points only to the local one,
        which looks at a window about the last click where it is known which that is (`Prompts.ordered`,
        section 2.2), else at one about every click. ``global`` and ``local`` name the expert; ``fused``
        chooses it as ``paper`` does and refines what it says by the image's edges and the clicks (`fused`),
        but for boxes in `UNREFINED`. Where objects overlap, the higher foreground probability wins, whatever
        the order of the labels; with ``fused`` the object with the smaller box has an advantage
        (`BOX_WEIGHT`), and a foreground click counts as a background click for all other labels. Every click
        holds afterwards (`enforce_clicks`). The answer is a function of the arguments and the weights alone.

        Args:
            volume: the image.
            prompts: label to prompts; the order gives the values in the result.
            strategy: one of `STRATEGIES`.
            intensity: one of `intensity.CHOICES`.

        Raises:
            PromptError: no label or more than 255; prompts that do not fit the volume, contradict one
                another, or do not suffice for the expert; an unknown strategy.
            WeightsError: the expert that is needed is not loaded.
            UserError: an unknown intensity choice.
        """
        if strategy not in STRATEGIES:
            raise PromptError(f"The strategy must be one of {', '.join(STRATEGIES)}, but it is {strategy!r}.")
        if not 1 <= len(prompts) <= MAX_LABELS:
            raise PromptError(f"Between 1 and {MAX_LABELS} labels can be segmented, but {len(prompts)} came.")
        stages = StageTimer()
        values = {label: at + 1 for at, label in enumerate(prompts)}
        asked = self._routed(volume, prompts, strategy)
        refined: dict[str, Refined] = {}
        found: dict[int, list[Prediction]] = {}
        for label, its in asked.items():
            with _naming(label, prompts):
                alone = its.route == "global" and volume.modality in UNREFINED
                if strategy == "fused" and not alone:
                    other = self.global_expert if its.route == "local" else None
                    theirs = [i for name, one in asked.items() if name != label for i in one.given.foreground]
                    refined[label] = self._fusion.predict(
                        its.expert, volume, its.given, intensity, stages, other, theirs
                    )
                    parts = _handicapped(refined[label].predictions, its.given.box)
                elif isinstance(its.expert, LocalExpert):
                    last = strategy == "paper" and its.given.ordered and bool(its.given.clicks)
                    parts = its.expert.predict(volume, its.given, intensity, stages, last=last)
                else:
                    parts = its.expert.predict(volume, its.given, intensity, stages)
            found[values[label]] = parts
        predictions = [(value, part) for value, parts in found.items() for part in parts]

        with stages.timed("merge"):
            labels = merge(volume.shape, predictions)
        with stages.timed("enforce"):
            by_value = {values[label]: its.given for label, its in asked.items()}
            enforced = enforce_clicks(labels, volume, by_value, predictions)
        if enforced:
            logger.info("Voxels set by their clicks, against the networks: %d", len(enforced))
        strategies = {label: asked[label].route for label in prompts}
        return Result(labels, values, strategies, enforced, dict(stages), refined)

    def _routed(self, volume: Volume, prompts: Mapping[str, Prompts], strategy: str) -> dict[str, _Asked]:
        """Checked prompts with the expert of each label.

        By name, so that even equal probabilities are settled alike however the labels are ordered.
        """
        asked: dict[str, _Asked] = {}
        for label in sorted(prompts):
            with _naming(label, prompts):
                given = prompts[label].checked(volume.shape)
                route = _route(given, strategy)
                if route == "global" and given.mask is None:
                    given = given.with_corner_box()
                asked[label] = _Asked(given, route, self._expert(route).expert_for(volume, given))
        _reject_shared_clicks({label: its.given for label, its in asked.items()})
        return asked

    def _expert(self, name: str) -> GlobalExpert | LocalExpert:
        expert = self.global_expert if name == "global" else self.local_expert
        if expert is None:
            raise WeightsError(
                f"These prompts go to the {name} expert, but its weights are not loaded; "
                f"load them or use the other strategy."
            )
        return expert


def _route(prompts: Prompts, strategy: str) -> str:
    """The expert for one object: the paper's rule (section 2.1) unless one is named."""
    if strategy in ("global", "local"):
        return strategy
    return "local" if prompts.box is None else "global"


def _handicapped(parts: Sequence[Prediction], drawn: Box | None) -> list[Prediction]:
    """An object's predictions with the handicap of its box: the drawn one, or that of what was found."""
    if drawn is None:
        region = enclosing_region([part.trimmed().region for part in parts])
        volume = float(math.prod(s.stop - s.start for s in region))
    else:
        volume = math.prod(drawn.sides)
    return [replace(part, handicap=BOX_WEIGHT * math.log(max(volume, 1.0))) for part in parts]


@contextmanager
def _naming(label: str, labels: Collection[str]) -> Iterator[None]:
    """Errors about prompts say which label's they are, if there are several."""
    try:
        yield
    except PromptError as error:
        raise error if len(labels) == 1 else PromptError(f"Label {label!r}: {error}") from error


def _reject_shared_clicks(checked: Mapping[str, Prompts]) -> None:
    owner: dict[Index, str] = {}
    for label, given in checked.items():
        for index in given.foreground:
            other = owner.setdefault(index, label)
            if other != label:
                raise PromptError(
                    f"A voxel belongs to one label, but {index} was clicked as foreground of "
                    f"{other!r} and of {label!r}."
                )

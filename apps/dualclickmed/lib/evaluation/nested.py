"""Objects inside objects, asked for together and alone: a lesion in an organ, a core in an oedema.

The volumes are generated. One request for the inner and the outer object should give what two requests give,
with the inner object taking its voxels from the outer one.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..experts import DualExpert
from ..imaging.geometry import Box
from ..imaging.prompts import Prompts
from ..imaging.volume import Volume, from_array
from ..training.generated import make_scene
from .metrics import dice

VOLUMES = 40
SIZE = 96
# Far from the seeds of trainings, so that no training has seen these volumes.
SEED = 7_000_003
SMALLEST = 80
# An object counts as lost if its Dice is below the first together with the others, and above the second
# alone.
LOST, FOUND = 0.02, 0.3


@dataclass(frozen=True)
class NestedVolume:
    """A generated volume: labels (D, H, W), 0 background, and the objects that lie inside another one."""

    name: str
    volume: Volume
    labels: npt.NDArray[np.int16]
    boxes: Mapping[str, Box]
    inner: frozenset[str]

    def truth(self, name: str) -> npt.NDArray[np.bool_]:
        """The mask of one object; an outer one is what its inner ones leave of it."""
        return self.labels == int(name)


@dataclass(frozen=True)
class NestedScore:
    """Dice of one object, asked for alone and together with all others of its volume."""

    volume: str
    label: str
    inner: bool
    alone: float
    together: float

    @property
    def lost(self) -> bool:
        """Whether the object is found alone and lost together with the others."""
        return self.alone > FOUND and self.together < LOST


def nested_volumes(count: int = VOLUMES) -> Iterator[NestedVolume]:
    """Generated volumes in which objects lie inside objects; the same for the same arguments."""
    made, number = 0, 0
    while made < count:
        scene = make_scene(np.random.default_rng((SEED, number)), size=SIZE)
        number += 1
        labels = scene.labels.numpy(force=True)
        values, counts = np.unique(labels, return_counts=True)
        large = {int(v) for v, n in zip(values, counts, strict=True) if v and n >= SMALLEST}
        boxes: dict[str, Box] = {}
        inner: set[str] = set()
        for members in scene.targets:
            outer, *parts = members
            kept = [part for part in parts if part in large]
            if outer not in large or not kept:
                continue
            # The user draws the outer box around the whole, parts and all.
            boxes[str(outer)] = Box.of_mask(np.isin(labels, members))
            for part in kept:
                boxes[str(part)] = Box.of_mask(labels == part)
                inner.add(str(part))
        if not boxes:
            continue
        volume = from_array(scene.image.numpy(force=True), scene.spacing)
        made += 1
        yield NestedVolume(f"nested-{number:03d}", volume, labels, boxes, frozenset(inner))


def measure_nested(
    expert: DualExpert,
    volumes: Iterator[NestedVolume],
    strategy: str,
    done: Callable[[int], None] | None = None,
) -> list[NestedScore]:
    """Segment every object from its box, alone and together with the others.

    Args:
        expert: the experts that answer.
        volumes: of `nested_volumes`.
        strategy: one of `experts.dual.STRATEGIES`.
        done: called with the number of volumes after each.
    """
    scores = []
    for number, nested in enumerate(volumes, start=1):
        prompts = {name: Prompts(box=box) for name, box in nested.boxes.items()}
        together = expert.segment(nested.volume, prompts, strategy)
        for name, given in prompts.items():
            truth = nested.truth(name)
            alone = expert.segment(nested.volume, {name: given}, strategy)
            scores.append(
                NestedScore(
                    nested.name,
                    name,
                    name in nested.inner,
                    dice(alone.mask(name), truth),
                    dice(together.mask(name), truth),
                )
            )
        if done is not None:
            done(number)
    return scores


def write_nested(file: Path, scores: list[NestedScore]) -> None:
    """The scores as CSV, one object a row."""
    with file.open("w", newline="", encoding="utf-8") as out:
        rows = csv.writer(out)
        rows.writerow(("volume", "object", "inner", "dice alone", "dice together", "lost"))
        for s in scores:
            rows.writerow(
                (s.volume, s.label, int(s.inner), f"{s.alone:.4f}", f"{s.together:.4f}", int(s.lost))
            )

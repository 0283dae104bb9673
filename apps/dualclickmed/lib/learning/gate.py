"""The check before publishing: is a trained expert worse than its parent, measured by the click protocol?

With `MIN_CASES` labelled images or more, some are held out: they are chosen once and for all by their ids,
among those that no ancestor was trained on as far as there are any. With fewer, every label trains, and the
check uses generated volumes and the trained images themselves, which the report says. Generated volumes are
measured in both cases: what was known must not be forgotten.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..byte_cache import ByteCache
from ..evaluation.protocol import ExpertMethod, run_object
from ..experts import DualExpert
from ..experts.loading import load_alone
from ..imaging.volume import Volume, from_array
from ..training.generated import make_scene
from ..training.sources import LabelledCase, load_case
from ..weights.files import Kind
from .settings import HELD_OUT

logger = logging.getLogger(__name__)

MIN_CASES = 4
CLICKS = 3
"""Corrective clicks after the start."""
MOST_OBJECTS = 24
SMALLEST = 30
"""Objects of fewer voxels are not measured: a single voxel changes their Dice too much."""
WORSE = 0.0
"""How much Dice on held-out labels may be lost."""
FORGOTTEN = 0.05
"""How much Dice on generated volumes may be lost, if the new weights answered for them. The origin answers
outside the training scope (`experts.scope`), but the scope is not always recognised."""
GENERATED = 12
_GENERATED_SEED = 7_000_003
_GENERATED_SIDE = 72
_CACHE_BYTES = 256 << 20

Start = {"global": "box", "local": "point"}
"""The first prompt of each expert."""


@dataclass(frozen=True, eq=False)
class Objects:
    """Objects to measure: label name, image and mask of each."""

    names: list[str]
    volumes: list[Volume]
    masks: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Report:
    """Mean Dice after the start and each click, by label, and on generated volumes."""

    labels: dict[str, list[float]]
    generated: list[float]

    @property
    def mean(self) -> float:
        """Over labels and steps."""
        return float(np.mean(list(self.labels.values()))) if self.labels else float("nan")

    @property
    def remembered(self) -> float:
        """Over the steps on generated volumes."""
        return float(np.mean(self.generated))

    def card(self) -> dict[str, Any]:
        """For the model card."""
        rounded = {name: [round(d, 4) for d in dice] for name, dice in self.labels.items()}
        return {"labels": rounded, "generated volumes": [round(d, 4) for d in self.generated]}


def split(
    images: Sequence[str], trained: Collection[str], part: float = HELD_OUT
) -> tuple[list[str], list[str]]:
    """Images to train on and images held out, by their ids alone.

    Args:
        images: ids, each once.
        trained: ids that the parent or its ancestors were trained on; they are held out last.
        part: of the images that is held out; with fewer than `MIN_CASES`, or a part of 0, none is.
    """
    if len(images) < MIN_CASES or part <= 0:
        return sorted(images), []
    count = min(max(2, round(part * len(images))), len(images) - 1)
    ranked = sorted(images, key=lambda i: (i in trained, hashlib.sha256(i.encode()).digest()))
    held = set(ranked[:count])
    return sorted(set(images) - held), sorted(held)


def verdict(before: Report, after: Report) -> str | None:
    """Why weights must not be published; None if they may."""
    if not np.isfinite(after.mean) or after.mean < before.mean - WORSE:
        return f"mean Dice on the labels fell from {before.mean:.3f} to {after.mean:.3f}"
    if after.remembered < before.remembered - FORGOTTEN:
        return (
            f"mean Dice on generated volumes fell from {before.remembered:.3f} to {after.remembered:.3f}: "
            "too much was forgotten"
        )
    return None


def objects_of(cases: Sequence[LabelledCase], most: int = MOST_OBJECTS) -> Objects:
    """The labels of some cases, at most `most`, spread evenly over labels and cases."""
    found: list[tuple[str, Volume, np.ndarray]] = []
    for case in cases:
        volume, labels = load_case(case)
        for value, name in case.names.items():
            mask = labels == value
            if int(mask.sum()) >= SMALLEST:
                found.append((name, volume, mask))
    # By label first, so that a rare one is not the one that is left out.
    ranks: dict[str, int] = {}
    order = []
    for at, (name, _, _) in enumerate(found):
        ranks[name] = ranks.get(name, 0) + 1
        order.append((ranks[name], at))
    chosen = [found[at] for _, at in sorted(order)[:most]]
    return Objects([c[0] for c in chosen], [c[1] for c in chosen], [c[2] for c in chosen])


@lru_cache(maxsize=1)
def generated_objects(count: int = GENERATED) -> Objects:
    """Objects of generated volumes, the same ones at every call."""
    rng = np.random.default_rng(_GENERATED_SEED)
    found = Objects([], [], [])
    while len(found) < count:
        scene = make_scene(rng, size=_GENERATED_SIDE)
        volume = from_array(scene.image.numpy(), scene.spacing)
        for target in [scene.targets[int(i)] for i in rng.permutation(len(scene.targets))[:2]]:
            mask = scene.mask(target).numpy()
            if int(mask.sum()) >= SMALLEST and len(found) < count:
                found.names.append(scene.look)
                found.volumes.append(volume)
                found.masks.append(mask)
    return found


def measure(kind: Kind, weights: Path, objects: Objects, device: str = "cpu", clicks: int = CLICKS) -> Report:
    """Run the click protocol on objects and on generated volumes with one expert's weights."""
    expert = load_alone(kind, weights, device, ByteCache(_CACHE_BYTES))
    by_label: dict[str, list[list[float]]] = {}
    for name, dice in zip(objects.names, _scores(kind, expert, objects, clicks), strict=True):
        by_label.setdefault(name, []).append(dice)
    generated = _scores(kind, expert, generated_objects(), clicks)
    means = {name: [float(d) for d in np.mean(rows, axis=0)] for name, rows in sorted(by_label.items())}
    return Report(means, [float(d) for d in np.mean(generated, axis=0)])


def _scores(kind: Kind, expert: DualExpert, objects: Objects, clicks: int) -> list[list[float]]:
    method = ExpertMethod(expert, kind)
    return [
        run_object(method, volume, mask, clicks, Start[kind])[0]
        for volume, mask in zip(objects.volumes, objects.masks, strict=True)
    ]

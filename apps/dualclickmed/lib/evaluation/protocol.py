"""The interactive protocol: a box or a first click, then corrections where the error is largest."""

from __future__ import annotations

import csv
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..experts.dual import DualExpert
from ..geometry import Box
from ..prompts import Click, Prompts
from ..volume import Volume
from .cases import Case, objects
from .metrics import Mask, dice, ellipsoid_in_box, next_click

# A method maps an image and the prompts so far to a mask.
Method = Callable[[Volume, Prompts], Mask]


@dataclass(frozen=True)
class Score:
    """Dice of one object after each step, and the seconds that each took."""

    group: str
    case: str
    label: int
    voxels: int
    method: str
    dice: tuple[float, ...]
    seconds: tuple[float, ...]


def expert_method(expert: DualExpert, strategy: str) -> Method:
    """Our experts as a method; the mask of one object."""

    def predict(volume: Volume, prompts: Prompts) -> Mask:
        return expert.segment(volume, {"object": prompts}, strategy=strategy).labels > 0

    return predict


def ellipsoid_method(volume: Volume, prompts: Prompts) -> Mask:
    """The ellipsoid inscribed in the box of all positive prompts; clicks move nothing else."""
    box = prompts.enclosing_box()
    return ellipsoid_in_box(volume.shape, box.lo, box.hi)


def run_object(
    method: Method, volume: Volume, truth: Mask, clicks: int, start: str
) -> tuple[list[float], list[float]]:
    """Dice and seconds after the start and after each click.

    Args:
        method: what predicts.
        volume: the image.
        truth: (D, H, W) bool.
        clicks: corrections after the start.
        start: "box" (the exact enclosing box) or "point" (the deepest voxel of the object, counted as no
            correction).
    """
    given: list[Click] = []
    box: Box | None = None
    if start == "box":
        box = Box.of_mask(truth)
    else:
        first = next_click(np.zeros_like(truth), truth)
        assert first is not None
        given.append(first)
    scores, seconds = [], []
    for step in range(clicks + 1):
        begin = time.perf_counter()
        mask = method(volume, Prompts(clicks=tuple(given), box=box))
        seconds.append(time.perf_counter() - begin)
        scores.append(dice(mask, truth))
        click = next_click(mask, truth)
        if click is None:
            missing = clicks - step
            return scores + scores[-1:] * missing, seconds + [0.0] * missing
        if click not in given:
            given.append(click)
    return scores, seconds


def run_cases(
    cases: Iterable[Case],
    methods: dict[str, Method],
    clicks: int,
    start: str,
    smallest: int,
    most: int | None,
) -> list[Score]:
    """Run every method on every object of every case.

    Args:
        smallest: objects of fewer voxels are left out.
        most: at most this many objects of one case, evenly spread over its labels (None: all).
    """
    scores = []
    for case in cases:
        volume, labels = case.load()
        chosen = list(objects(labels, smallest))
        if most is not None and len(chosen) > most:
            chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, most).round().astype(int)]
        for value, truth in chosen:
            for name, method in methods.items():
                values, seconds = run_object(method, volume, truth, clicks, start)
                scores.append(
                    Score(case.group, case.name, value, int(truth.sum()), name, tuple(values), tuple(seconds))
                )
    return scores


@dataclass(frozen=True)
class Row:
    """Mean Dice after each step of one method on one group; group "all" counts every object once."""

    group: str
    method: str
    count: int
    dice: tuple[float, ...]
    harmful: float


# A click that costs more Dice than this counts as harmful.
HARM = 0.01


def summarise(scores: Sequence[Score]) -> list[Row]:
    """Means by group and method, then over all objects, then over the groups."""
    methods = list(dict.fromkeys(s.method for s in scores))
    grouped: dict[tuple[str, str], list[Score]] = defaultdict(list)
    for score in scores:
        grouped[score.group, score.method].append(score)
        grouped["all objects", score.method].append(score)
    names = [*sorted({s.group for s in scores}), "all objects"]
    rows = [_row(group, method, grouped[group, method]) for group in names for method in methods]
    for method in methods:
        means = [r for r in rows if r.method == method and r.group != "all objects"]
        rows.append(
            Row(
                "mean of groups",
                method,
                sum(r.count for r in means),
                tuple(float(np.mean([r.dice[i] for r in means])) for i in range(len(means[0].dice))),
                float(np.mean([r.harmful for r in means])),
            )
        )
    return rows


def _row(group: str, method: str, scores: list[Score]) -> Row:
    table = np.array([s.dice for s in scores])
    falls = np.diff(table, axis=1) < -HARM
    return Row(
        group,
        method,
        len(scores),
        tuple(float(v) for v in table.mean(axis=0)),
        float(falls.mean()) if falls.size else 0.0,
    )


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    """One CSV row for each object and method, from which every mean can be recomputed."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        steps = range(len(scores[0].dice) if scores else 0)
        writer.writerow(
            ["group", "case", "label", "voxels", "method"]
            + [f"dice_{i}" for i in steps]
            + [f"seconds_{i}" for i in steps]
        )
        for s in scores:
            writer.writerow(
                [s.group, s.case, s.label, s.voxels, s.method]
                + [f"{v:.6f}" for v in s.dice]
                + [f"{v:.4f}" for v in s.seconds]
            )

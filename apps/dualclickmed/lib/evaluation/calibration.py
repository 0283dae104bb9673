"""Calibration of probabilities: of the cells with probability 0.7, are 70 % inside the object?"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..experts import DualExpert
from ..experts.fused.strategy import Refined
from ..imaging.geometry import crop_to_grid
from ..imaging.prompts import Prompts
from ..imaging.volume import Volume
from ..strategies import DEFAULT_STRATEGY
from .cases import Case, Task
from .metrics import Mask
from .protocol import run_task

BINS = 10
FILE = "calibration.csv"
_COLUMNS = ("group", "clicks", "from", "to", "cells", "mean_probability", "share_inside")


@dataclass
class Reliability:
    """Cells by how likely they were, in `BINS` even bins of [0, 1].

    Attributes:
        cells: how many in each bin.
        probability: sum of their probabilities.
        inside: sum of the parts of them that are inside the object.
    """

    cells: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))
    probability: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))
    inside: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(BINS))

    def add(self, probability: npt.NDArray[np.floating], inside: npt.NDArray[np.floating]) -> None:
        """Count cells.

        Args:
            probability: of the object; what rounding leaves outside [0, 1] is cut.
            inside: the part of each cell, in [0, 1], that is inside; of the same shape.
        """
        likely = np.clip(probability.ravel().astype(np.float64), 0, 1)
        at = np.minimum((likely * BINS).astype(np.intp), BINS - 1)
        self.cells += np.bincount(at, minlength=BINS)
        self.probability += np.bincount(at, likely, BINS)
        self.inside += np.bincount(at, inside.ravel().astype(np.float64), BINS)

    def error(self, ends: bool = True) -> float:
        """Expected calibration error: the mean over cells of |probability - share inside| of their bin.

        Args:
            ends: whether the first and the last bin count. Nearly all cells of a region are in them.
        """
        part = slice(None) if ends else slice(1, BINS - 1)
        total = float(self.cells[part].sum())
        return float(np.abs(self.probability - self.inside)[part].sum()) / total if total else 0.0


Reliabilities = dict[tuple[str, int], Reliability]
"""By group and number of clicks."""


class _Remembering:
    """Our experts as a method for one object, which keeps the probabilities behind each mask."""

    def __init__(self, expert: DualExpert, strategy: str) -> None:
        self.expert, self.strategy = expert, strategy
        self.answers: list[Refined | None] = []

    def __call__(self, volume: Volume, prompts: Prompts) -> Mask:
        result = self.expert.segment(volume, {"object": prompts}, strategy=self.strategy)
        self.answers.append(result.refined.get("object"))
        return result.labels > 0


def measure(
    expert: DualExpert,
    cases: Iterable[Case],
    task_of: Callable[[Case], Task],
    clicks: int,
    strategy: str = DEFAULT_STRATEGY,
) -> Reliabilities:
    """Reliability of every object's probabilities in its region, from the box and after all clicks.

    Each object is asked about on its own. Modalities that ``fused`` does not refine have no probabilities.

    Args:
        expert: answers.
        cases: with boxes or exact ones.
        task_of: what is asked of a case.
        clicks: in the largest error, after the box.
        strategy: one that gives probabilities.
    """
    found: Reliabilities = {}
    for case in cases:
        task = task_of(case)
        if task.boxes is None:
            continue
        for value in task.values:
            truth = (task.labels == value).astype(np.uint8)
            alone = Task(task.volume, truth, (1,), {1: task.boxes[value]}, task.spacing)
            method = _Remembering(expert, strategy)
            run_task(method, alone, clicks, limit=0, surfaces=False, strict=True)
            # An answer without errors gets no more clicks and stands for the last one.
            for at, part in {0: method.answers[0], clicks: method.answers[-1]}.items():
                if part is not None:
                    share = crop_to_grid(truth, part.roi).numpy()
                    found.setdefault((case.group, at), Reliability()).add(part.probability, share)
    return found


def write(out: Path, found: Reliabilities) -> Path:
    """Write every bin that has cells as a line of `FILE` in the folder `out`."""
    path = out / FILE
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(_COLUMNS)
        for (group, clicks), one in sorted(found.items()):
            for at in np.flatnonzero(one.cells):
                mean, share = one.probability[at] / one.cells[at], one.inside[at] / one.cells[at]
                edges = (f"{at / BINS:.1f}", f"{(at + 1) / BINS:.1f}")
                lines.writerow([group, clicks, *edges, int(one.cells[at]), f"{mean:.4f}", f"{share:.4f}"])
    return path


def rows(found: Reliabilities) -> Sequence[tuple[str, str, str, str]]:
    """Cells of a table: group, clicks, calibration error of all cells and of those between 0.1 and 0.9."""
    return [
        (group, str(clicks), f"{one.error():.3f}", f"{one.error(ends=False):.3f}")
        for (group, clicks), one in sorted(found.items())
    ]

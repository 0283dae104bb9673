"""The CSV files of an evaluation, one for each case and method: written here and read back.

A file has one row for each class and step, and one for each step of the case as a whole (`label` is "all"):
mean Dice and NSD over the classes, and the seconds of the prediction. A file appears when its case is
complete, so an evaluation goes on where it was stopped.
"""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..atomic_files import replacing
from ..errors import UserError
from .cases import Task
from .protocol import TaskOutcome

WHOLE = "all"
"""The label of rows about a case as a whole."""
FOLDER = "cases"
COMBINED = "results.csv"


@dataclass(frozen=True)
class Row:
    """One row of a CSV file.

    Attributes:
        group, case, method: what was measured.
        label: the class's value, or `WHOLE`.
        voxels: of the truth.
        step: 0 for the start, then one for each click.
        dice, nsd: in [0, 1]; for `WHOLE` the means over the classes.
        seconds: of the case's prediction; 0 in rows of one class.
        clicks: given so far for all classes.
        note: why a score is 0: "no box", "over time", or the failure in words.
    """

    group: str
    case: str
    method: str
    label: str
    voxels: int
    step: int
    dice: float
    nsd: float
    seconds: float
    clicks: int
    note: str


def rows_of(group: str, case: str, method: str, task: Task, outcome: TaskOutcome) -> list[Row]:
    """Every row of one case and method."""
    sizes = [int((task.labels == value).sum()) for value in task.values]
    rows = []
    for number, step in enumerate(outcome.steps):
        note = step.failure
        if outcome.over_time:
            note = "over time"
        elif number == 0 and not note and step.clicks == 0 and task.boxes is None:
            note = "no box"
        head = (group, case, method)
        for value, voxels, dice, nsd in zip(task.values, sizes, step.dice, step.nsd, strict=True):
            rows.append(Row(*head, str(value), voxels, number, dice, nsd, 0.0, step.clicks, note))
        means = float(np.mean(step.dice)), float(np.mean(step.nsd))
        rows.append(Row(*head, WHOLE, sum(sizes), number, *means, step.seconds, step.clicks, note))
    return rows


def path_of(out: Path, case: str, method: str) -> Path:
    """The CSV file of one case and method."""
    return out / FOLDER / method / f"{re.sub(r'[^A-Za-z0-9._-]+', '__', case)}.csv"


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write a CSV file under another name and rename it, so that what exists is complete."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([f.name for f in dataclasses.fields(Row)])
        for row in rows:
            values = dataclasses.astuple(row)
            writer.writerow([f"{v:.6f}" if isinstance(v, float) else v for v in values])


def read(path: Path) -> list[Row]:
    """Read a CSV file.

    Raises:
        UserError: it is not one of ours.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [_row(entry) for entry in csv.DictReader(file)]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"'{path}' must hold the scores of one case, but can't be read as such: {error}."
        ) from error


def read_all(out: Path, methods: Iterable[str]) -> list[Row]:
    """Every row that was written so far, by method and then by case."""
    return [
        row
        for method in methods
        for path in sorted((out / FOLDER / method).glob("*.csv"))
        for row in read(path)
    ]


def _row(entry: dict[str, str]) -> Row:
    return Row(
        entry["group"], entry["case"], entry["method"], entry["label"],
        int(entry["voxels"]), int(entry["step"]), float(entry["dice"]), float(entry["nsd"]),
        float(entry["seconds"]), int(entry["clicks"]), entry["note"],
    )  # fmt: skip

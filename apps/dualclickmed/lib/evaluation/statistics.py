"""Means over cases with bootstrap intervals, as the challenge's tables have them, from the rows of
`records`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .metrics import area_under_curve
from .protocol import HARM
from .records import WHOLE, Row

RESAMPLES = 2000
CONFIDENCE = 0.95
ALL_CASES, MEAN_OF_GROUPS = "all cases", "mean of groups"


@dataclass(frozen=True)
class Mean:
    """A mean over cases with its 95 % interval (percentile bootstrap over cases)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """One method on one group of cases.

    Attributes:
        group: a modality, `ALL_CASES` (every case counts the same) or `MEAN_OF_GROUPS` (every group does).
        method: its name.
        cases, objects: how many.
        dice_auc, nsd_auc, dice_final, nsd_final: the columns of the paper's Tables 3 and 4.
        dice, nsd: means after each step.
        seconds: mean of a step for a whole case.
        harmful: share of clicks after which an object's Dice fell by more than `HARM`.
        failed, over_time: cases in which a prediction failed, or that took too long.
    """

    group: str
    method: str
    cases: int
    objects: int
    dice_auc: Mean
    nsd_auc: Mean
    dice_final: Mean
    nsd_final: Mean
    dice: tuple[float, ...]
    nsd: tuple[float, ...]
    seconds: float
    harmful: float
    failed: int
    over_time: int


@dataclass(frozen=True, eq=False)
class _Table:
    """The cases of one group and method: scores (cases, steps), and counts."""

    dice: npt.NDArray[np.float64]
    nsd: npt.NDArray[np.float64]
    seconds: npt.NDArray[np.float64]
    objects: int
    falls: tuple[int, int]
    failed: int
    over_time: int

    def columns(self) -> npt.NDArray[np.float64]:
        """(cases, 4): the areas under both curves of the click steps, and both final scores."""
        areas = [[area_under_curve(row[1:]) for row in scores] for scores in (self.dice, self.nsd)]
        return np.stack([*map(np.asarray, areas), self.dice[:, -1], self.nsd[:, -1]], axis=1)


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """Every group and method, then all cases, then the mean of the groups; methods in order of appearance."""
    methods = list(dict.fromkeys(row.method for row in rows))
    by_group: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        by_group[row.group, row.method].append(row)
    groups = sorted({row.group for row in rows})
    found = []
    for group in groups:
        for method in methods:
            if by_group[group, method]:
                table = _table(by_group[group, method])
                found.append(_summary(group, method, [table]))
    if len(groups) > 1:
        for name in (ALL_CASES, MEAN_OF_GROUPS):
            for method in methods:
                tables = [_table(by_group[group, method]) for group in groups if by_group[group, method]]
                if name == ALL_CASES:
                    tables = [_joined(tables)]
                found.append(_summary(name, method, tables))
    return found


def bootstrap(columns: Sequence[npt.NDArray[np.float64]]) -> list[Mean]:
    """Means of each column, averaged over strata, with their intervals.

    Args:
        columns: for each stratum (cases, columns); cases are drawn with replacement within each.
    """
    generator = np.random.default_rng(0)
    value = np.mean([part.mean(axis=0) for part in columns], axis=0)
    drawn = np.zeros((RESAMPLES, columns[0].shape[1]))
    for part in columns:
        picks = generator.integers(len(part), size=(RESAMPLES, len(part)))
        drawn += part[picks].mean(axis=1) / len(columns)
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail], axis=0)
    return [Mean(float(v), float(a), float(b)) for v, a, b in zip(value, low, high, strict=True)]


def paired(rows: Sequence[Row], method: str, other: str) -> Mean:
    """By how much `method` ends above `other` in Dice, mean over the cases that both have, with its
    interval.
    """
    final: dict[str, dict[str, float]] = {method: {}, other: {}}
    for row in rows:
        if row.label == WHOLE and row.method in final:
            # Rows are in order of steps: the last one stays.
            final[row.method][row.case] = row.dice
    shared = sorted(final[method].keys() & final[other].keys())
    difference = np.array([[final[method][case] - final[other][case]] for case in shared])
    return bootstrap([difference])[0]


def _table(rows: Sequence[Row]) -> _Table:
    steps = 1 + max(row.step for row in rows)
    cases: dict[str, list[Row]] = defaultdict(list)
    labels: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row.label == WHOLE:
            cases[row.case].append(row)
        else:
            labels[row.case, row.label].append(row.dice)
    per_case = [sorted(own, key=lambda row: row.step) for own in cases.values()]
    falls = sum(int((np.diff(scores) < -HARM).sum()) for scores in labels.values())
    return _Table(
        np.array([[row.dice for row in own] for own in per_case]),
        np.array([[row.nsd for row in own] for own in per_case]),
        np.array([[row.seconds for row in own] for own in per_case]),
        len(labels),
        (falls, len(labels) * (steps - 1)),
        sum(any(row.note not in ("", "no box", "over time") for row in own) for own in per_case),
        sum(any(row.note == "over time" for row in own) for own in per_case),
    )


def _joined(tables: Sequence[_Table]) -> _Table:
    return _Table(
        np.concatenate([t.dice for t in tables]),
        np.concatenate([t.nsd for t in tables]),
        np.concatenate([t.seconds for t in tables]),
        sum(t.objects for t in tables),
        (sum(t.falls[0] for t in tables), sum(t.falls[1] for t in tables)),
        sum(t.failed for t in tables),
        sum(t.over_time for t in tables),
    )


def _summary(group: str, method: str, tables: Sequence[_Table]) -> Summary:
    dice_auc, nsd_auc, dice_final, nsd_final = bootstrap([t.columns() for t in tables])
    return Summary(
        group,
        method,
        sum(len(t.dice) for t in tables),
        sum(t.objects for t in tables),
        dice_auc,
        nsd_auc,
        dice_final,
        nsd_final,
        _mean([t.dice.mean(axis=0) for t in tables]),
        _mean([t.nsd.mean(axis=0) for t in tables]),
        float(np.mean([t.seconds.mean() for t in tables])),
        float(np.mean([t.falls[0] / max(t.falls[1], 1) for t in tables])),
        sum(t.failed for t in tables),
        sum(t.over_time for t in tables),
    )


def _mean(scores: Sequence[npt.NDArray[np.float64]]) -> tuple[float, ...]:
    return tuple(float(v) for v in np.mean(scores, axis=0))

"""How many clicks learning saves: a simulated annotator labels cases, with a retraining now and then."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..byte_cache import ByteCache
from ..errors import UserError
from ..evaluation.protocol import ExpertMethod, run_object
from ..experts import DEFAULT_STRATEGY, DualExpert
from ..experts.loading import load_experts
from ..training.sources import LabelledCase, load_case
from ..weights.files import KINDS, Kind, card_path, default_path, select, shipped_name
from ..weights.lineage import origin_of
from .annotator import Annotator
from .final import FinalLabel
from .gate import SMALLEST, Start
from .prior import Prior
from .record import Record
from .retraining import Place, Settings, retrain

logger = logging.getLogger(__name__)

TARGETS = (0.85, 0.9)
CACHE_BYTES = 512 << 20
OTHER_CLICKS, OTHER_OBJECTS = 3, 12
"""Corrective clicks, and objects of one case, for other data: many kinds matter there, not every click."""
CURVE = "curve.json"
PLOT = "curve.png"
TOGETHER = "together.png"
MOST_PANELS = 4
"""Of more labels a plot shows the mean over the labels."""


@dataclass(frozen=True)
class Trial:
    """How weights are measured.

    Attributes:
        strategy: what answers.
        start: what the user gives first, "box" or "point".
    """

    strategy: str
    start: str

    @classmethod
    def of(cls, kind: Kind) -> Trial:
        """One expert alone, from the prompt that its trainings start with."""
        return cls(kind, Start[kind])


CLICKS_ALONE = Trial(DEFAULT_STRATEGY, "point")
"""The strategy that is served by default, with both experts, from clicks alone."""


@dataclass(frozen=True)
class Scores:
    """Dice after the start and each click, one row for each object of a label.

    Attributes:
        rows: label name to rows.
    """

    rows: dict[str, list[list[float]]]

    def mean(self) -> dict[str, list[float]]:
        """Mean Dice after each step, by label."""
        return {name: [float(d) for d in np.mean(rows, axis=0)] for name, rows in self.rows.items()}

    def clicks(self, target: float) -> dict[str, float]:
        """Mean number of corrective clicks until Dice `target`, by label.

        An object that does not reach it counts with all clicks that it was given.
        """
        return {
            name: float(np.mean([clicks_to(row, target) for row in rows])) for name, rows in self.rows.items()
        }

    def reached(self, target: float) -> dict[str, float]:
        """Share of objects that reach Dice `target`, by label."""
        return {
            name: float(np.mean([max(row) >= target for row in rows])) for name, rows in self.rows.items()
        }


@dataclass(frozen=True)
class Point:
    """The state after so many labelled images.

    Attributes:
        images: that have a final label.
        weights: that are served.
        test: scores on the images that are never labelled.
        others: mean Dice after each step on other data; empty without any.
        spent: corrective clicks that the annotator needed for the last images, by label.
        seconds: of the retraining before it.
        outcome: of that retraining, "published" or "refused"; "start" for the first point.
    """

    images: int
    weights: str
    test: Scores
    others: dict[str, list[float]] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    outcome: str = "start"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the means that the plot shows."""
        clicks = {f"{t:g}": self.test.clicks(t) for t in TARGETS}
        reached = {f"{t:g}": self.test.reached(t) for t in TARGETS}
        return {**asdict(self), "mean": self.test.mean(), "clicks_to": clicks, "reached": reached}


def clicks_to(row: Sequence[float], target: float) -> int:
    """Corrective clicks until Dice `target`; all that were given if it is not reached."""
    return next((step for step, value in enumerate(row) if value >= target), len(row) - 1)


def score(
    expert: DualExpert,
    trial: Trial,
    cases: Sequence[LabelledCase],
    clicks: int,
    most: int | None = None,
) -> Scores:
    """Run the click protocol on every label of some cases.

    Args:
        expert: what is measured, as it is served.
        trial: what answers, and what the user gives first.
        cases: labelled.
        clicks: corrections after the start.
        most: at most this many objects of one case, evenly spread over its labels.
    """
    method = ExpertMethod(expert, trial.strategy)
    rows: dict[str, list[list[float]]] = {}
    for case in cases:
        volume, labels = load_case(case)
        values, counts = np.unique(labels[labels > 0], return_counts=True)
        chosen = [int(v) for v, n in zip(values, counts, strict=True) if n >= SMALLEST]
        if most is not None and len(chosen) > most:
            chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, most).round().astype(int)]
        for value in chosen:
            dice, _ = run_object(method, volume, labels == value, clicks, trial.start)
            rows.setdefault(case.names.get(value, f"label {value}"), []).append(dice)
    return Scores(dict(sorted(rows.items())))


def served(trial: Trial, directory: Path | None) -> DualExpert:
    """The experts that a strategy needs, as a server would answer with them."""
    paths = {kind: default_path(kind, directory=directory) for kind in KINDS}
    if trial.strategy in paths:
        paths = {kind: path for kind, path in paths.items() if kind == trial.strategy}
    return load_experts(paths.get("global"), paths.get("local"), "cpu", ByteCache(CACHE_BYTES))


@dataclass(frozen=True)
class Exam:
    """The data that weights are measured on.

    Attributes:
        test: images that are never labelled.
        others: other data, where nothing should be lost; grouped by the first part of their ids.
        clicks: corrections after the start.
        trial: how they are measured; None: the expert alone.
    """

    test: Sequence[LabelledCase]
    others: Sequence[LabelledCase]
    clicks: int
    trial: Trial | None = None

    def trial_of(self, kind: Kind) -> Trial:
        """How the weights of an expert are measured."""
        return self.trial or Trial.of(kind)


def measured(kind: Kind, directory: Path | None, exam: Exam, **facts: Any) -> Point:
    """The state of the weights in a folder.

    Args:
        kind, directory: which weights.
        exam: what they are measured on.
        facts: further attributes of the point.
    """
    trial = exam.trial_of(kind)
    expert = served(trial, directory)
    groups: dict[str, list[list[float]]] = {}
    for case in exam.others:
        for rows in score(expert, trial, [case], OTHER_CLICKS, OTHER_OBJECTS).rows.values():
            groups.setdefault(case.id.split("/")[0], []).extend(rows)
    means = {name: [float(d) for d in np.mean(rows, axis=0)] for name, rows in sorted(groups.items())}
    if groups:
        every = [row for rows in groups.values() for row in rows]
        means["all objects"] = [float(d) for d in np.mean(every, axis=0)]
    weights = default_path(kind, directory=directory).stem
    return Point(weights=weights, test=score(expert, trial, exam.test, exam.clicks), others=means, **facts)


def simulate(
    kind: Kind,
    pool: Sequence[LabelledCase],
    exam: Exam,
    out: Path,
    annotator: Annotator,
    settings: Settings,
    model_dir: Path | None = None,
    tell: Callable[[Point], None] | None = None,
) -> list[Point]:
    """Label the pool as an annotator does, and retrain now and then.

    Args:
        kind: which expert.
        pool: cases to label.
        exam: what each point is measured on.
        out: a new folder for a copy of the weights, the record, and the result after each point.
        annotator: when weights are retrained, and which images come first.
        settings: of each retraining.
        model_dir: where learning begins; nothing in it changes.
        tell: receives each point as soon as it is measured.

    Raises:
        UserError: the folder is not empty, there are too few cases, or a retraining cannot be carried out.
    """
    if out.exists() and any(out.iterdir()):
        raise UserError(f"The folder '{out}' is not empty; name a new one.")
    annotator.checked(len(pool))
    if not exam.test:
        raise UserError("A curve needs at least one case to measure on.")
    models = out / "model"
    copy_served(model_dir, models)
    place = Place(Record(out / "record"), models)
    trial = exam.trial_of(kind)
    points = [measured(kind, models, exam, images=0)]
    labels: list[FinalLabel] = []
    left = annotator.arranged(pool)
    for images in (*annotator.at, None):
        _write(out, kind, trial, points)
        if tell is not None:
            tell(points[-1])
        if images is None:
            break
        new = annotator.chosen(left, images - len(labels), Prior.load(place.folder), models)
        left = [case for case in left if case not in new]
        spent = score(served(trial, models), trial, new, exam.clicks).clicks(TARGETS[0])
        for case in new:
            label = as_final(case)
            place.record.submit(label.image, label.label, {**label.info, "client_id": "simulated"})
            labels.append(label)
        outcome = retrain(kind, labels, place, settings, f"learn-curve, {len(labels)} images")
        points.append(
            measured(
                kind,
                models,
                exam,
                images=len(labels),
                spent=spent,
                seconds=outcome.seconds,
                outcome=outcome.state,
            )
        )
    return points


def copy_served(source: Path | None, target: Path) -> None:
    """Copy the weights that are served, with their origins, into a folder that serves the same."""
    target.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        path = default_path(kind, directory=source)
        if not path.exists():
            continue
        origin = origin_of(path)
        for weights in (path, *([origin] if origin else ())):
            for file in (weights, card_path(weights)):
                shutil.copyfile(file, target / file.name)
        if path.stem != shipped_name(kind):
            select(path.stem, target)


def as_final(case: LabelledCase) -> FinalLabel:
    """A labelled case as if its label had been submitted."""
    names = {name: value for value, name in case.names.items()}
    if not names:
        _, labels = load_case(case)
        names = {f"label {value}": int(value) for value in np.unique(labels) if value}
    image = case.id.replace("/", "_")
    return FinalLabel(image, case.image, case.label, {"label_names": names}, case.modality)


def _write(out: Path, kind: Kind, trial: Trial, points: Sequence[Point]) -> None:
    facts = [point.to_dict() for point in points]
    (out / CURVE).write_text(
        json.dumps({"expert": kind, **asdict(trial), "points": facts}, indent=1) + "\n", encoding="utf-8"
    )
    draw(trial.start, facts, out / PLOT)


def points_of(folder: Path) -> list[dict[str, Any]]:
    """The points of a curve that `simulate` wrote.

    Raises:
        UserError: there is none, or it is damaged.
    """
    try:
        return list(json.loads((folder / CURVE).read_text(encoding="utf-8"))["points"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"'{folder}' holds no curve that can be read ({error}).") from error


def _shown(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The points, with the mean over their labels instead of each where these are too many to look at."""
    labels = list(points[0]["mean"])
    if len(labels) <= MOST_PANELS:
        return list(points)
    name = f"mean of {len(labels)} labels"

    def joined(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: np.mean([values[label] for label in labels], axis=0).tolist()}

    return [
        {
            **point,
            "mean": joined(point["mean"]),
            "clicks_to": {target: joined(values) for target, values in point["clicks_to"].items()},
        }
        for point in points
    ]


def draw_together(curves: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Plot several curves in one picture: mean clicks needed by labelled images.

    Args:
        curves: points, as `draw` takes them, by the words of the legend; of the same cases.
        path: of the picture (.png, .svg, .pdf).
    """
    import matplotlib.pyplot as plt

    curves = {name: _shown(points) for name, points in curves.items()}
    labels = list(next(iter(curves.values()))[0]["mean"])
    figure, axes = plt.subplots(
        1, len(labels), figsize=(4.6 * len(labels), 3.8), layout="constrained", squeeze=False, sharey=True
    )
    for axis, label in zip(axes[0], labels, strict=True):
        for number, (name, points) in enumerate(curves.items()):
            images = [point["images"] for point in points]
            needed = [point["clicks_to"][f"{TARGETS[0]:g}"][label] for point in points]
            axis.plot(images, needed, "os^vDP*X"[number % 8] + "-", ms=4, label=name)
        axis.set_xticks(sorted({point["images"] for points in curves.values() for point in points}))
        axis.set(title=label, xlabel="labelled images", ylim=(0, None))
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel(f"mean clicks to Dice {TARGETS[0]:g}")
    axes[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw(start: str, points: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot a curve: Dice after each step, before and after each retraining, and clicks by labelled images.

    Args:
        start: what the user gives first.
        points: as `Point.to_dict` gives them, or as they are in `curve.json`.
        path: of the picture (.png, .svg, .pdf).
    """
    import matplotlib.pyplot as plt

    points = _shown(points)
    labels = list(points[0]["mean"])
    figure, axes = plt.subplots(
        1, len(labels) + 1, figsize=(4.2 * (len(labels) + 1), 3.8), layout="constrained"
    )
    lowest = min(min(curve) for point in points for curve in point["mean"].values()) - 0.03
    shades = plt.get_cmap("viridis")(np.linspace(0.85, 0.1, len(points)))
    for axis, label in zip(axes, labels, strict=False):
        for point, shade in zip(points, shades, strict=True):
            curve = point["mean"][label]
            title = "shipped weights" if point["images"] == 0 else f"{point['images']} images labelled"
            axis.plot(range(len(curve)), curve, "o-", ms=3, color=shade, label=title)
        axis.axhline(TARGETS[0], color="grey", lw=0.8, ls=":")
        axis.set(title=label, xlabel=f"corrective clicks after the {start}", ylim=(lowest, 1))
        axis.grid(alpha=0.25)
    axes[0].set_ylabel("mean Dice")
    axes[0].legend(fontsize=8, loc="lower right")
    images = [point["images"] for point in points]
    for number, label in enumerate(labels):
        look = {"marker": "os^vDP*X"[number % 8], "color": f"C{number % 10}", "ms": 4}
        for target, style in zip(TARGETS, ("-", "--"), strict=True):
            values = [point["clicks_to"][f"{target:g}"][label] for point in points]
            axes[-1].plot(images, values, ls=style, label=f"{label}, Dice {target:g}", **look)
    given = len(points[0]["mean"][labels[0]]) - 1
    axes[-1].set(
        title="clicks needed",
        xlabel="labelled images",
        ylabel=f"mean clicks (at most {given})",
        ylim=(0, None),
    )
    axes[-1].set_xticks(images)
    axes[-1].grid(alpha=0.25)
    axes[-1].legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)

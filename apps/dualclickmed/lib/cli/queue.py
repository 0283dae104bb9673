"""`queue` and `learn-curve` of the command line."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..errors import UserError
from ..learning.following import STORE, follow, image_in, stored_labels_in
from ..learning.record import FOLDER, Record
from ..learning.runs import is_training, note_ended, progress_of
from ..learning.settings import ORDERS, Settings
from ..weights.cards import KINDS
from .console import existing, loading, say

if TYPE_CHECKING:
    from ..learning.curve import Point

SHOWN_TRAININGS = 5
SHOWN_IMAGES = 50
"""Images with several annotators that are compared; each has to be read."""
MOST_LABELS_SHOWN = 6


def queue(
    studies: Annotated[str, typer.Option(help="The studies folder of the server.")],
) -> None:
    """Show what annotators submitted, what waits for retraining, and how the last trainings went."""
    if studies.startswith(("http://", "https://")):
        raise UserError(
            "The labels of a DICOMweb archive are shown by the running server, under learning in /info/."
        )
    if not Path(studies).is_dir():
        raise UserError(f"There is no studies folder '{studies}'.")
    record = Record(Path(studies) / FOLDER)
    note_ended(record)
    console = Console()
    stored = (Path(studies) / STORE).is_file()
    now = follow(record, stored_labels_in(Path(studies))) if stored else record.final()
    final = sorted(now.values(), key=lambda s: s.time)
    if not final:
        console.print("Nothing was submitted yet.")
        return
    waiting = {kind: {s.version for s in record.waiting(kind, final=now)} for kind in KINDS}
    table = Table(title=f"Final labels: {len(final)}", title_justify="left")
    for name in ("image", "by", "when (UTC)", "clicks", "labels", "waits for", "other versions"):
        table.add_column(name, overflow="fold")
    for submission in final:
        others = [s for s in record.versions(submission.image) if s.who != submission.who]
        names = ", ".join(submission.labels[:MOST_LABELS_SHOWN])
        more = len(submission.labels) - MOST_LABELS_SHOWN
        table.add_row(
            submission.image,
            submission.who,
            submission.time[:19].replace("T", " "),
            "" if submission.clicks is None else str(submission.clicks),
            names + (f" and {more} more" if more > 0 else ""),
            ", ".join(kind for kind in KINDS if submission.version in waiting[kind]),
            ", ".join(f"{s.who}: {record.path_of(s).name}" for s in others),
        )
    console.print(table)
    several = [image for image in now if len(record.versions(image)) > 1]
    if several and stored:
        console.print(_agreement(Path(studies), record, several))
    trainings = record.trainings()[-SHOWN_TRAININGS:]
    if trainings:
        table = Table(title="Last trainings", title_justify="left")
        for name in ("expert", "when (UTC)", "state", "labels", "weights or reason"):
            table.add_column(name, overflow="fold")
        for training in trainings:
            detail = training.detail.get("weights") or training.detail.get("reason") or ""
            when = training.time[:19].replace("T", " ")
            table.add_row(training.kind, when, training.state, str(len(training.versions)), str(detail))
        console.print(table)
    if is_training(record.folder):
        say(console, f"Running: {_running(progress_of(record.folder))}.")


def _running(told: dict[str, Any]) -> str:
    """One sentence's worth of what a training tells."""
    if not told:
        return "a training that has told nothing yet"
    parts = [f"the {told.get('kind', '')} expert, {told.get('state', 'started')}"]
    if told.get("step") is not None:
        parts.append(f"step {told['step']} of at most {told.get('steps', '?')}")
    if told.get("labels") is not None:
        parts.append(f"on {told['labels']} labels")
    if told.get("elapsed") is not None:
        parts.append(f"for {told['elapsed']} s")
    if told.get("left") is not None:
        parts.append(f"about {told['left']:.0f} s left")
    return ", ".join(parts)


def _agreement(studies: Path, record: Record, images: list[str]) -> Table:
    """How far the annotators of some images agree."""
    from ..imaging.label_map import LabelMap
    from ..imaging.volume import load_volume
    from ..learning.agreement import compare
    from ..learning.final import versions_of

    table = Table(title="Several annotators", title_justify="left")
    for name in ("image", "label", "annotators", "Dice", "surface distance (mm)", "95th percentile (mm)"):
        table.add_column(name, overflow="fold")
    for image in images[:SHOWN_IMAGES]:
        try:
            volume = load_volume(image_in(studies, image))
            for pair in compare(versions_of(record, image, volume, LabelMap(())), volume):
                distances = ("" if mm is None else f"{mm:.2f}" for mm in (pair.distance, pair.hausdorff))
                table.add_row(image, pair.label, f"{pair.one}, {pair.other}", f"{pair.dice:.3f}", *distances)
        except UserError as error:
            table.add_row(image, str(error))
    return table


def learn_curve(
    cases: Annotated[Path, typer.Option(help="Labelled cases, as for train and evaluate.")],
    out: Annotated[Path, typer.Option(help="A new folder for curve.json, curve.png and the weights.")],
    expert: Annotated[
        str, typer.Option(help="global (starts with a box) or local (with a click).")
    ] = "global",
    every: Annotated[int, typer.Option(min=1, help="Images that are labelled between retrainings.")] = 5,
    label: Annotated[
        int | None, typer.Option(min=1, help="Images that are labelled in all (default: all).")
    ] = None,
    at: Annotated[
        str, typer.Option(help="Numbers of labelled images to retrain at, as 5,10,20, instead of --every.")
    ] = "",
    order: Annotated[str, typer.Option(help=f"Which image comes next: {', '.join(ORDERS)}.")] = ORDERS[0],
    seed: Annotated[int, typer.Option(help="Of a random order.")] = 0,
    test: Annotated[int, typer.Option(min=1, help="The last cases, which are measured on only.")] = 10,
    clicks: Annotated[int, typer.Option(min=1, max=50, help="Most corrective clicks for an object.")] = 10,
    others: Annotated[
        Path | None,
        typer.Option(help="Further labelled cases, where nothing should be lost (default: none)."),
    ] = None,
    clicks_alone: Annotated[
        bool,
        typer.Option(
            "--clicks-alone", help="Measure the default strategy from one click instead of the expert alone."
        ),
    ] = False,
    minutes: Annotated[float, typer.Option(min=0.01, help="Of each retraining.")] = Settings().minutes,
    steps: Annotated[int, typer.Option(min=1, help="Of each retraining, at most.")] = Settings().steps,
    model_dir: Annotated[
        Path | None, typer.Option(help="Folder of the weights to begin with (default: as for serve).")
    ] = None,
    beside: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of an earlier curve that together.png shows, too (repeatable; default: none)."
        ),
    ] = None,
) -> None:
    """Simulate an annotator who labels, retrains and goes on, and plot the clicks that this saves.

    The weights that are served are copied first and stay as they are.
    """
    kind = next((kind for kind in KINDS if kind == expert), None)
    if kind is None:
        raise UserError(f"--expert must be global or local, but it is '{expert}'.")
    existing("--cases", cases, "labelled cases")
    existing("--others", others, "further labelled cases")
    with loading(Console(stderr=True)):
        from ..learning.annotator import Annotator
        from ..learning.curve import (
            CLICKS_ALONE,
            CURVE,
            PLOT,
            TARGETS,
            TOGETHER,
            Exam,
            draw_together,
            points_of,
            simulate,
        )
        from ..training.sources import find_training_cases

    found = find_training_cases(cases)
    if len(found) <= test:
        raise UserError(f"'{cases}' holds {len(found)} cases, too few to keep {test} of them for measuring.")
    own = {case.image.resolve() for case in found}
    rest = [c for c in find_training_cases(others) if c.image.resolve() not in own] if others else []
    pool = found[: len(found) - test][:label]
    console = Console()
    begin = time.monotonic()

    def tell(point: Point) -> None:
        for name, dice in point.test.mean().items():
            needed = ", ".join(f"{point.test.clicks(t)[name]:.1f} to {t:g}" for t in TARGETS)
            console.print(
                f"{point.images} images labelled ({point.outcome}): {name} Dice {dice[0]:.3f} at the start, "
                f"clicks {needed}; {time.monotonic() - begin:.0f} s",
                highlight=False,
            )

    annotator = Annotator(_numbers(at) or tuple(range(every, len(pool) + 1, every)), order, seed)
    exam = Exam(found[-test:], rest, clicks, CLICKS_ALONE if clicks_alone else None)
    simulate(kind, pool, exam, out, annotator, Settings(minutes, steps), model_dir, tell)
    console.print(f"Wrote {out / CURVE} and {out / PLOT}", highlight=False)
    if beside:
        curves = {folder.name: points_of(folder) for folder in [*beside, out]}
        draw_together(curves, out / TOGETHER)
        console.print(f"Wrote {out / TOGETHER}", highlight=False)


def _numbers(text: str) -> tuple[int, ...]:
    """Whole numbers with commas in between."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise UserError(f"--at must be whole numbers with commas in between, but it is '{text}'.") from error

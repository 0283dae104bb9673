"""The ablations of the paper's section 4.3: each choice with and without, trained and evaluated alike."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from .. import __version__
from ..byte_cache import ByteCache
from ..errors import UserError
from ..experts import DualExpert
from ..experts.devices import resolved_device
from ..experts.loading import load_alone
from ..imaging.prompts import Prompts
from ..imaging.volume import Volume, from_array
from ..predictor import CACHE_BYTES
from ..training.generated import make_scene
from ..training.loop import Options, train
from ..training.recipes import Recipe, changed, load_recipe
from ..training.sources import WeightedSource, find_training_cases
from ..weights.cards import command_line
from ..weights.files import Kind, named_path, read_card
from . import records
from .cases import Task, find_cases
from .metrics import Mask
from .protocol import ExpertMethod, Method, run_task
from .statistics import Mean, paired

logger = logging.getLogger(__name__)

GENERATED_SEED = 2_000_003
"""Of the generated volumes that are evaluated on; training draws from other seeds."""
CHOSEN, OTHER = "with", "without"
TABLE, REPORT = "ablations.json", "ablations.md"


@dataclass(frozen=True)
class AblationRow:
    """One row of section 4.3.

    Attributes:
        key: on the command line.
        title: what is compared.
        kind: the expert that is trained.
        chosen, other: what the recipe has with the paper's choice and without it.
        paper: final DSC without and with it in the paper, or the gain alone.
    """

    key: str
    title: str
    kind: Kind
    chosen: Mapping[str, Any]
    other: Mapping[str, Any]
    paper: str


GLOBAL_ROUNDS: Mapping[str, Any] = {
    "interactions": 5,
    "points": 6,
    "mode": "alternatives",
    "clicks": "boundary",
}
"""The paper's five interactions of six boundary-attenuated points, for all rows of the global expert except
where they change them."""

ROWS = (
    AblationRow(
        "global-clicks",
        "global expert: boundary-attenuated instead of random clicks",
        "global",
        {"clicks": "boundary"},
        {"clicks": "uniform"},
        "0.7182 to 0.7361 (+1.79 points)",
    ),
    AblationRow(
        "local-clicks",
        "local expert: balanced instead of random clicks",
        "local",
        {"clicks": "balanced"},
        {"clicks": "uniform"},
        "0.7124 to 0.7274 (+1.50 points)",
    ),
    AblationRow(
        "all-prompts",
        "global expert: all prompts instead of the last",
        "global",
        {"last_only": False},
        {"last_only": True},
        "+3.09 points",
    ),
    AblationRow(
        "six-points",
        "global expert: six points for an interaction instead of one",
        "global",
        {"points": 6},
        {"points": 1},
        "+0.38 points",
    ),
)


@dataclass(frozen=True)
class TrainingBudget:
    """What every training gets.

    Attributes:
        steps: of the optimiser.
        minutes: instead of them, where given.
        epochs: passes over the labelled objects instead of the steps; 0 leaves it to them.
        starts: weight files to begin from, by expert; those that are missing begin from random weights.
        seed: of scenes, clicks and first weights.
        device: where it runs.
        overrides: of every recipe.
    """

    steps: int
    minutes: float | None = None
    epochs: int = 0
    starts: Mapping[Kind, Path] = field(default_factory=dict)
    seed: int = 1
    device: str = "cpu"
    overrides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """One row's result: mean final DSC of both sides, and their difference over the same cases."""

    row: AblationRow
    cases: int
    chosen: float
    other: float
    difference: Mean


class LastPrompt:
    """An expert that sees only the newest click and the mask before it, as with `Recipe.last_only`."""

    def __init__(self, expert: DualExpert, strategy: str) -> None:
        self._method = ExpertMethod(expert, strategy)

    def __call__(self, volume: Volume, prompts: Prompts) -> Mask:
        """The mask of one object: its clicks are replayed one by one."""
        mask = self._method(volume, Prompts(box=prompts.box))
        for click in prompts.clicks:
            mask = self._method(volume, Prompts((click,), prompts.box, mask))
        return mask


def run_row(
    row: AblationRow,
    budget: TrainingBudget,
    tasks: Sequence[tuple[str, Task]],
    data: Path | None,
    out: Path,
    trained: list[tuple[Recipe, Path]],
) -> Finding:
    """Train both sides of a row and evaluate them; what is done already is not done again.

    Args:
        row: which.
        budget: the same for both sides.
        tasks: cases by name.
        data: labelled cases to train on; None trains on generated volumes.
        out: folder of checkpoints, weights and scores.
        trained: recipes of earlier rows with the folders of their weights and scores, which a side with the
            same recipe takes; this row's are added.
    """
    sources = None if data is None else [WeightedSource(find_training_cases(data))]
    rows: list[records.Row] = []
    for side, changes in ((CHOSEN, row.chosen), (OTHER, row.other)):
        recipe = _recipe(row.kind, budget, changes)
        folder = next((found for known, found in trained if known == recipe), out / row.key / side)
        options = Options(folder, minutes=budget.minutes, device=budget.device)
        path = folder / f"{row.kind}-{recipe.preset}.safetensors"
        if not path.exists():
            begin = budget.starts.get(row.kind)
            path = train(recipe, options, command=command_line(), data=sources, start=begin)
        trained.append((recipe, folder))
        method = _method(row.kind, path, budget.device, bool(recipe.last_only))
        start = "box" if row.kind == "global" else "point"
        for name, task in tasks:
            file = records.path_of(folder, name, side)
            if not file.exists():
                outcome = run_task(method, task, start=start, limit=0)
                records.write(file, records.rows_of(row.key, name, side, task, outcome))
            rows += records.read(file)
    last = max(r.step for r in rows)
    means = {
        side: float(
            np.mean([r.dice for r in rows if (r.method, r.label, r.step) == (side, records.WHOLE, last)])
        )
        for side in (CHOSEN, OTHER)
    }
    return Finding(row, len(tasks), means[CHOSEN], means[OTHER], paired(rows, CHOSEN, OTHER))


def generated_tasks(count: int) -> Iterator[tuple[str, Task]]:
    """Generated volumes, each with one of its objects, that no training has seen."""
    for number in range(count):
        rng = np.random.default_rng([GENERATED_SEED, number])
        scene = make_scene(rng)
        labels = scene.labels.numpy()
        target = scene.targets[int(rng.integers(len(scene.targets)))]
        truth = np.isin(labels, target).astype(np.uint8)
        yield (
            f"generated/{number:03d}",
            Task.of_objects(from_array(scene.image.numpy(), scene.spacing), truth, (1,)),
        )


def ablate(
    row: Annotated[
        list[str] | None, typer.Option(help=f"Repeatable; default: all of {', '.join(r.key for r in ROWS)}.")
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of weights and scores; a run that was stopped goes on.")
    ] = Path("ablations"),
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of each training.")] = 400,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0, help="Time for each training, if it ends before the steps do (default: no limit)."
        ),
    ] = None,
    epochs: Annotated[
        int, typer.Option(min=0, help="Passes over the objects of --data, instead of steps (paper: 20).")
    ] = 0,
    start: Annotated[
        list[str] | None,
        typer.Option(
            help="Weights that the trainings of their expert begin from (repeatable; default: random ones)."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Labelled cases to train on (default: generated volumes).")
    ] = None,
    cases: Annotated[
        Path | None, typer.Option(help="Labelled cases to evaluate on (default: generated volumes).")
    ] = None,
    most: Annotated[int, typer.Option(min=2, help="Cases to evaluate on, at most.")] = 40,
    seed: Annotated[int, typer.Option(help="Of scenes, clicks and first weights.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "cpu",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE of every recipe (repeatable; default: none).")
    ] = None,
) -> None:
    """Train and evaluate each choice of the paper's section 4.3 with and without it, at equal small
    budgets.
    """
    known = {r.key: r for r in ROWS}
    keys = list(dict.fromkeys(row or known))
    unknown = [key for key in keys if key not in known]
    if unknown:
        raise UserError(f"--row must be one of {', '.join(known)}, but it is '{unknown[0]}'.")
    # Otherwise every enforced click would be a line of the log.
    logging.getLogger(DualExpert.__module__).setLevel(logging.WARNING)
    if epochs and data is None:
        raise UserError("--epochs are passes over labelled cases: name them with --data.")
    starts = _starts(start or [])
    budget = TrainingBudget(
        steps, minutes, epochs, starts, seed, resolved_device(device), _overrides(set_ or [])
    )
    tasks = list(generated_tasks(most)) if cases is None else _labelled_tasks(cases, most)
    settings = {
        "steps": steps,
        "minutes": minutes,
        "epochs": epochs,
        "start": sorted(map(str, starts.values())),
        "seed": seed,
        "data": str(data),
        "cases": str(cases),
        "most": most,
        "set": dict(budget.overrides),
    }
    _agree(out, settings)
    findings: list[Finding] = []
    trained: list[tuple[Recipe, Path]] = []
    for key in keys:
        logger.info("Ablation '%s': %s", key, known[key].title)
        findings.append(run_row(known[key], budget, tasks, data, out, trained))
        _write(out, findings, budget)
    Console(width=150).print(_table(findings))
    Console(stderr=True).print(f"Table -> {out / REPORT}", markup=False, highlight=False, soft_wrap=True)


def _recipe(kind: Kind, budget: TrainingBudget, changes: Mapping[str, Any]) -> Recipe:
    recipe = load_recipe(f"{kind}-compact")
    length = {"steps": budget.steps, "epochs": budget.epochs, "seed": budget.seed}
    shown = GLOBAL_ROUNDS if kind == "global" else {}
    return changed(recipe, {**length, **shown, **budget.overrides, **changes})


def _starts(names: Sequence[str]) -> dict[Kind, Path]:
    """Weight files by their expert."""
    found: dict[Kind, Path] = {}
    for name in names:
        path = named_path(name)
        kind: Kind = read_card(path)["kind"]
        if kind in found:
            raise UserError(f"--start names two weights of the {kind} expert: '{found[kind]}' and '{path}'.")
        found[kind] = path
    return found


def _method(kind: Kind, path: Path, device: str, last_only: bool) -> Method:
    expert = load_alone(kind, path, device, ByteCache(CACHE_BYTES))
    return LastPrompt(expert, kind) if last_only else ExpertMethod(expert, kind)


def _labelled_tasks(folder: Path, most: int) -> list[tuple[str, Task]]:
    """Evenly spread cases with all of their classes."""
    found = find_cases(folder)
    if len(found) > most:
        found = [found[i] for i in np.linspace(0, len(found) - 1, most).round().astype(int)]
    tasks = [(case.name, case.task()) for case in found]
    return [(name, task) for name, task in tasks if task.values]


def _overrides(texts: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set takes KEY=VALUE, but '{text}' came.")
        found[key] = value
    return found


def _agree(out: Path, settings: dict[str, Any]) -> None:
    path = out / "settings.json"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        differ = next((key for key in settings if before.get(key) != settings[key]), None)
        if differ is not None:
            raise UserError(
                f"'{out}' holds ablations with {differ} {before.get(differ)}, but {settings[differ]} was "
                f"asked for; "
                "name another folder."
            )
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


_COLUMNS = ("Choice", "Cases", "Without", "With", "Gain, points", "95 % interval", "Paper")


def _cells(finding: Finding) -> tuple[str, ...]:
    d = finding.difference
    return (
        finding.row.title,
        str(finding.cases),
        f"{finding.other:.4f}",
        f"{finding.chosen:.4f}",
        f"{100 * d.value:+.2f}",
        f"{100 * d.low:+.2f} to {100 * d.high:+.2f}",
        finding.row.paper,
    )


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(title="Final DSC with and without each choice")
    for at, name in enumerate(_COLUMNS):
        table.add_column(name, justify="right" if 0 < at < 6 else "left")
    for finding in findings:
        table.add_row(*_cells(finding))
    return table


def _write(out: Path, findings: Sequence[Finding], budget: TrainingBudget) -> None:
    spent = f"{budget.epochs} epochs" if budget.epochs else f"{budget.steps} steps"
    spent = f"at most {budget.minutes:g} minutes" if budget.minutes else spent
    lines = [
        "# Ablations",
        "",
        f"`{command_line()}`, version {__version__}, {torch.get_num_threads()} threads on {budget.device}. "
        "Each training: "
        f"{spent}, compact preset. Final DSC after five clicks; the interval is a bootstrap over the cases' "
        "differences, and does not cover what another seed of training would change.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
        *(f"| {' | '.join(_cells(f))} |" for f in findings),
    ]
    (out / REPORT).write_text("\n".join(lines) + "\n", encoding="utf-8")
    table = [{**dataclasses.asdict(f), "row": f.row.key} for f in findings]
    (out / TABLE).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")

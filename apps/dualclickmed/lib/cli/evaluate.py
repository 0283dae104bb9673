"""`evaluate` of the command line."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..errors import UserError
from ..evaluation.names import DEFAULT, STARTS, TIME_LIMIT, known, name_of
from ..strategies import DEFAULT_STRATEGY, STRATEGIES
from ..weights.cards import command_line
from .console import CaseProgress, Device, ModelDir, Preset, existing, loading

if TYPE_CHECKING:
    from ..evaluation.calibration import Reliabilities
    from ..evaluation.cases import Case
    from ..evaluation.methods import MethodSettings
    from ..evaluation.statistics import Summary

logger = logging.getLogger(__name__)

WIDTH = 150


def evaluate(
    cases: Annotated[
        Path | None,
        typer.Option(
            help="Folder of case files (.npz) or of images with labels, or a list (CSV, JSON); "
            "default: none, with --nested."
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of scores and report; a run that was stopped goes on there.")
    ] = Path("evaluation"),
    method: Annotated[
        list[str] | None,
        typer.Option(help=f"Repeatable; default: {', '.join(DEFAULT)}. All: {known()}."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(help="Only these classes: values or names with commas between them (default: all)."),
    ] = None,
    start: Annotated[
        str,
        typer.Option(
            help="What the user gives first: box, point, box2d or lasso (both in one slice), or scattered "
            "(200 clicks all over the object)."
        ),
    ] = "box",
    clicks: Annotated[int, typer.Option(min=0, max=50, help="Clicks for each class after the start.")] = 5,
    smallest: Annotated[int, typer.Option(min=1, help="Leave out classes of fewer voxels.")] = 1,
    most: Annotated[
        int | None, typer.Option(min=1, help="At most this many classes of a case (default: all).")
    ] = None,
    only: Annotated[str | None, typer.Option(help="Only cases whose name starts so (default: all).")] = None,
    truth: Annotated[
        Path | None, typer.Option(help="Folder with the gts of case files that have none (default: none).")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the cases.")] = 1,
    shard: Annotated[
        str | None,
        typer.Option(help="i/n: only the i-th of n parts, for one of several machines (default: all of it)."),
    ] = None,
    limit: Annotated[
        float, typer.Option(min=0, help="Seconds for each class of a case over all steps; 0 for no limit.")
    ] = TIME_LIMIT,
    pictures: Annotated[
        int, typer.Option(min=0, help="Draw so many best and worst cases of each modality into the report.")
    ] = 0,
    costs: Annotated[
        bool, typer.Option("--cost", help="Measure size, speed and memory of our networks.")
    ] = False,
    calibrated: Annotated[
        bool,
        typer.Option(
            "--calibration", help="Measure whether the probabilities of 'fused' mean what they say."
        ),
    ] = False,
    nested: Annotated[
        int,
        typer.Option(
            min=0,
            help="Instead of cases: so many generated volumes with objects inside objects (usually 40), "
            "asked for alone and together.",
        ),
    ] = 0,
    strategy: Annotated[
        str | None, typer.Option(help=f"Short for --method: {', '.join(STRATEGIES)} (default: none).")
    ] = None,
    model_dir: ModelDir = None,
    preset: Preset = None,
    device: Device = "cpu",
) -> None:
    """Run the challenge's protocol: a box, then clicks where the error is largest, by several methods at
    once.

    Writes scores (CSV), a summary (JSON) and a report (Markdown, HTML) with tables and curves.
    """
    if start not in STARTS:
        raise UserError(f"--start must be one of {', '.join(STARTS)}, but it is '{start}'.")
    if strategy is not None and strategy not in STRATEGIES:
        raise UserError(f"--strategy must be one of {', '.join(STRATEGIES)}, but it is '{strategy}'.")
    if cases is None and not nested:
        raise UserError("Name labelled cases with --cases, or measure generated volumes with --nested.")
    methods = [*(method or ([] if strategy else DEFAULT)), *([strategy] if strategy else [])]
    for text in methods:
        name_of(text)
    existing("--cases", cases, "a folder of labelled cases, or a list of them")
    existing("--truth", truth, "the folder with the gts")
    existing("--model-dir", model_dir, "a folder of weights")
    console = Console(stderr=True)
    with loading(console):
        import torch

        from ..evaluation import calibration, cost, report
        from ..evaluation.cases import find_cases
        from ..evaluation.methods import MethodSettings, our_expert
        from ..evaluation.run import Plan, run
        from ..experts import DualExpert
        from ..experts.devices import resolved_device

    settings = MethodSettings(model_dir, preset, resolved_device(device))
    # Otherwise every enforced click would be a line of the log.
    logging.getLogger(DualExpert.__module__).setLevel(logging.WARNING)
    if cases is None:
        _nested(nested, strategy or DEFAULT_STRATEGY, settings, out)
        return
    found = [c for c in find_cases(cases, truth) if only is None or c.name.startswith(only)]
    if not found:
        raise UserError(f"No case in '{cases}' has a name that starts with '{only}'.")
    wanted = tuple(part.strip() for part in (labels or "").split(",") if part.strip())
    plan = Plan(out, str(cases), tuple(methods), settings, start, clicks, wanted, smallest, most, limit)
    names = plan.names
    what = "cases" if len(names) == 1 else f"cases by {len(names)} methods"
    with CaseProgress(console, what, len(_part(found, shard))) as progress:
        run(_part(found, shard), plan, workers, progress.done)
    measured = cost.our_costs(settings, torch.get_num_threads()) if costs else []
    summaries = report.write(
        out, names, found, report.Origin(command_line(), _machine(settings.device)), start, measured,
        pictures, lambda case: case.task(wanted, smallest, most),
    )  # fmt: skip
    Console(width=WIDTH).print(_table(summaries, start))
    if calibrated:
        found_bins = calibration.measure(
            our_expert(settings), _part(found, shard), lambda case: case.task(wanted, smallest, most), clicks
        )
        calibration.write(out, found_bins)
        Console(width=WIDTH).print(_calibration_table(found_bins))
    Console(stderr=True).print(
        f"Report -> {out / report.HTML}", markup=False, highlight=False, soft_wrap=True
    )


def _nested(count: int, strategy: str, settings: MethodSettings, out: Path) -> None:
    """Measure objects inside objects; writes nested.csv and prints the means."""
    from ..evaluation import nested as nested_objects
    from ..evaluation.methods import our_expert

    with CaseProgress(Console(stderr=True), "volumes", count) as progress:
        scores = nested_objects.measure_nested(
            our_expert(settings),
            nested_objects.nested_volumes(count),
            strategy,
            lambda number: progress.done(number, count),
        )
    out.mkdir(parents=True, exist_ok=True)
    nested_objects.write_nested(out / "nested.csv", scores)
    table = Table("objects", "number", "DSC alone", "DSC together", "lost", title="Objects inside objects")
    for name, part in (
        ("outer", [s for s in scores if not s.inner]),
        ("inner", [s for s in scores if s.inner]),
        ("all", scores),
    ):
        alone, together = (sum(v) / len(part) for v in ([s.alone for s in part], [s.together for s in part]))
        lost = sum(s.lost for s in part)
        table.add_row(name, str(len(part)), f"{alone:.3f}", f"{together:.3f}", str(lost))
    Console(width=WIDTH).print(table)


def _calibration_table(found: Reliabilities) -> Table:
    from ..evaluation import calibration

    table = Table("group", "clicks", "calibration error", "of cells from 0.1 to 0.9", title="Calibration")
    for row in calibration.rows(found):
        table.add_row(*row)
    return table


def _part(cases: list[Case], shard: str | None) -> list[Case]:
    """The i-th of n parts of the cases, by turns, so that every part has some of everything."""
    if shard is None:
        return cases
    number, slash, count = shard.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise UserError(f"--shard must be i/n with i from 1 to n, such as 2/4, but it is '{shard}'.")
    return cases[int(number) - 1 :: int(count)]


def _table(summaries: list[Summary], start: str) -> Table:
    table = Table(title=f"Mean over cases: DSC from the {start} and after each click")
    for name in ("modality", "method", "cases"):
        table.add_column(name, justify="right" if name == "cases" else "left")
    for step in range(len(summaries[0].dice)):
        table.add_column(start if step == 0 else f"+{step}", justify="right")
    for name in ("DSC AUC", "NSD AUC", "NSD final", "harmful", "s"):
        table.add_column(name, justify="right")
    last = ""
    for s in summaries:
        if s.group != last:
            table.add_section()
        last = s.group
        table.add_row(
            s.group, s.method, str(s.cases), *(f"{d:.3f}" for d in s.dice),
            f"{s.dice_auc.value:.3f}", f"{s.nsd_auc.value:.3f}", f"{s.nsd_final.value:.3f}",
            f"{100 * s.harmful:.0f} %", f"{s.seconds:.2f}",
        )  # fmt: skip
    return table


def _machine(device: str) -> str:
    import torch

    from ..benchmarks.tables import machine

    return f"{machine(torch.get_num_threads())}, device {device}"

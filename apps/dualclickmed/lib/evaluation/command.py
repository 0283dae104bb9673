"""`evaluate` of the command line: the table of mean Dice by group, method and step."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from .. import __version__
from ..errors import UserError
from ..predictor import Predictor
from ..weights import KINDS, card_path, default_path
from .cases import find_cases
from .protocol import Method, Row, ellipsoid_method, expert_method, run_cases, summarise, write_scores

METHODS = ("ours", "global", "local", "ellipsoid")


def evaluate(
    cases: Annotated[
        Path, typer.Option(help="Folder of cases: folders with image.* and label.* on one grid.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for scores.csv and summary.json.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="ours (the paper's routing), global, local or ellipsoid; may be repeated "
            "(default: ours and ellipsoid)."
        ),
    ] = None,
    start: Annotated[str, typer.Option(help="What the user gives first: box or point.")] = "box",
    clicks: Annotated[int, typer.Option(min=0, max=50, help="Corrective clicks after the start.")] = 5,
    smallest: Annotated[int, typer.Option(min=1, help="Leave out objects of fewer voxels.")] = 50,
    most: Annotated[int | None, typer.Option(min=1, help="At most this many objects of a case.")] = None,
    only: Annotated[str | None, typer.Option(help="Only cases whose name starts so.")] = None,
    model_dir: Annotated[Path | None, typer.Option(help="Folder of the weights.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """Simulate an annotator on labelled cases and print the mean Dice after each step."""
    if start not in ("box", "point"):
        raise UserError(f"--start must be 'box' or 'point', but it is '{start}'.")
    names = list(dict.fromkeys(method or ["ours", "ellipsoid"]))
    found = [c for c in find_cases(cases) if only is None or c.name.startswith(only)]
    if not found:
        raise UserError(f"No case in '{cases}' has a name that starts with '{only}'.")
    methods, shas = _methods(names, model_dir, device)
    progress = track(found, "cases", console=Console(stderr=True))
    scores = run_cases(progress, methods, clicks, start, smallest, most)
    if not scores:
        raise UserError(f"No object in '{cases}' has at least {smallest} voxels.")
    rows = summarise(scores)
    Console(width=120).print(_table(rows, start))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_scores(out / "scores.csv", scores)
        summary = {
            "version": __version__,
            "weights": shas,
            "start": start,
            "clicks": clicks,
            "smallest": smallest,
            "most": most,
            "rows": [dataclasses.asdict(row) for row in rows],
        }
        (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


def _methods(
    names: list[str], model_dir: Path | None, device: str
) -> tuple[dict[str, Method], dict[str, str]]:
    """The methods by name, and the SHA-256 of the weights they use."""
    unknown = [n for n in names if n not in METHODS]
    if unknown:
        raise UserError(f"--method must be one of {', '.join(METHODS)}, but it is '{unknown[0]}'.")
    methods: dict[str, Method] = {}
    shas: dict[str, str] = {}
    if set(names) & {"ours", "global", "local"}:
        expert = Predictor.from_weights(model_dir=model_dir, device=device).expert
        for kind in KINDS:
            card = card_path(default_path(kind, directory=model_dir))
            if card.exists():
                shas[kind] = json.loads(card.read_text())["sha256"]
    for name in names:
        if name == "ellipsoid":
            methods[name] = ellipsoid_method
        else:
            methods[name] = expert_method(expert, "paper" if name == "ours" else name)
    return methods, shas


def _table(rows: list[Row], start: str) -> Table:
    table = Table(title=f"Mean Dice, from the {start} and after each click")
    table.add_column("group")
    table.add_column("method")
    table.add_column("objects", justify="right")
    for step in range(len(rows[0].dice)):
        table.add_column(start if step == 0 else f"+{step}", justify="right")
    table.add_column("harmful clicks", justify="right")
    last = ""
    for row in rows:
        if row.group != last:
            table.add_section()
        last = row.group
        table.add_row(
            row.group,
            row.method,
            str(row.count),
            *(f"{d:.3f}" for d in row.dice),
            f"{100 * row.harmful:.0f} %",
        )
    return table

"""`bench` of the command line: how large, fast and exact the networks are here, as tables."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from .. import __version__
from ..errors import UserError
from ..networks.configs import PRESETS
from ..weights.cards import KINDS
from .console import loading

if TYPE_CHECKING:
    from ..benchmarks.tables import BenchSection

WIDTH = 170
"""Characters that the widest table takes."""


def bench(
    preset: Annotated[
        list[str] | None, typer.Option(help="compact, transformer or paper; may be repeated (default: all).")
    ] = None,
    expert: Annotated[
        list[str] | None, typer.Option(help="global or local; may be repeated (default: both).")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One run of each, small windows and volumes, no server.")
    ] = False,
    parity: Annotated[
        bool, typer.Option("--parity", help="Only hold the paper preset to the published form, full size.")
    ] = False,
    beside: Annotated[
        bool, typer.Option("--peers", help="Only measure seconds from click to mask beside the peers.")
    ] = False,
    training: Annotated[
        bool, typer.Option("--training", help="Only measure how many objects a second recipes train on.")
    ] = False,
    recipe: Annotated[
        list[str] | None,
        typer.Option(help="With --training: name or .toml (repeatable; default: both compact ones)."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="With --training: steps of each recipe.")] = 5,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Processor threads (default: all cores).")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N, for the networks' table.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="File for all figures, JSON (default: none).")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="File for the tables, Markdown (default: none).")
    ] = None,
) -> None:
    """Measure the networks on this machine: size, speed, memory, and growth with volume and clicks.

    Weights are random: speed and exactness do not depend on them. Exit code 1 if parity fails.
    """
    chosen = list(dict.fromkeys(preset or PRESETS))
    experts = list(dict.fromkeys(expert or KINDS))
    for what, names, known in (("preset", chosen, tuple(PRESETS)), ("expert", experts, KINDS)):
        for name in names:
            if name not in known:
                raise UserError(f"--{what} must be one of {', '.join(known)}, but it is {name!r}.")
    for file in (out, markdown):
        # Now, not after a quarter of an hour.
        if file is not None and (file.is_dir() or not file.absolute().parent.is_dir()):
            raise UserError(f"A file in a folder that exists must be named for the figures, not '{file}'.")
    console = Console(width=max(WIDTH, Console().width))
    with loading(Console(stderr=True)):
        from ..benchmarks.measure import in_process
        from ..benchmarks.tables import CLICKS, VOLUMES, machine, parity_section, run, training_section
        from ..benchmarks.training import training_speeds
        from ..experts.devices import resolved_device
        from ..training.recipes import load_recipe
    threads = threads or os.cpu_count() or 1
    where = resolved_device(device)
    if parity:
        sections, figures = parity_section(threads, console)
    elif beside:
        sections, figures = _beside_the_peers(threads, console, out)
    elif training:
        recipes = {name: load_recipe(name) for name in recipe or ("global-compact", "local-compact")}
        speeds = in_process(threads, training_speeds, recipes, steps, where)
        sections = [training_section(speeds, threads)]
        figures = {"training": [dataclasses.asdict(speed) for speed in speeds]}
        console.print(sections[0].table())
    else:
        presets = {name: PRESETS[name] for name in chosen}
        sections, figures = run(presets, experts, quick, threads, where, VOLUMES, CLICKS, console)
    figures = {
        "version": __version__,
        "machine": machine(threads),
        "device": where,
        "quick": quick,
        **figures,
    }
    if out is not None:
        out.write_text(json.dumps(figures, indent=1) + "\n")
    if markdown is not None:
        markdown.write_text("\n\n".join(section.markdown() for section in sections) + "\n")
    if parity and not figures["same"]:
        raise typer.Exit(1)


def _beside_the_peers(
    threads: int, console: Console, out: Path | None
) -> tuple[list[BenchSection], dict[str, Any]]:
    """Measure the peers; print and save each row as soon as it is measured, because some take minutes."""
    from ..benchmarks.tables import machine
    from ..evaluation.peers import peers, peers_section

    rows = []
    for row in peers(threads):
        rows.append(row)
        told = f"{row.name}, {row.size}: {row.seconds:.2f} s, {row.gigabytes:.2f} GB"
        console.print(told, highlight=False)
        if out is not None:
            figures = {"machine": machine(threads), "peers": [dataclasses.asdict(row) for row in rows]}
            out.write_text(json.dumps(figures, indent=1) + "\n")
    section = peers_section(rows)
    console.print(section.table())
    return [section], {"peers": [dataclasses.asdict(row) for row in rows]}

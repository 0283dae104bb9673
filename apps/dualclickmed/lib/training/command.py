"""`train global` and `train local` of the command line."""

from __future__ import annotations

import dataclasses
import logging
import shlex
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from ..errors import UserError
from ..weights import Kind
from .loop import Options, train
from .recipes import COMPACT

logger = logging.getLogger(__name__)

train_app = typer.Typer(
    help="Train an expert on generated volumes.", no_args_is_help=True, add_completion=False
)

Preset = Annotated[str, typer.Option(help="Which network: compact.")]
Out = Annotated[
    Path | None, typer.Option(help="Folder of checkpoint, log and weights (default: runs/EXPERT-PRESET).")
]
Steps = Annotated[int | None, typer.Option(min=1, help="Optimiser steps; also the length of the schedule.")]
Minutes = Annotated[
    float | None, typer.Option(min=0, help="Stop after this time; the schedule is fitted to it.")
]
Rate = Annotated[float | None, typer.Option(min=0, help="Peak learning rate.")]
Seed = Annotated[int | None, typer.Option(help="Seed of scenes, clicks and initial weights.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Processor threads (default: all cores).")]
Workers = Annotated[int, typer.Option(min=0, help="Processes that make samples beside the training.")]
Half = Annotated[bool, typer.Option(help="Compute in bfloat16 where that is safe.")]
Resume = Annotated[bool, typer.Option(help="Go on from the folder's checkpoint.")]


@train_app.command("global")
def train_global(
    preset: Preset = "compact",
    out: Out = None,
    steps: Steps = None,
    minutes: Minutes = None,
    rate: Rate = None,
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
    workers: Workers = 0,
    half: Half = True,
    resume: Resume = True,
) -> None:
    """Train the global expert."""
    _train("global", preset, out, steps, minutes, rate, seed, device, threads, workers, half, resume)


@train_app.command("local")
def train_local(
    preset: Preset = "compact",
    out: Out = None,
    steps: Steps = None,
    minutes: Minutes = None,
    rate: Rate = None,
    seed: Seed = None,
    device: Device = "auto",
    threads: Threads = None,
    workers: Workers = 0,
    half: Half = True,
    resume: Resume = True,
) -> None:
    """Train the local expert."""
    _train("local", preset, out, steps, minutes, rate, seed, device, threads, workers, half, resume)


def _train(
    kind: Kind,
    preset: str,
    out: Path | None,
    steps: int | None,
    minutes: float | None,
    rate: float | None,
    seed: int | None,
    device: str,
    threads: int | None,
    workers: int,
    half: bool,
    resume: bool,
) -> None:
    if preset != "compact":
        raise UserError(f"Generated volumes train the preset 'compact' only; '{preset}' was asked for.")
    if threads:
        torch.set_num_threads(threads)
    recipe = COMPACT[kind]
    if steps is not None:
        recipe = dataclasses.replace(recipe, steps=steps)
    if rate is not None:
        recipe = dataclasses.replace(recipe, rate=rate)
    if seed is not None:
        recipe = dataclasses.replace(recipe, seed=seed)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    options = Options(
        out=out or Path("runs") / f"{kind}-{preset}",
        resume=resume,
        minutes=minutes,
        device=device,
        half=half,
        workers=workers,
    )
    path = train(recipe, options, command=shlex.join(["python", "main.py", *sys.argv[1:]]))
    logger.info("Wrote %s and its card.", path)

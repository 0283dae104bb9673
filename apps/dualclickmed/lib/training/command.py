"""`train` of the command line."""

from __future__ import annotations

import dataclasses
import enum
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


class Expert(str, enum.Enum):
    """What can be trained."""

    GLOBAL = "global"
    LOCAL = "local"


def train_expert(
    expert: Annotated[Expert, typer.Argument(help="Which expert.")],
    preset: Annotated[str, typer.Option(help="Which network: compact.")] = "compact",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of checkpoint, log and weights (default: runs/EXPERT-PRESET)."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimiser steps; also the length of the schedule.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Stop after this time; the schedule is fitted to it.")
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0, help="Peak learning rate.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of scenes, clicks and initial weights.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Processor threads (default: all cores).")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that make samples beside the training.")] = 0,
    half: Annotated[bool, typer.Option(help="Compute in bfloat16 where that is safe.")] = True,
    resume: Annotated[bool, typer.Option(help="Go on from the folder's checkpoint.")] = True,
) -> None:
    """Train an expert on generated volumes."""
    kind: Kind = "global" if expert is Expert.GLOBAL else "local"
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

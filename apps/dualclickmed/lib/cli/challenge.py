"""`predict` of the command line: the program that the challenge calls."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..errors import UserError
from ..strategies import DEFAULT_STRATEGY, STRATEGIES
from ..weights.cards import KINDS, default_path
from .console import CaseProgress, Device, ModelDir, Preset, existing, loading

logger = logging.getLogger(__name__)


def predict(
    source: Annotated[Path, typer.Option("--input", help="Folder of case files (.npz).")],
    output: Annotated[Path, typer.Option("--output", help="Folder of answers of the same names, with segs.")],
    strategy: Annotated[str, typer.Option(help=f"One of {', '.join(STRATEGIES)}.")] = DEFAULT_STRATEGY,
    model_dir: ModelDir = None,
    preset: Preset = None,
    device: Device = "auto",
) -> None:
    """Answer case files of the CVPR 2025 challenge on interactive 3D segmentation.

    An answer depends on its case file alone. A file that can't be answered gets none; the exit code is 2
    then.
    """
    if strategy not in STRATEGIES:
        raise UserError(f"--strategy must be one of {', '.join(STRATEGIES)}, but it is '{strategy}'.")
    existing("--input", source, "a folder of case files (.npz)")
    paths = [default_path(kind, preset, model_dir) for kind in KINDS]
    console = Console(stderr=True)
    with loading(console):
        from ..evaluation.challenge import predict_folder
        from ..imaging.case_files import case_files
        from ..predictor import Predictor
    files = len(case_files(source))
    expert = Predictor.from_weights(paths[0], paths[1], device).expert
    total, wrong = 0, 0
    with CaseProgress(console, "case files", files) as progress:
        for name, failures in predict_folder(source, output, expert, strategy):
            total += 1
            wrong += bool(failures)
            for failure in failures:
                logger.warning("%s: %s", name, failure)
            progress.done(total, files)
    if wrong:
        raise UserError(f"{wrong} of {total} case files could not be answered in full.")
    typer.echo(f"Answered {total} case files -> {output}")

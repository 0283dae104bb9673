"""`train` and `prepare` of the command line."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from ..errors import UserError
from ..training.recipes import BAD_SHARE, Recipe, changed, fine_tune, load_recipe, recipe_names
from ..weights.cards import Kind, command_line, default_path, model_dir, named_path
from .console import existing, loading, pairs

if TYPE_CHECKING:
    from ..training.sources import LabelledCase, WeightedSource

logger = logging.getLogger(__name__)


class Expert(str, enum.Enum):
    """What can be trained."""

    GLOBAL = "global"
    LOCAL = "local"


Data = Annotated[
    list[str] | None,
    typer.Option(
        help="Folder, .csv or .json list of labelled cases, or 'generated' (default); "
        "PATH=WEIGHT mixes several."
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="NAME=VALUE of any number of the recipe (repeatable; default: none)."),
]
Coreset = Annotated[
    float | None,
    typer.Option(
        "--coreset", help="Take this part of the cases, balanced by modality and data set (default: all)."
    ),
]
RecipeName = Annotated[
    str | None, typer.Option(help="A recipe that ships, or a .toml file (default: EXPERT-PRESET).")
]


def train_expert(
    expert: Annotated[Expert, typer.Argument(help="Which expert.")],
    preset: Annotated[str, typer.Option(help="Which network: compact, transformer or paper.")] = "compact",
    recipe: RecipeName = None,
    data: Data = None,
    start: Annotated[
        str | None,
        # torchrun takes --start for its own --start-method, even behind the script's name.
        typer.Option(
            "--start",
            "--from",
            help="Weights to begin from: a file, or a name in the folder (default: random ones).",
        ),
    ] = None,
    tune: Annotated[
        bool,
        typer.Option("--fine-tune", help="Go on gently from --start (default: the weights that are served)."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of checkpoint, log and weights (default: runs/EXPERT-PRESET)."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Optimiser steps; also the length of the schedule (default: the recipe's)."),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0, help="Stop after this time; the schedule is fitted to it (default: no limit)."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0, help="Peak learning rate (default: the recipe's).")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of samples, clicks and initial weights (default: the recipe's).")
    ] = None,
    settings: Set = None,
    coreset_share: Coreset = None,
    validation: Annotated[
        Path | None, typer.Option(help="Cases to measure on (default: generated objects).")
    ] = None,
    validate_every: Annotated[int, typer.Option(min=0, help="Steps between validations; 0: the end.")] = 0,
    prepared: Annotated[
        Path | None, typer.Option(help="Folder of crops made by 'prepare' (default: none).")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[
        int | None, typer.Option(min=1, help="Processor threads (default: all cores).")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that make samples beside the training.")] = 0,
    half: Annotated[bool, typer.Option(help="Compute in 16 bits where that is faster.")] = True,
    resume: Annotated[bool, typer.Option(help="Go on from the folder's checkpoint.")] = True,
    bad_share: Annotated[
        float, typer.Option(min=0, max=1, help="Stop when more than this part of the cases is unusable.")
    ] = BAD_SHARE,
    tensorboard: Annotated[bool, typer.Option(help="Write scalars and pictures for TensorBoard.")] = True,
) -> None:
    """Train an expert on labelled cases, on generated volumes, or on both."""
    kind: Kind = "global" if expert is Expert.GLOBAL else "local"
    for option, path in (("--validation", validation), ("--prepared", prepared)):
        existing(option, path, "a folder")
    _existing_sources(data or [])
    if tune and recipe is not None:
        raise UserError(
            "--fine-tune is a recipe of its own; change its numbers with --set, without --recipe."
        )
    if tune:
        chosen = changed(fine_tune(kind, preset), _settings(settings or []))
        start = start or str(default_path(kind))
    else:
        chosen = chosen_recipe(recipe or f"{kind}-{preset}", kind, settings or [])
    named = {"steps": steps, "rate": rate, "seed": seed}
    chosen = dataclasses.replace(chosen, **{k: v for k, v in named.items() if v is not None})  # type: ignore[arg-type]
    if steps is not None or (minutes is not None and not data):
        chosen = dataclasses.replace(chosen, epochs=0)
    with loading(Console(stderr=True)):
        import torch

        from ..training.loop import Options, train
        from ..training.sources import find_training_cases
    if threads:
        torch.set_num_threads(threads)
    sources = read_sources(data or [], coreset_share, chosen.seed)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    options = Options(
        out=out or Path("runs") / f"{kind}-{chosen.preset}",
        resume=resume,
        minutes=minutes,
        device=device,
        half=half,
        workers=workers,
        validate_every=validate_every,
        validation=None if validation is None else find_training_cases(validation),
        bad_share=bad_share,
        prepared=prepared,
        tensorboard=tensorboard,
    )
    with stopped_by_signals() as stop:
        path = train(
            chosen,
            options,
            command=command_line(),
            data=sources,
            start=None if start is None else named_path(start),
            stop=stop,
        )
    if os.environ.get("RANK", "0") != "0":
        return
    if stop.is_set():
        logger.info("Stopped; the same command goes on from %s.", options.out)
    logger.info(
        "To serve these weights, copy '%s' and its card (.json) into '%s' under a name of your own; "
        "then 'python main.py weights use NAME'.",
        path,
        model_dir(),
    )


def prepare_crops(
    data: Annotated[list[str], typer.Option(help="Folder, .csv or .json list of labelled cases.")],
    out: Annotated[Path, typer.Option(help="Folder of the crops.")],
    preset: Annotated[str, typer.Option(help="Whose recipe decides on objects and boxes.")] = "paper",
    recipe: RecipeName = None,
    settings: Set = None,
    boxes: Annotated[int, typer.Option(min=1, help="Crops of each object, each with a box of its own.")] = 1,
    coreset_share: Coreset = None,
    bad_share: Annotated[
        float, typer.Option(min=0, max=1, help="Fail when more than this part of the cases is unusable.")
    ] = BAD_SHARE,
) -> None:
    """Cut the global expert's crops out of labelled cases once, so that training need not open volumes."""
    _existing_sources(data)
    chosen = chosen_recipe(recipe or f"global-{preset}", "global", settings or [])
    with loading(Console(stderr=True)):
        from ..training.prepare import prepare
        from ..training.sources import summary
    cases = [
        case for source in read_sources(data, coreset_share, chosen.seed) or [] for case in _labelled(source)
    ]
    with typer.progressbar(length=len(cases), label="Cases", hidden=not sys.stderr.isatty()) as bar:
        troubles = prepare(cases, out, chosen, boxes, lambda done, of: bar.update(1))
    logger.info("Prepared %s in '%s'; %d left out.", summary(cases), out, len(troubles))
    if len(troubles) > bad_share * len(cases):
        raise UserError(
            f"{len(troubles)} of {len(cases)} cases can't be used, more than {bad_share:.0%}: "
            f"{next(iter(troubles.values()))}"
        )


def chosen_recipe(name: str, kind: Kind, settings: Sequence[str]) -> Recipe:
    """A recipe by name with NAME=VALUE settings.

    Raises:
        UserError: there is no such recipe or number, or it is for the other expert.
    """
    recipe = changed(load_recipe(name), _settings(settings))
    if recipe.kind != kind:
        fitting = ", ".join(n for n in recipe_names() if n.startswith(kind))
        raise UserError(
            f"The recipe '{name}' trains the {recipe.kind} expert; for the {kind} one: {fitting}."
        )
    return recipe


def read_sources(texts: Sequence[str], share: float | None, seed: int) -> list[WeightedSource] | None:
    """The sources that PATH or PATH=WEIGHT texts name; None for none.

    Raises:
        UserError: a weight is no number, or a path holds no cases.
    """
    from ..training.sources import WeightedSource, coreset, find_training_cases

    sources = []
    for text in texts:
        path, weight = _path_and_weight(text)
        try:
            number = float(weight)
        except ValueError as error:
            raise UserError(
                f"--data takes PATH or PATH=WEIGHT, but the weight of '{text}' is no number."
            ) from error
        if path == "generated":
            sources.append(WeightedSource("generated", number))
            continue
        cases = find_training_cases(Path(path), label_maps=True)
        if share is not None:
            cases = coreset(cases, share, seed)
        sources.append(WeightedSource(cases, number))
    return sources or None


def _path_and_weight(text: str) -> tuple[str, str]:
    """The parts of PATH=WEIGHT, or the text with the weight 1."""
    path, equals, weight = text.rpartition("=")
    return (text, "1") if not equals or Path(text).exists() else (path, weight)


def _existing_sources(texts: Sequence[str]) -> None:
    for text in texts:
        path, _ = _path_and_weight(text)
        if path != "generated":
            existing("--data", Path(path), "labelled cases or 'generated'")


def _labelled(source: WeightedSource) -> Sequence[LabelledCase]:
    return [] if isinstance(source.cases, str) else source.cases


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM or a first Ctrl+C sets; a second Ctrl+C interrupts as usual."""
    stop = threading.Event()

    def ask(number: int, frame: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _settings(texts: Sequence[str]) -> dict[str, str]:
    return {key.strip(): value for key, value in pairs("--set", "NAME=VALUE", texts).items()}

"""The command line: ``python main.py`` in the repository, ``dualclickmed`` where the package is installed.

Nothing heavy is imported before a command needs it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from typer.core import TyperCommand, TyperGroup

from .. import __version__
from ..errors import UserError
from .console import say, stderr
from .demo import demo
from .segment import segment
from .serve import serve
from .weights import commands

EXIT_USER_ERROR = 2

_LATER: dict[str, tuple[str, str, str]] = {
    "train": (".train", "train_expert", "Train an expert on labelled cases or generated ones."),
    "prepare": (".train", "prepare_crops", "Cut labelled cases into crops for faster training."),
    "evaluate": (".evaluate", "evaluate", "Measure how good the masks are on labelled cases."),
    "ablate": ("..evaluation.ablation", "ablate", "Train and evaluate the paper's choices with and without."),
    "predict": (".challenge", "predict", "Answer case files of the interactive challenge."),
    "queue": (".queue", "queue", "Show submitted labels and what waits for retraining."),
    "learn-curve": (".queue", "learn_curve", "Simulate an annotator and plot the clicks saved."),
    "doctor": (".doctor", "doctor", "Show versions, device, weights and ports, and what is wrong."),
    "bench": (".bench", "bench", "Measure size, speed, memory and exactness on this machine."),
}
"""Commands with heavy modules: name to module, its ``typer.Typer`` or function, line in the overview."""


class _Later(TyperCommand):
    """Placeholder for such a command in the overview; the command itself is imported when it is called."""

    def __init__(self, name: str) -> None:
        self.module, self.attribute, line = _LATER[name]
        super().__init__(name, help=line)

    def real(self) -> Any:
        """The command itself."""
        module = importlib.import_module(self.module, __package__)
        found = getattr(module, self.attribute)
        if not isinstance(found, typer.Typer):
            function, found = found, typer.Typer(add_completion=False)
            found.command()(function)
        return typer.main.get_command(found)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return self.real().make_context(info_name, args, parent, **extra)


class _Commands(TyperGroup):
    """All commands. A `UserError` ends as one sentence and exit code 2, without a traceback."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *_LATER]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return _Later(cmd_name) if cmd_name in _LATER else super().get_command(ctx, cmd_name)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            stderr().print("[bold red]Error:[/]", end=" ")
            say(stderr(), str(error))
            raise typer.Exit(EXIT_USER_ERROR) from error


app = typer.Typer(
    cls=_Commands,
    help="Interactive 3D medical segmentation: clicks and boxes in, masks out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point of ``main.py`` and of the installed command."""
    app(prog_name="dualclickmed")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dualclickmed {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log in detail.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=stderr(), show_path=False, show_time=verbose, show_level=verbose)],
    )
    package = __name__.partition(".")[0]
    logging.getLogger(package).setLevel(logging.DEBUG if verbose else logging.INFO)
    if not verbose:
        # The chosen precision is logged by a server, but not with every answer of the command line.
        logging.getLogger(f"{package}.experts.precision").setLevel(logging.WARNING)


def sample(
    out: Annotated[Path, typer.Option(help="Folder of the study; the true labels go to OUT-truth.")],
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives another patient.")] = 0,
    cases: Annotated[
        int,
        typer.Option(
            min=0,
            help="Write so many labelled patients for `evaluate`, `train` and `learn-curve` instead: "
            "OUT/imagesTr, OUT/labelsTr and OUT/dataset.json.",
        ),
    ] = 0,
) -> None:
    """Generate a CT of a trunk with known organs to click in."""
    from ..demo.sample import write_cases, write_sample
    from ..demo.trunk import ORGANS

    if cases:
        write_cases(out, cases, seed)
        say(Console(), f"Wrote {cases} labelled cases to {out}.")
        return
    files = write_sample(out, seed)
    say(Console(), f"Wrote {files.image} and the true labels of {len(ORGANS)} organs, {files.truth}.")


for _command in (serve, demo, sample, segment):
    app.command()(_command)
app.add_typer(commands, name="weights")

"""The command line: ``python main.py`` in the repository, ``dualclickmed`` where the package is installed.

Nothing heavy is imported before a command needs it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Column, Table
from typer.core import TyperCommand, TyperGroup

from . import __version__
from .arguments import pairs
from .errors import PromptError, UserError, WeightsError

if TYPE_CHECKING:
    from .predictor import Predictor

EXIT_USER_ERROR = 2
APP_DIR = Path(__file__).resolve().parents[1]
"""The MONAI Label app, whose ``lib`` this package is."""
STUDY_FILES = ["*.nii.gz", "*.nii", "*.nrrd", "*.mha"]
LOOPBACK = ("127.0.0.1", "localhost", "::1")

_LATER: dict[str, tuple[str, str, str]] = {
    "train": (".training.command", "train_expert", "Train an expert on labelled cases or generated ones."),
    "prepare": (".training.command", "prepare_crops", "Cut labelled cases into crops for faster training."),
    "evaluate": (".evaluation.command", "evaluate", "Measure how good the masks are on labelled cases."),
    "ablate": (".evaluation.ablation", "ablate", "Train and evaluate the paper's choices with and without."),
    "predict": (".challenge_cli", "predict", "Answer case files of the interactive challenge."),
    "queue": (".learning.command", "queue", "Show submitted labels and what waits for retraining."),
    "learn-curve": (".learning.command", "learn_curve", "Simulate an annotator and plot the clicks saved."),
    "bench": (".benchmarks.command", "bench", "Measure size, speed, memory and exactness on this machine."),
}
"""Commands with heavy modules: name to module, its ``typer.Typer`` or function, line in the overview."""


class _Later(TyperCommand):
    """Stands for such a command in the overview; the real one is imported when it is called."""

    def __init__(self, name: str) -> None:
        self.module, self.attribute, line = _LATER[name]
        super().__init__(name, help=line)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        module = importlib.import_module(self.module, __package__)
        found = getattr(module, self.attribute)
        if not isinstance(found, typer.Typer):
            function, found = found, typer.Typer(add_completion=False)
            found.command()(function)
        return typer.main.get_command(found).make_context(info_name, args, parent, **extra)


class _Commands(TyperGroup):
    """All commands. What the user can put right ends as one sentence and exit code 2, not as a traceback."""

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


class _WeightsCommands(TyperGroup):
    """The commands on weights that are defined here, and those of weights_cli.py, which imports this file."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*super().list_commands(ctx), *self._further()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, cmd_name) or self._further().get(cmd_name)

    @staticmethod
    def _further() -> dict[str, Any]:
        from .weights_cli import commands

        group: Any = typer.main.get_command(commands)
        return group.commands


weights_app = typer.Typer(
    cls=_WeightsCommands,
    help="Look at the weight files, check them, import others and choose which are served.",
    no_args_is_help=True,
)
app.add_typer(weights_app, name="weights")

ModelDir = Annotated[
    Path | None,
    typer.Option(help="Folder of weights (default: $DUALCLICKMED_MODEL_DIR, else the repository's model/)."),
]
Preset = Annotated[
    str | None,
    typer.Option(help="Which weights of that folder: compact or paper (default: what 'weights use' chose)."),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]


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
    logging.getLogger(__package__).setLevel(logging.DEBUG if verbose else logging.INFO)


@app.command()
def serve(
    studies: Annotated[
        str, typer.Option(help="Folder of NIfTI, NRRD or MHA images, or the address of a DICOMweb server.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's are open.")] = (
        LOOPBACK[0]
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    labels: Annotated[
        str | None, typer.Option(help='Label names for "dualclickmed", e.g. "liver,spleen,tumor".')
    ] = None,
    device: Device = "auto",
    model_dir: ModelDir = None,
    preset: Preset = None,
    conf: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE for the app (repeatable), as MONAI Label's --conf.")
    ] = None,
) -> None:
    """Start the MONAI Label server for OHIF, 3D Slicer and MITK."""
    from .weights import KINDS, default_path, verify

    settings = {"device": device}
    if preset is not None:
        settings["preset"] = preset
    if labels is not None:
        settings["labels"] = labels
    if model_dir is not None:
        settings["model_dir"] = str(model_dir.resolve())
    settings |= pairs("--conf", "KEY=VALUE", conf or [])
    if not studies.startswith(("http://", "https://")) and not Path(studies).is_dir():
        raise UserError(
            f"The studies folder '{studies}' does not exist; give a folder of images, or make one with "
            f"'python main.py sample --out {shlex.quote(studies)}'."
        )
    if not (APP_DIR / "main.py").is_file():
        raise UserError(
            f"'{APP_DIR}' is not the MONAI Label app; call 'python main.py serve' in the repository."
        )
    for kind in KINDS:
        verify(default_path(kind, settings.get("preset"), settings.get("model_dir")))
    _require_free(host, port)
    if host not in LOOPBACK:
        say(
            stderr(),
            f"Anyone who reaches {host}:{port} can read and change the studies: "
            "there is no log-in unless one is set up (docs/security.md).",
        )

    # Read by MONAI Label when it is imported. Scoring starts by itself otherwise, and slows the first clicks.
    os.environ.setdefault("MONAI_LABEL_AUTO_UPDATE_SCORING", "false")
    # Only volumes that the tasks can open; MONAI Label would list photographs and leave out MetaImage.
    os.environ.setdefault("MONAI_LABEL_DATASTORE_FILE_EXT", json.dumps(STUDY_FILES))
    # Tools such as itkimage2segimage lie beside the interpreter, in an environment that may not be activated.
    os.environ["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    )
    from monailabel.main import Main

    server = Main()
    arguments = server.args_parser().parse_args(["start_server"])
    arguments.app, arguments.studies = str(APP_DIR), studies
    arguments.host, arguments.port = host, port
    arguments.conf = [[key, value] for key, value in settings.items()]
    say(stderr(), f"Starting on http://{host}:{port} (OHIF: http://{host}:{port}/ohif/); Ctrl+C stops it.")
    server.action_start_server(arguments)


@app.command()
def sample(
    out: Annotated[Path, typer.Option(help="Folder of the study; the true labels go to OUT-truth.")],
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives another patient.")] = 0,
) -> None:
    """Generate a CT of a trunk with known organs to click in."""
    from .sample import ORGANS, write_sample

    files = write_sample(out, seed)
    say(Console(), f"Wrote {files.image} and the true labels of {len(ORGANS)} organs, {files.truth}.")


@app.command()
def segment(
    image: Annotated[Path, typer.Argument(help="NIfTI, NRRD, MHA, or a folder of DICOM slices.")],
    out: Annotated[Path, typer.Option(help="The mask: .nii.gz, .nii, .nrrd or .seg.nrrd.")],
    point: Annotated[list[str] | None, typer.Option(help="i,j,k of a voxel inside (repeatable).")] = None,
    background: Annotated[
        list[str] | None, typer.Option(help="i,j,k of a voxel outside (repeatable).")
    ] = None,
    box: Annotated[
        str | None, typer.Option(help="i0,i1,j0,j1,k0,k1 around the object: voxels i0 to i1 - 1, and so on.")
    ] = None,
    strategy: Annotated[
        str, typer.Option(help="paper (points: local expert, box: global expert), global or local.")
    ] = "paper",
    window: Annotated[
        str, typer.Option(help="CT window: auto, soft tissue, lung, brain, bone or none.")
    ] = "auto",
    modality: Annotated[
        str | None, typer.Option(help="ct, mr, pt, us or microscopy (default: guessed from the file).")
    ] = None,
    name: Annotated[
        str, typer.Option(help="What the object is called in the mask and the picture.")
    ] = "object",
    picture: Annotated[
        Path | None, typer.Option(help="Also draw three slices with contours, as .png.")
    ] = None,
    device: Device = "auto",
    model_dir: ModelDir = None,
    preset: Preset = None,
) -> None:
    """Segment one object from clicks, a box, or both.

    Voxels are counted from 0 in the order of the file: i along its rows, j along its columns, k through its
    slices.
    """
    from .configs.labels import colour_of
    from .configs.options import resolved_device
    from .infers.results import EXTENSIONS, Mask, Segment, write
    from .predictor import Predictor
    from .volume import load_volume
    from .weights import default_path

    points = [_whole_numbers("--point", text, 3) for text in point or []]
    outside = [_whole_numbers("--background", text, 3) for text in background or []]
    edges = None if box is None else _whole_numbers("--box", box, 6)
    if edges is not None:
        edges = [edge for at in (0, 2, 4) for edge in sorted(edges[at : at + 2])]
    ending = max((end for end in EXTENSIONS if out.name.lower().endswith(end)), key=len, default=None)
    if ending is None:
        raise UserError(f"The mask can be written as {', '.join(EXTENSIONS)}, but --out is '{out}'.")
    if picture is not None and picture.suffix.lower() != ".png":
        raise UserError(f"The picture is written as .png, but --picture is '{picture}'.")

    device_name = resolved_device(device)

    volume = load_volume(image, modality)
    predictor = Predictor.from_weights(
        default_path("global", preset, model_dir), default_path("local", preset, model_dir), device_name
    )
    predictor.set_image(volume)
    start = time.perf_counter()
    mask = predictor.predict(points, outside, edges, strategy=strategy, intensity=window)
    seconds = time.perf_counter() - start

    shown = Segment(name, 1, colour_of(name))
    written = write(Mask(mask.astype("uint8"), volume.affine, [shown]), ending, compress=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Copied, not moved: a temporary file can be read by its owner only.
    shutil.copyfile(written, out)
    written.unlink()
    voxels = int(mask.sum())
    millilitres = voxels * float(abs(_determinant(volume.affine))) / 1000
    result = predictor.result
    assert result is not None
    expert = next(iter(result.strategies.values()))
    summary = f"{name}: {millilitres:.1f} ml, {voxels} voxels, {expert} expert, {seconds:.2f} s"
    say(Console(), f"{summary} -> {out}")
    if picture is not None:
        _draw(predictor, picture, shown, points, outside, edges, f"{image.name}: {summary}", window)
        say(Console(), f"Picture -> {picture}")


@weights_app.command("list")
def list_weights_command(model_dir: ModelDir = None) -> None:
    """Show every weight file, what it is, and whether it can be used; * marks those that are served."""
    from .weights import KINDS, default_path, list_weights
    from .weights import model_dir as folder_of

    entries = list_weights(model_dir)
    served = {default_path(kind, directory=model_dir) for kind in KINDS}
    table = Table("", Column("file", overflow="fold"), "expert", "preset", "MB", "steps", "created", "state")
    for entry in entries:
        card = entry.card or {}
        table.add_row(
            "*" if entry.path in served else "",
            entry.path.name,
            *(str(card.get(key, "")) for key in ("kind", "preset")),
            f"{entry.nbytes / 1e6:.1f}",
            str(card.get("steps") or ""),
            str(card.get("created") or "")[:10],
            "ok" if entry.problem is None else "unusable",
        )
    Console().print(table if entries else f"No weights in '{folder_of(model_dir)}'.")
    for entry in entries:
        if entry.problem is not None:
            say(stderr(), entry.problem)


@weights_app.command("verify")
def verify_command(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Weight files (default: all of the folder).")
    ] = None,
    model_dir: ModelDir = None,
) -> None:
    """Check weight files against their cards: hash, names and shapes. Exit code 2 if one can't be used."""
    from .weights import list_weights, verify
    from .weights import model_dir as folder_of

    paths = files or [entry.path for entry in list_weights(model_dir)]
    if not paths:
        raise WeightsError(f"There are no weights to check in '{folder_of(model_dir)}'.")
    problems = 0
    for path in paths:
        try:
            card = verify(path)
        except WeightsError as error:
            problems += 1
            say(stderr(), str(error))
        else:
            say(Console(), f"{path}: ok ({card['kind']}, {card['preset']}, SHA-256 {card['sha256'][:12]}...)")
    if problems:
        raise WeightsError(f"{problems} of {len(paths)} weight files can't be used.")


def _draw(
    predictor: Predictor,
    path: Path,
    segment: Any,
    points: Sequence[Sequence[int]],
    outside: Sequence[Sequence[int]],
    edges: Sequence[int] | None,
    caption: str,
    window: str,
) -> None:
    from .picture import save_picture
    from .prompts import Click, Prompts

    volume, result = predictor.volume, predictor.result
    assert result is not None
    clicks = [
        Click((int(z), int(y), int(x)), positive)
        for positive, group in ((True, points), (False, outside))
        if group
        for z, y, x in volume.to_canonical(group)
    ]
    box = None if edges is None else volume.box_to_canonical(edges[::2], edges[1::2])
    save_picture(
        path, volume, result.labels, [segment], [Prompts(tuple(clicks), box)], caption, intensity=window
    )


def _whole_numbers(option: str, text: str, count: int) -> list[int]:
    parts = text.replace(",", " ").split()
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise PromptError(
            f"{option} takes {count} whole numbers with commas between them, but '{text}' came."
        )
    return numbers


def _require_free(host: str, port: int) -> None:
    """The server would notice a port in use only after it has loaded everything."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            if os.name == "posix":
                # As the server does: a port that was closed a moment ago is free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UserError(
            f"{host}:{port} can't be listened on ({error.strerror}); choose another with --host and --port."
        ) from error


def _determinant(affine: Any) -> float:
    import numpy as np

    return float(np.linalg.det(affine[:3, :3]))


def stderr() -> Console:
    return Console(stderr=True)


def say(console: Console, text: str) -> None:
    """A sentence as it is: no markup, no coloured numbers, no line breaks that a script would trip over."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)

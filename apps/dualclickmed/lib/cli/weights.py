"""The commands on weights, from ``weights list`` to ``weights probe``; `app` mounts them.

As there, nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Column, Table

from ..errors import UserError, WeightsError
from .console import ModelDir, say, stderr

if TYPE_CHECKING:
    from ..weights.convert import Conversion
    from ..weights.download import Entry

SHOWN_CHANGES = 4

commands = typer.Typer(
    help="Look at the weight files, check them, import others and choose which are served.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(help="Name of weights in the folder, or a .safetensors file.")]
DropPatchEmbedding = Annotated[
    bool,
    typer.Option(
        "--drop-patch-embedding",
        help="Of SAM-Med3D: draw the patch embedding anew, as the paper's authors do, not resample it.",
    ),
]
Replace = Annotated[bool, typer.Option("--replace", help="Overwrite weights of that name.")]


@commands.command("list")
def list_weights_command(model_dir: ModelDir = None) -> None:
    """Show every weight file, what it is, and whether it can be used; * marks those that are served."""
    from ..weights.cards import KINDS, default_path, list_cards
    from ..weights.cards import model_dir as folder_of

    entries = list_cards(model_dir)
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


@commands.command("verify")
def verify_command(
    files: Annotated[
        list[Path] | None, typer.Argument(help="Weight files (default: all of the folder).")
    ] = None,
    model_dir: ModelDir = None,
) -> None:
    """Check weight files against their cards: hash, names and shapes. Exit code 2 if one can't be used."""
    from ..weights.files import list_weights, verify
    from ..weights.files import model_dir as folder_of

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


@commands.command("import")
def import_command(
    file: Annotated[Path, typer.Argument(help="Checkpoint: .pth, .pt or .safetensors.")],
    expert: Annotated[str, typer.Option("--as", help="What it is for: global or local.")],
    name: Annotated[
        str | None, typer.Option(help="What to call it (default: global-paper or local-paper).")
    ] = None,
    drop_patch_embedding: DropPatchEmbedding = False,
    half: Annotated[
        bool, typer.Option("--half", help="Store float16: half the size, no longer the published outputs.")
    ] = False,
    replace: Replace = False,
    model_dir: ModelDir = None,
) -> None:
    """Convert a published checkpoint: SAM-Med3D or its 64-voxel variant (global), VISTA3D (local).

    Only tensors are read from it. A file that holds anything else is refused and nothing in it is executed.
    """
    from ..weights.convert import import_checkpoint

    path, conversion = import_checkpoint(
        file, _kind(expert), name, model_dir, drop_patch_embedding, half, replace
    )
    _report(path, conversion)


@commands.command("use")
def use_command(
    name: Annotated[
        str | None, typer.Argument(help="Name of weights in the folder; they say which expert they are for.")
    ] = None,
    default: Annotated[
        bool, typer.Option("--default", help="Go back to the shipped weights for both experts.")
    ] = False,
    model_dir: ModelDir = None,
) -> None:
    """Choose which weights an expert is served from; a running server takes them at its next request.

    A server that was started with --preset keeps to that preset.
    """
    from ..weights.files import select

    if (name is None) is not default:
        raise UserError("Give the name of weights to serve, or --default for the shipped ones.")
    served = select(name, model_dir)
    say(Console(), "Served now: " + ", ".join(f"{kind} expert from {file}" for kind, file in served.items()))


@commands.command("back")
def back_command(
    expert: Annotated[str, typer.Argument(help="Which expert: global or local.")],
    model_dir: ModelDir = None,
) -> None:
    """Roll back: serve an expert from the weights that those it is served from now were trained from.

    Nothing is removed: 'weights use' chooses any version again. A running server follows at its next request.
    """
    from ..weights.lineage import roll_back

    before, after = roll_back(_kind(expert, "The expert is"), model_dir)
    say(Console(), f"The {expert} expert was served from {before} and is served from {after} now.")


@commands.command("export")
def export_command(
    name: Name,
    to: Annotated[Path, typer.Option(help="A new file: .pth, .pt or .safetensors.")],
    model_dir: ModelDir = None,
) -> None:
    """Write weights of the preset paper as a checkpoint with the published names, in float32."""
    from ..weights.convert import export_expert
    from ..weights.files import named_path

    say(Console(), f"Wrote {export_expert(named_path(name, model_dir), to)}")


@commands.command("average")
def average_command(
    names: Annotated[
        list[str], typer.Argument(help="Two or more names of weights in the folder, or .safetensors files.")
    ],
    out: Annotated[Path, typer.Option(help="A new file: .safetensors.")],
    model_dir: ModelDir = None,
) -> None:
    """Write the mean of the parameters of weights that were trained from the same first ones."""
    from ..weights.average import average
    from ..weights.files import named_path

    folder = [] if model_dir is None else ["--model-dir", str(model_dir)]
    command = shlex.join(["python", "main.py", "weights", "average", *names, "--out", str(out), *folder])
    average([named_path(name, model_dir) for name in names], out, command)
    count = len(names)
    say(Console(), f"Wrote {out} and its card: the mean of {count} files. Nothing is measured on it yet.")


@commands.command("grow")
def grow_command(
    name: Name,
    out: Annotated[Path, typer.Option(help="A new file: .safetensors.")],
    channels: Annotated[
        str | None,
        typer.Option(help="Channels of each level, such as 64,128,192 (default: as many as before)."),
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(help="Residual blocks of each level, such as 1,2,2 (default: as many as before)."),
    ] = None,
    walks: Annotated[bool, typer.Option("--walks", help="Let the network see random walks, too.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the new weights.")] = 0,
    model_dir: ModelDir = None,
) -> None:
    """Write a larger U-Net, or one that sees more, that answers as these weights do, to train it further."""
    from ..weights.files import named_path
    from ..weights.grow import grow

    folder = [] if model_dir is None else ["--model-dir", str(model_dir)]
    given = {"--channels": channels, "--blocks": blocks}
    sizes = [part for option, text in given.items() if text is not None for part in (option, text)]
    asked = [*sizes, *(["--walks"] if walks else []), "--seed", str(seed), *folder]
    command = shlex.join(["python", "main.py", "weights", "grow", name, "--out", str(out), *asked])
    grow(
        named_path(name, model_dir),
        out,
        None if channels is None else _numbers("--channels", channels),
        None if blocks is None else _numbers("--blocks", blocks),
        command,
        seed,
        walks,
    )
    say(Console(), f"Wrote {out} and its card. It answers as '{name}' does until it is trained further.")


@commands.command("download")
def download_command(
    name: Annotated[
        str | None, typer.Argument(help="What to download (default: list what there is).")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Accept the licence that is shown.")] = False,
    accept_unverified: Annotated[
        bool, typer.Option("--accept-unverified", help="Import a file of which no hash is known.")
    ] = False,
    drop_patch_embedding: DropPatchEmbedding = False,
    replace: Replace = False,
    model_dir: ModelDir = None,
) -> None:
    """Fetch a published checkpoint and import it; a run that was cut is continued by the next one."""
    from ..weights.download import download, entry_named, manifest

    if name is None:
        table = Table("name", "expert", Column("what it is, and its licence", overflow="fold"))
        for known in manifest().values():
            told = f"{known.title}.\nLicence: {known.licence}.\nChecked by: {_checked_by(known)}."
            table.add_row(known.name, known.kind, told, end_section=True)
        Console().print(table)
        say(Console(), "Fetch one with: dualclickmed weights download NAME")
        return
    entry = entry_named(name)
    size = "unknown" if entry.size is None else f"{entry.size / 1e6:.0f} MB"
    for line in (
        f"{entry.title}",
        f"From: {entry.url} (see {entry.source})",
        f"Size: {size}; checked by: {_checked_by(entry)}",
        f"Licence: {entry.licence}: {entry.licence_url}",
    ):
        say(stderr(), line)
    if not yes:
        if not sys.stdin.isatty():
            raise WeightsError("Nothing was downloaded: read the licence and pass --yes to accept it.")
        typer.confirm("Accept the licence and download?", abort=True, err=True)

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr(), transient=True) as progress:
        task = progress.add_task(entry.name, total=None)
        path, conversion, digest = download(
            entry,
            model_dir,
            accept_unverified,
            replace,
            lambda done, total: progress.update(task, completed=done, total=total),
            drop_patch_embedding,
        )
    state = "as its publisher states" if entry.verified else "unverified: note it and compare"
    say(Console(), f"Fetched; SHA-256 {digest} ({_checked_by(entry)} {state})")
    _report(path, conversion)


@commands.command("probe")
def probe_command(
    name: Name,
    source: Annotated[Path, typer.Option("--input", help=".npz with image, points, labels (and mask).")],
    to: Annotated[Path, typer.Option("--output", help=".npz for what the network gives.")],
    model_dir: ModelDir = None,
) -> None:
    """Run a network once on arrays as they are, to compare it with another implementation.

    No preprocessing, no postprocessing, float32. Global: image (1, 1, 64, 64, 64) as the encoder takes it,
    points (1, N, 3), labels (1, N), optionally mask (1, 1, 32, 32, 32) logits, gives embedding
    (1, 384, 8, 8, 8) and logits (1, 1, 32, 32, 32). Local: image (1, 1, 128, 128, 128), points, labels, gives
    logits of the image's shape.

    Points are as the published networks take them: voxels of that image in the order of its axes, whole
    numbers at voxel centres (the networks add 0.5 themselves). Labels are 1 inside and 0 outside.
    """
    from ..weights.files import named_path
    from ..weights.probe import probe_file

    start = time.perf_counter()
    answers = probe_file(named_path(name, model_dir), source, to)
    shapes = ", ".join(f"{key} {value.shape}" for key, value in answers.items())
    say(Console(), f"Wrote {to}: {shapes}; {time.perf_counter() - start:.1f} s")


def _kind(expert: str, place: str = "--as takes") -> Any:
    from ..weights.files import KINDS

    if expert not in KINDS:
        raise UserError(f"{place} {' or '.join(KINDS)}, but '{expert}' came.")
    return expert


def _numbers(option: str, text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f"{option} takes whole numbers above 0, such as 64,128,192, but '{text}' came.")
    return [int(part) for part in parts]


def _checked_by(entry: Entry) -> str:
    return "SHA-256" if entry.sha256 else "MD5" if entry.md5 else "nothing (unverified)"


def _report(path: Path, conversion: Conversion) -> None:
    say(Console(), f"Recognised: {conversion.format}. Wrote {path} and its card.")
    for title in ("converted", "dropped", "initialised"):
        names = getattr(conversion, title)
        if names:
            rest = len(names) - SHOWN_CHANGES
            more = f" and {rest} more (all in the card)" if rest > 0 else ""
            say(Console(), f"  {title}: {', '.join(names[:SHOWN_CHANGES])}{more}")
    say(Console(), f"Serve it with: python main.py weights use {shlex.quote(path.stem)}")

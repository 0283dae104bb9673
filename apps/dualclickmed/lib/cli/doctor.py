"""`doctor` of the command line: versions, the device and weights that would be used, and problems."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .. import __version__
from ..errors import UserError
from ..weights.cards import KINDS, check_card, default_path, list_cards, model_dir
from .console import ModelDir, say, stderr

PACKAGES = ("torch", "monai", "monailabel", "numpy", "scipy", "SimpleITK", "nibabel", "pydicom", "pynrrd")
LEAST_MEMORY, LEAST_DISK = 4.0, 1.0
"""GB free below which it warns: for a large volume with its embeddings, and for labels with their record."""


def doctor(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port that the server would use.")] = 8000,
    model_dir: ModelDir = None,
) -> None:
    """Show versions, device, precision, weights with their hashes, the port, free memory and disk.

    Exit code 2 if something is wrong.
    """
    problems: list[str] = []
    table = Table(show_header=False, box=None)
    for name, value in (
        ("dualclickmed", __version__),
        ("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
        *((name, _version(name, problems)) for name in PACKAGES),
        ("device", _device(problems)),
        *_weights(model_dir, problems),
        (f"port {port}", _port(port, problems)),
        ("memory free", _memory(problems)),
        ("disk free", _disk(problems)),
    ):
        table.add_row(name, value)
    Console().print(table)
    for problem in problems:
        say(stderr(), f"- {problem}")
    if problems:
        raise UserError(f"{len(problems)} thing{'s' if len(problems) > 1 else ''} to put right, see above.")
    say(Console(), "Nothing is wrong.")


def _version(name: str, problems: list[str]) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        extra = "[server]" if name == "monailabel" else ""
        problems.append(f"{name} is not installed: pip install 'dualclickmed{extra}'.")
        return "missing"


def _device(problems: list[str]) -> str:
    if importlib.util.find_spec("torch") is None:
        return "unknown"
    # Takes seconds, and is what this command is for.
    import torch

    from ..experts.precision import processor_has_bfloat16

    if torch.cuda.is_available():
        name, free = torch.cuda.get_device_name(), torch.cuda.mem_get_info()[0] / 1e9
        return f"cuda: {name}, {free:.1f} GB free, computes in half precision"
    precision = "bfloat16 where it is quicker" if processor_has_bfloat16() else "float32"
    if shutil.which("nvidia-smi") is not None:
        problems.append(
            f"This machine has an NVIDIA driver, but PyTorch {torch.__version__} sees no GPU: "
            "install a build for CUDA."
        )
    return f"processor, {torch.get_num_threads()} threads, {precision}"


def _weights(directory: object, problems: list[str]) -> list[tuple[str, str]]:
    folder = None if directory is None else str(directory)
    rows = [("weights", str(model_dir(folder)))]
    try:
        served = {default_path(kind, directory=folder) for kind in KINDS}
        for entry in list_cards(folder):
            mark = " (served)" if entry.path in served else ""
            hashed = "unusable" if entry.card is None else f"SHA-256 {entry.card['sha256'][:12]}"
            rows.append((f"  {entry.path.stem}", f"{entry.nbytes / 1e6:.1f} MB, {hashed}{mark}"))
            if entry.problem is not None:
                problems.append(entry.problem)
        for path in sorted(served):
            if not path.exists():
                check_card(path)
    except UserError as error:
        problems.append(str(error))
    return rows


def _port(port: int, problems: list[str]) -> str:
    with socket.socket() as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            problems.append(f"Port {port} can't be used ({error.strerror}): serve with another --port.")
            return "taken"
    return "free"


def _memory(problems: list[str]) -> str:
    import psutil

    free = psutil.virtual_memory().available / 1e9
    if free < LEAST_MEMORY:
        problems.append(f"{free:.1f} GB of memory are free; large volumes need {LEAST_MEMORY:g}.")
    return f"{free:.1f} GB"


def _disk(problems: list[str]) -> str:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    if free < LEAST_DISK:
        problems.append(f"{free:.1f} GB of this disk are free; labels and their record need {LEAST_DISK:g}.")
    return f"{free:.1f} GB in {Path.cwd()} ({sys.prefix} holds the packages)"

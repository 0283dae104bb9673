"""`serve` of the command line."""

from __future__ import annotations

import importlib.util
import os
import shlex
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UserError
from .console import Device, ModelDir, Preset, pairs, say, stderr

ADDRESS_VARIABLE = "DUALCLICKMED_ADDRESS"
"""Environment variable with the address of the server, for the app."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    studies: Annotated[
        str, typer.Option(help="Folder of NIfTI, NRRD or MHA images, or the address of a DICOMweb server.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's are open.")] = (
        LOOPBACK[0]
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    labels: Annotated[
        str | None,
        typer.Option(
            help='Label names for "dualclickmed", e.g. "liver,spleen,tumor" (default: common organs).'
        ),
    ] = None,
    device: Device = "auto",
    strategy: Annotated[
        str | None,
        typer.Option(help="How clicks become a mask: fused, paper, global or local (default: fused)."),
    ] = None,
    model_dir: ModelDir = None,
    preset: Preset = None,
    conf: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE for the app, as MONAI Label's --conf (repeatable; default: none)."),
    ] = None,
) -> None:
    """Start the server: a page to click in, and MONAI Label for OHIF, 3D Slicer and MITK."""
    from ..weights.cards import KINDS, check_card, default_path

    settings = {"device": device}
    if strategy is not None:
        settings["strategy"] = strategy
    if preset is not None:
        settings["preset"] = preset
    if labels is not None:
        settings["labels"] = labels
    if model_dir is not None:
        settings["model_dir"] = str(model_dir.resolve())
    settings |= pairs("--conf", "KEY=VALUE", conf or [])
    if Path(studies).is_file():
        raise UserError(
            f"'{studies}' is a file; --studies takes the folder that holds the images: "
            f"'{Path(studies).parent}'."
        )
    if not studies.startswith(("http://", "https://")) and not Path(studies).is_dir():
        raise UserError(
            f"The studies folder '{studies}' does not exist; give a folder of images, or make one with "
            f"'python main.py sample --out {shlex.quote(studies)}'."
        )
    # A server for review needs no networks.
    for kind in KINDS if settings.get("review") != "true" else ():
        check_card(default_path(kind, settings.get("preset"), settings.get("model_dir")))
    _require_free(host, port)
    if host not in LOOPBACK:
        say(
            stderr(),
            f"Anyone who reaches {host}:{port} can read and change the studies: "
            "there is no log-in unless one is set up (docs/security.md).",
        )

    # Read by MONAI Label when it is imported. Scoring starts by itself otherwise, and slows the first clicks.
    os.environ.setdefault("MONAI_LABEL_AUTO_UPDATE_SCORING", "false")
    # Tools such as itkimage2segimage lie beside the interpreter, in an environment that may not be activated.
    os.environ["PATH"] = os.pathsep.join(
        [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    )
    # The app logs the address again once it is warmed up.
    os.environ[ADDRESS_VARIABLE] = f"http://{host}:{port}"
    _require_server()
    from ..server.starting import app_folder, import_monai, import_web, name_log_lines
    from ..viewers.options import NNINTERACTIVE_PORT

    settings.setdefault("nninteractive", str(NNINTERACTIVE_PORT))
    import_monai()
    import_web()
    name_log_lines()
    from monailabel.main import Main

    server = Main()
    arguments = server.args_parser().parse_args(["start_server"])
    arguments.app, arguments.studies = str(app_folder()), studies
    arguments.host, arguments.port = host, port
    arguments.conf = [[key, value] for key, value in settings.items()]
    # OHIF shows what an archive holds, the page everything.
    ohif = f" (OHIF: http://{host}:{port}/ohif/)" if studies.startswith(("http://", "https://")) else ""
    say(stderr(), f"Open http://{host}:{port} in a browser{ohif}; ready in half a minute. Ctrl+C stops it.")
    server.action_start_server(arguments)


def _require_server() -> None:
    """MONAI Label is left out of a bare installation of the package."""
    if importlib.util.find_spec("monailabel") is None:
        raise UserError(
            "The server needs MONAI Label, which is not installed; install the package with its extra: "
            "pip install 'dualclickmed[server]'."
        )


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

"""`demo` of the command line."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from .console import Device, say, stderr
from .serve import LOOPBACK, serve

TITLE = "Trunk CT (generated)"


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the archive; what is stored in it stays.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the server.")] = 8000,
    archive_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the archive.")] = 8042,
    device: Device = "auto",
) -> None:
    """Start an archive with a generated DICOM study and the server for it, so that OHIF shows something."""
    from ..demo.archive import orthanc
    from ..demo.dicoms import write_series
    from ..demo.sample import make_trunk
    from ..demo.trunk import SPACING

    with orthanc(out, archive_port) as archive:
        if not archive.studies():
            say(stderr(), "Generating a study of a trunk for the archive")
            with tempfile.TemporaryDirectory(prefix="dualclickmed-") as folder:
                series = Path(folder) / "series"
                write_series(series, make_trunk()[0], SPACING[::-1], description=TITLE)
                archive.add(series)
        address = f"http://{LOOPBACK[0]}:{port}"
        for study in archive.studies():
            say(stderr(), f"The study in OHIF: {address}/ohif/monai-label?StudyInstanceUIDs={study}")
        serve(archive.dicomweb, host=LOOPBACK[0], port=port, device=device)

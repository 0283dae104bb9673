"""One real server for all tests of this folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .live import APP, LABELS, Server, free_port, make_studies, make_weights, running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`monailabel start_server` as a user would call it in the activated environment."""
    folder = tmp_path_factory.mktemp("server")
    make_weights(folder / "weights")
    make_studies(folder / "studies")
    port = free_port()
    names = ("studies", "weights", "temporary", "log.txt")
    started = Server(f"http://127.0.0.1:{port}", *(folder / name for name in names))
    started.temporary.mkdir()
    environment = os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "DUALCLICKMED_MODEL_DIR": str(started.weights),
        "TMPDIR": str(started.temporary),
        "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
    }
    command = ["monailabel", "start_server", "--app", str(APP), "--studies", str(started.studies)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--conf", "labels", ",".join(LABELS)]
    with running(command, started, environment):
        yield started

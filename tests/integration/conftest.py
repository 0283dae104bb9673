"""One real server for all tests of this folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .live import APP, LABELS, Server, free_port, make_studies, make_weights, stop, wait_until_up


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
    with started.log.open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, cwd=folder, start_new_session=True
        )
        try:
            wait_until_up(started, process)
            yield started
        finally:
            stop(process)

"""`doctor` says what there is, and fails on what is wrong."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import re
import shutil
import socket
from pathlib import Path

import pytest
from dualclickmed import __version__
from dualclickmed.cli.app import app
from dualclickmed.cli.doctor import PACKAGES
from dualclickmed.weights.cards import default_path
from typer.testing import CliRunner


def test_versions_weights_and_ports_are_shown() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        free = other.getsockname()[1]
    result = CliRunner().invoke(app, ["doctor", "--port", str(free)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    rows = {line[:18].strip(): line[18:].strip() for line in result.output.splitlines()}
    assert rows["dualclickmed"] == __version__ and rows["Python"].startswith(platform.python_version())
    for name in PACKAGES:
        assert rows[name] == importlib.metadata.version(name)
    # Which device, and in which precision it computes.
    assert re.match(
        r"processor, \d+ threads, (bfloat16 where it is quicker|float32)|cuda: .*", rows["device"]
    )
    for kind in ("global", "local"):
        path = default_path(kind)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert rows[path.stem].endswith(f"SHA-256 {digest[:12]} (served)")
    assert rows[f"port {free}"] == "free"
    assert re.match(r"\d+\.\d GB", rows["memory free"]) and re.match(r"\d+\.\d GB in ", rows["disk free"])
    assert "Nothing is wrong" in result.output


def test_a_taken_port_and_damaged_weights_are_named(tmp_path: Path) -> None:
    for kind in ("global", "local"):
        path = default_path(kind)
        for file in (path, path.with_suffix(".json")):
            shutil.copy(file, tmp_path)
    damaged = tmp_path / "local-compact.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        arguments = ["doctor", "--port", str(taken), "--model-dir", str(tmp_path)]
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert f"Port {taken} can't be used" in result.output and "SHA-256" in result.output
    assert "2 things to put right" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["weights", "list"],
        ["serve", "--studies", "/nowhere"],
        ["segment", "/nowhere.nii.gz", "--point", "1,2,3", "--out", "x.nrrd"],
        ["evaluate", "--cases", "/nowhere"],
        ["evaluate", "--help"],
        ["predict", "--input", "/nowhere", "--output", "x"],
        ["train", "global", "--data", "/nowhere"],
        ["prepare", "--data", "/nowhere", "--out", "x"],
        ["queue", "--studies", "/nowhere"],
        ["bench", "--out", "/nowhere/x.json"],
    ],
)
def test_quick_calls_load_no_torch(arguments: list[str], tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys\n"
        "from dualclickmed.cli.app import app\n"
        f"try: app({arguments!r}, standalone_mode=False)\n"
        "except BaseException as error: pass\n"
        "print([name for name in ('torch', 'monai', 'monailabel', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr

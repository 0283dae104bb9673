"""The constraints resolve to wheels on every Python that is promised; no interpreter of it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.scripts import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_constraints_resolve_as_wheels(version: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed"]
    command += ["--only-binary=:all:", "--python-version", version, "--target", str(tmp_path)]
    command += ["--constraint", "constraints.txt"]
    for file in ("requirements.txt", "requirements-dev.txt", "requirements-browser.txt"):
        command += ["--requirement", file]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

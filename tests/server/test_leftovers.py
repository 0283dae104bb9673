"""What killed servers leave, and who may read what is uploaded."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from dualclickmed.server.leftovers import PREFIX, clear_half_written, private_temporary_folder


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_temporary_files_are_for_the_servers_user_alone(base: Path) -> None:
    folder = private_temporary_folder()
    assert folder.parent == base
    assert folder.stat().st_mode & 0o777 == 0o700
    assert Path(tempfile.gettempdir()) == folder


def test_folders_of_killed_servers_go_and_those_of_living_ones_stay(base: Path) -> None:
    code = (
        "import sys, tempfile, time; tempfile.tempdir = sys.argv[1];"
        "from dualclickmed.server.leftovers import private_temporary_folder as make;"
        "print(make(), flush=True); time.sleep(600)"
    )
    others = [
        subprocess.Popen([sys.executable, "-c", code, str(base)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    folders = []
    for other in others:
        assert other.stdout is not None
        folders.append(Path(other.stdout.readline().strip()))
    others[0].kill()
    others[0].wait()
    own = private_temporary_folder()
    assert sorted(base.glob(f"{PREFIX}*")) == sorted([folders[1], own])
    others[1].kill()
    others[1].wait()


def test_files_that_were_never_finished_go(tmp_path: Path) -> None:
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    parent = os.getppid()
    names = {
        f".dead.safetensors.{finished.pid}.tmp": False,
        f".mine.json.{os.getpid()}.tmp": False,
        f".living.json.{parent}.tmp": True,
        ".other.tmp": True,
        "weights.safetensors": True,
    }
    for name in names:
        (tmp_path / name).touch()
    old = tmp_path / f".old.json.{parent}.tmp"
    old.touch()
    os.utime(old, (0, 0))
    clear_half_written(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name for name, stays in names.items() if stays}


def test_a_folder_that_is_not_there_has_nothing_to_clear(tmp_path: Path) -> None:
    clear_half_written(tmp_path / "none")

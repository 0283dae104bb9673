"""What killed servers leave, and who may read what is uploaded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
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


CODE = (
    "import os, sys, tempfile, time; tempfile.tempdir = sys.argv[1];"
    "from dualclickmed.server.leftovers import private_temporary_folder as make;"
    "print(make(), flush=True); "
)


@pytest.fixture
def servers(base: Path) -> Iterator[Callable[[str], tuple[subprocess.Popen[str], Path]]]:
    """Starts a process with a folder, which goes on with the given code; gives both."""
    begun = []

    def start(code: str) -> tuple[subprocess.Popen[str], Path]:
        process = subprocess.Popen(
            [sys.executable, "-c", CODE + code, str(base)], stdout=subprocess.PIPE, text=True
        )
        begun.append(process)
        assert process.stdout is not None
        return process, Path(process.stdout.readline().strip())

    yield start
    for process in begun:
        process.kill()
        process.wait()


def gone(folder: Path) -> bool:
    deadline = time.monotonic() + 30
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not folder.exists()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_takes_the_folder_too(
    servers: Callable[[str], tuple[subprocess.Popen[str], Path]], end: signal.Signals
) -> None:
    process, folder = servers("time.sleep(600)")
    (folder / "upload").write_bytes(b"private")
    process.send_signal(end)
    process.wait()
    assert gone(folder)


def test_what_a_server_still_writes_at_its_end_goes(
    servers: Callable[[str], tuple[subprocess.Popen[str], Path]],
) -> None:
    code = (
        "import threading\n"
        "def write():\n"
        "    for n in range(10**9): open(f'{tempfile.tempdir}/{n % 50}', 'w')\n"
        "threading.Thread(target=write, daemon=True).start()\n"
        "time.sleep(0.5)"
    )
    process, folder = servers(code)
    process.wait()
    assert gone(folder)


def test_folders_of_killed_servers_go_and_those_of_living_ones_stay(
    base: Path, servers: Callable[[str], tuple[subprocess.Popen[str], Path]]
) -> None:
    _, living = servers("time.sleep(600)")
    killed = base / f"{PREFIX}with-its-remover"
    killed.mkdir()
    (killed / ".lock").touch()
    own = private_temporary_folder()
    assert sorted(base.glob(f"{PREFIX}*")) == sorted([living, own])


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

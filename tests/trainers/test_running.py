"""MONAI Label's background processes end with the server, and cancelling a training is noted."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dualclickmed.learning import lifeline
from dualclickmed.learning.record import STARTED, STOPPED, Record
from dualclickmed.learning.runs import CANCELLED, ProgressWriter, new_run, progress_of
from dualclickmed.trainers import running
from monailabel.utils.async_tasks import task as tasks
from monailabel.utils.async_tasks import utils


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])


@pytest.fixture
def background(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """MONAI Label's own books, with a training that runs."""
    process = sleeper()
    monkeypatch.setattr(utils, "background_processes", {"train": {"1": process}})
    monkeypatch.setattr(utils, "background_tasks", {"train": [{"id": "1", "status": "RUNNING"}]})
    monkeypatch.setattr(utils, "background_executors", {})
    monkeypatch.setattr(tasks, "stop_background_task", utils.stop_background_task)
    monkeypatch.setenv(lifeline.SERVER, "")
    return {"process": process}


def test_a_cancelled_training_is_noted_before_the_answer(tmp_path: Path, background: dict[str, Any]) -> None:
    record = Record(tmp_path)
    run = new_run(record.folder, "local")
    record.training(run.name, "local", STARTED, ["v"])
    ProgressWriter(run, "local").say("training")
    running.serve_processes(record)
    assert os.environ[lifeline.SERVER] == str(os.getpid())
    stopped = tasks.stop_background_task("train")
    assert stopped["status"] == "STOPPED"
    assert background["process"].wait(10) < 0
    assert progress_of(record.folder)["state"] == CANCELLED
    (training,) = record.trainings()
    assert (training.state, training.detail["reason"]) == (STOPPED, CANCELLED)
    # Nothing runs any more, and nothing is noted twice.
    assert tasks.stop_background_task("train") is None
    assert len(record.trainings()) == 1


def test_the_end_of_the_event_loop_ends_them(tmp_path: Path, background: dict[str, Any]) -> None:
    async def serve() -> None:
        running.serve_processes(Record(tmp_path))
        await asyncio.sleep(0.05)

    asyncio.run(serve())
    assert background["process"].wait(10) < 0

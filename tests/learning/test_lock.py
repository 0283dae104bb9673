"""Who trains: one at a time, by name, and nobody once that process is gone."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from dualclickmed.errors import UserError
from dualclickmed.learning.lock import HOLDER, LOCK, Holder, holder, training_lock
from filelock import FileLock

FORK = multiprocessing.get_context("fork")


def hold(folder: Path, held: Event) -> None:
    """In a process of its own: train for ever."""
    with training_lock(folder, "for ever"):
        held.set()
        time.sleep(600)


@pytest.fixture
def elsewhere(tmp_path: Path) -> multiprocessing.process.BaseProcess:
    """A process that holds the lock."""
    held = FORK.Event()
    process = FORK.Process(target=hold, args=(tmp_path, held), daemon=True)
    process.start()
    assert held.wait(30)
    return process


def test_the_holder_is_named_and_a_kill_lets_go(
    tmp_path: Path, elsewhere: multiprocessing.process.BaseProcess
) -> None:
    found = holder(tmp_path)
    assert found is not None
    assert (found.pid, found.run, found.gone) == (elsewhere.pid, "for ever", False)
    with (
        pytest.raises(UserError, match=f"running already .process {elsewhere.pid} on .*for ever"),
        training_lock(tmp_path, "second", wait=0),
    ):
        raise AssertionError("two at once")
    assert elsewhere.pid is not None
    os.kill(elsewhere.pid, signal.SIGKILL)
    elsewhere.join()
    assert holder(tmp_path) is None
    with training_lock(tmp_path, "second", wait=0):
        assert holder(tmp_path) is not None
    assert holder(tmp_path) is None
    assert not (tmp_path / HOLDER).exists()


@pytest.mark.parametrize(("change", "free"), [({}, False), ({"born": 1.0}, True), ({"host": "other"}, False)])
def test_a_lock_that_outlives_its_holder_is_taken_over(
    tmp_path: Path, change: dict[str, object], free: bool
) -> None:
    """As on a network file system: the lock is held, and only the name tells by whom."""
    named = dataclasses.replace(Holder.this("lost"), **change)
    (tmp_path / HOLDER).write_text(json.dumps(dataclasses.asdict(named)))
    with FileLock(str(tmp_path / LOCK)):
        assert (holder(tmp_path) is None) is free
        if free:
            with training_lock(tmp_path, "next", wait=0):
                assert json.loads((tmp_path / HOLDER).read_text())["run"] == "next"
        else:
            with pytest.raises(UserError, match="lost"), training_lock(tmp_path, "next", wait=0):
                raise AssertionError("two at once")


def test_a_number_that_is_used_again_is_not_the_holder() -> None:
    here = Holder.this("x")
    assert not here.gone
    assert dataclasses.replace(here, born=here.born - 5).gone
    assert dataclasses.replace(here, pid=2**22 + 1).gone

"""Trainings that are cancelled or whose server is killed, at random moments: nothing of them is left over.

Server and training are processes that are forked from this one; only the computing of the training is a
stand-in. `make test-learning` does it fifty times, the usual tests six.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
import torch
from dualclickmed import atomic_files
from dualclickmed.imaging.label_map import LabelMap
from dualclickmed.learning import gate, publishing, retraining
from dualclickmed.learning.final import FinalLabel
from dualclickmed.learning.lifeline import announce, follow_server
from dualclickmed.learning.lock import holder
from dualclickmed.learning.record import PUBLISHED, STARTED, STOPPED, Record
from dualclickmed.learning.retraining import Place, Settings, retrain
from dualclickmed.learning.runs import CANCELLED, ENDED, KEPT, KILLED, TRAININGS, note_ended, progress_of
from dualclickmed.training.loop import Options, Progress
from dualclickmed.training.recipes import Recipe
from dualclickmed.weights import files
from dualclickmed.weights.files import card_path, default_path, list_weights, verify

from tests.support.live import make_weights

logger = logging.getLogger(__name__)

FORK = multiprocessing.get_context("fork")
LONGEST = 1.2
"""Seconds after which a training is ended, at most; one takes about one."""
GONE_SECONDS = 10.0
SHAPE = (12, 12, 12)


def slow_train(recipe: Recipe, options: Options, command: str = "", **given: Any) -> Path:
    """Weights like the parent's, after half a second of steps with a checkpoint."""
    for step in range(1, 26):
        (options.out / "checkpoint.pt").write_bytes(bytes(1000 * step))
        given["progress"](Progress(step, 25, 0.5, 0.5, 0.02 * step, 0.02 * (25 - step)))
        time.sleep(0.02)
    path = options.out / f"{recipe.kind}-{recipe.preset}.safetensors"
    for file, target in ((given["start"], path), (card_path(given["start"]), card_path(path))):
        shutil.copyfile(file, target)
    return path


def measured(*_: Any, **__: Any) -> gate.Report:
    time.sleep(0.1)
    return gate.Report({"liver": [0.5]}, [0.5])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    make_weights(tmp_path / "model")
    monkeypatch.setattr(retraining, "train", slow_train)
    monkeypatch.setattr(gate, "measure", measured)
    return Place(Record(tmp_path / "learning"), tmp_path / "model", None, LabelMap(("liver",)))


@pytest.fixture
def labels(tmp_path: Path) -> list[FinalLabel]:
    image = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[2:9, 2:9, 2:9] = 1
    for name, array in (("image", image), ("label", mask)):
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f"{name}.nii.gz")
    return [FinalLabel("a", tmp_path / "image.nii.gz", tmp_path / "label.nii.gz")]


def serve(place: Place, labels: list[FinalLabel], pipe: Any) -> None:
    """In a process of its own: a server that starts a training, and waits for it as MONAI Label's does."""
    announce()
    # The threads of a forked process are gone, and OpenMP would wait for them.
    torch.set_num_threads(1)
    training = os.fork()
    if training == 0:
        try:
            follow_server()
            retrain("global", labels, place, Settings(minutes=1))
        finally:
            os._exit(0)
    pipe.send(training)
    os.waitpid(training, 0)
    time.sleep(600)


def one_more(place: Place, labels: list[FinalLabel], number: int, numbers: random.Random) -> str:
    """Start a server with a training, end one of the two, and look after what is left; how it ended."""
    ours, theirs = FORK.Pipe()
    server = FORK.Process(target=serve, args=(place, labels, theirs))
    server.start()
    training = psutil.Process(ours.recv())
    how = numbers.choice(["SIGKILL", "SIGTERM", "cancel"])
    time.sleep(numbers.uniform(0, LONGEST))
    if how == "cancel":
        # It may have gone all the way in the meantime.
        with suppress(psutil.NoSuchProcess):
            training.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + GONE_SECONDS
        while holder(place.folder) is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        note_ended(place.record, CANCELLED)
        server.kill()
    else:
        os.kill(server.pid or 0, getattr(signal, how))
    server.join()
    _, alive = psutil.wait_procs([training], timeout=GONE_SECONDS)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []
    # The next server looks.
    note_ended(place.record)
    assert holder(place.folder) is None
    assert all(t.state in (PUBLISHED, STOPPED) for t in place.record.trainings())
    told = progress_of(place.folder)
    assert not told or told["state"] in ENDED
    ended = [t for t in place.record.trainings() if t.state == STOPPED]
    if how == "cancel" and told and told["state"] != PUBLISHED:
        assert told["state"] == CANCELLED or told["reason"] != CANCELLED
    assert all("reason" in t.detail for t in ended)
    for run in (place.folder / TRAININGS).glob("*"):
        assert {path.name for path in run.iterdir()} <= KEPT
    verify(default_path("global", directory=place.model_dir))
    assert all(entry.problem is None for entry in list_weights(place.model_dir))
    return how


PUBLISHING = {
    "the card lies beside its place": 1,
    "the card has no weights yet": 2,
    "the choice lies beside its place": 3,
    "they are chosen, and nobody has noted it": 4,
}
"""Moments of publishing, by their number: files that are about to be renamed, then the end."""


@contextmanager
def halting(pipe: Any, moment: int) -> Iterator[None]:
    """Trainings that begin meanwhile tell the pipe at a moment of publishing, and wait there."""
    turns = itertools.count(1)

    def halt() -> None:
        if next(turns) == moment:
            pipe.send(moment)
            time.sleep(600)

    @contextmanager
    def replacing(path: Path) -> Iterator[Path]:
        with atomic_files.replacing(path) as part:
            yield part
            halt()

    def publish(*given: Any) -> str:
        name = publishing.publish(*given)
        halt()
        return name

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(files, "replacing", replacing)
        patched.setattr(retraining, "publish", publish)
        yield


def train(place: Place, labels: list[FinalLabel]) -> None:
    torch.set_num_threads(1)
    retrain("global", labels, place, Settings(minutes=1))


@pytest.mark.parametrize("moment", list(PUBLISHING))
def test_a_kill_while_publishing_leaves_whole_weights(
    place: Place, labels: list[FinalLabel], moment: str
) -> None:
    ours, theirs = FORK.Pipe()
    with halting(theirs, PUBLISHING[moment]):
        training = FORK.Process(target=train, args=(place, labels))
        training.start()
    try:
        assert ours.poll(60)
    finally:
        training.kill()
        training.join()
    note_ended(place.record)
    assert holder(place.folder) is None
    (ended,) = place.record.trainings()
    assert (ended.state, ended.detail["reason"]) == (STOPPED, KILLED)
    chosen = PUBLISHING[moment] == 4
    served = default_path("global", directory=place.model_dir)
    assert served.stem == ("global-learned-0001" if chosen else "global-compact")
    verify(served)
    assert all(entry.problem is None for entry in list_weights(place.model_dir))
    # The next training begins with what is served, and goes all the way.
    assert retrain("global", labels, place, Settings(minutes=1)).state == PUBLISHED
    newest = default_path("global", directory=place.model_dir)
    assert verify(newest)["parent"]["name"] == served.stem
    assert newest.stem > "global-learned-0001" or not chosen


def hold(place: Place, labels: list[FinalLabel], times: int) -> None:
    numbers = random.Random(times)
    ends = [one_more(place, labels, number, numbers) for number in range(times)]
    states = [t.state for t in place.record.trainings()]
    logger.info("%s; %d trainings begun, %d published", ends, len(states), states.count(PUBLISHED))
    assert STARTED not in states
    # And still a training goes all the way.
    assert retrain("global", labels, place, Settings(minutes=1)).state == PUBLISHED


def test_nothing_is_left_of_trainings_that_are_ended(place: Place, labels: list[FinalLabel]) -> None:
    hold(place, labels, 6)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_nothing_is_left_of_fifty_trainings_that_are_ended(place: Place, labels: list[FinalLabel]) -> None:
    hold(place, labels, 50)

"""Whatever happens in whatever order: the queue is what the datastore says, and the record explains it."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import nibabel as nib
import numpy as np
import pytest
from dualclickmed.activelearning.strategies import strategies
from dualclickmed.configs.options import ServerOptions
from dualclickmed.errors import UserError
from dualclickmed.learning.following import BY_HAND, follow, stored_labels_in
from dualclickmed.learning.lock import training_lock
from dualclickmed.learning.record import FAILED, PUBLISHED, REFUSED, STARTED, Record
from dualclickmed.learning.runs import (
    CANCELLED,
    ProgressWriter,
    is_training,
    new_run,
    note_ended,
    note_ended_locked,
)
from dualclickmed.server.studies import Studies
from dualclickmed.trainers.learning import Learning
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

IMAGES = ("a", "b", "c")
KINDS = ("global", "local")
LABELS = 4
SHAPE = (6, 6, 6)
images, contents = st.sampled_from(IMAGES), st.integers(1, LABELS)
kinds, people = st.sampled_from(KINDS), st.sampled_from(["ann", "bob"])


@pytest.fixture(scope="module")
def label_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_labels(tmp_path_factory.mktemp("labels"))


def made_labels(folder: Path) -> Path:
    """Labels 1.nii.gz, 2.nii.gz, ..., each of another size, and one that cannot be used."""
    for number in range(LABELS + 1):
        array = np.zeros(SHAPE, dtype=np.uint8)
        array[: number + 1, :2, :2] = number > 0
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder / f"{number}.nii.gz")
    return folder


def make_images(folder: Path) -> None:
    for image in IMAGES:
        array = np.arange(216, dtype=np.int16).reshape(SHAPE)
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder / f"{image}.nii.gz")


def opened(folder: Path) -> tuple[Studies, Learning]:
    """As a server does when it starts."""
    studies = Studies(str(folder), extensions=("*.nii.gz",), auto_reload=False)
    return studies, Learning(studies, folder, ServerOptions())


class Workflow(RuleBasedStateMachine):
    """Annotators, trainings, kills and restarts in any order.

    `truth` is what lies in the folder: image to the number of its label. `trained` holds what a training has
    seen: expert, image, number.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.labels = made_labels(Path(tempfile.mkdtemp()))
        make_images(self.folder)
        self.truth: dict[str, int] = {}
        self.by: dict[str, dict[str, int]] = {}
        self.trained: set[tuple[str, str, int]] = set()

    @initialize()
    def start(self) -> None:
        self.studies, self.learning = opened(self.folder)

    @property
    def record(self) -> Record:
        return self.learning.record

    def final(self, image: str) -> Path:
        return self.folder / "labels" / "final" / f"{image}.nii.gz"

    @rule(image=images, number=contents, who=people)
    def submit(self, image: str, number: int, who: str) -> None:
        info = {"client_id": who, "label_info": [{"name": "liver"}]}
        self.studies.save_label(image, str(self.labels / f"{number}.nii.gz"), "final", info)
        answer = self.learning.on_save_label(image)["learning"]
        assert answer["labels"] == {"liver": {"voxels": 4 * (number + 1), "ml": 4 * (number + 1) / 1000}}
        self.truth[image] = number
        versions = self.by.setdefault(image, {})
        versions.pop(who, None)
        versions[who] = number

    @rule(image=images, who=people)
    def submit_what_cannot_be_used(self, image: str, who: str) -> None:
        before = len(self.record.submissions())
        with pytest.raises(UserError, match=f"label of {image} was not stored"):
            self.studies.save_label(image, str(self.labels / "0.nii.gz"), "final", {"client_id": who})
        assert len(self.record.submissions()) == before

    @rule(image=images)
    def delete(self, image: str) -> None:
        self.studies.remove_label(image, "final")
        self.truth.pop(image, None)
        self.by.pop(image, None)

    @rule(image=images)
    def delete_by_hand(self, image: str) -> None:
        self.final(image).unlink(missing_ok=True)
        self.studies.refresh()
        self.truth.pop(image, None)
        self.by.pop(image, None)

    @rule(image=images, number=contents)
    def restore_by_hand(self, image: str, number: int) -> None:
        """From a backup, say."""
        self.final(image).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.labels / f"{number}.nii.gz", self.final(image))
        self.studies.refresh()
        self.truth[image] = number

    @rule(kind=kinds, how=st.sampled_from([PUBLISHED, REFUSED, FAILED]))
    def train(self, kind: Any, how: str) -> None:
        versions = self.seen()
        with training_lock(self.record.folder, "training"):
            note_ended_locked(self.record)
            run = new_run(self.record.folder, kind)
            self.record.training(run.name, kind, STARTED, versions.values())
            ProgressWriter(run, kind).say("training")
            self.record.training(run.name, kind, how, versions.values())
            ProgressWriter(run, kind).say(how)
        if how != FAILED:
            self.trained |= {(kind, image, self.truth[image]) for image in versions}

    @rule(kind=kinds, cancelled=st.booleans())
    def train_until_killed(self, kind: Any, cancelled: bool) -> None:
        versions = self.seen()
        pid = os.fork()
        if pid == 0:
            try:
                with training_lock(self.record.folder, "training"):
                    note_ended_locked(self.record)
                    run = new_run(self.record.folder, kind)
                    self.record.training(run.name, kind, STARTED, versions.values())
                    ProgressWriter(run, kind).say("training")
                    os.kill(os.getpid(), signal.SIGKILL)
            finally:
                os._exit(1)
        _, status = os.waitpid(pid, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        if cancelled:
            note_ended(self.record, CANCELLED)
            stats = self.learning.trainers()[f"dualclickmed_{kind}"].stats()
            assert stats["state"] == CANCELLED

    @rule()
    def restart(self) -> None:
        self.studies, self.learning = opened(self.folder)

    def seen(self) -> dict[str, str]:
        """What a training reads: image to version."""
        return {image: submission.version for image, submission in self.learning.final().items()}

    @invariant()
    def the_queue_is_what_the_datastore_says(self) -> None:
        if not hasattr(self, "studies"):
            return
        info = self.learning.info()
        assert set(self.studies.get_labeled_images()) == set(self.truth)
        assert info["final"] == len(self.truth)
        for kind in KINDS:
            expected = {i for i, n in self.truth.items() if (kind, i, n) not in self.trained}
            assert set(info["waiting"][kind]) == expected
            assert set(self.learning.trainers()[f"dualclickmed_{kind}"].stats()["waiting"]) == expected
        offered = strategies(self.record)["first"]({}, self.studies)
        once = {submission.image for submission in self.record.submissions()}
        unlabelled = sorted(set(IMAGES) - set(self.truth), key=lambda image: (image not in once, image))
        assert offered == ({"id": unlabelled[0]} if unlabelled else None)
        # The command line, without a server, says the same.
        assert {label.image for label in stored_labels_in(self.folder)} == set(self.truth)
        assert follow(self.record, stored_labels_in(self.folder)) == self.learning.final()

    @invariant()
    def the_record_explains_it(self) -> None:
        if not hasattr(self, "studies"):
            return
        final = self.learning.final()
        assert self.record.final() == final
        for image, number in self.truth.items():
            kept = self.record.path_of(final[image])
            assert kept.read_bytes() == (self.labels / f"{number}.nii.gz").read_bytes()
            versions = {s.who for s in self.record.versions(image)}
            assert set(self.by.get(image, {})) <= versions <= {*self.by.get(image, {}), "ann", "bob", BY_HAND}

    @invariant()
    def nothing_is_stuck(self) -> None:
        if not hasattr(self, "studies"):
            return
        self.learning.info()
        assert not is_training(self.record.folder)
        assert all(training.state != STARTED for training in self.record.trainings())

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self.labels, ignore_errors=True)


Workflow.TestCase.settings = settings(
    max_examples=8, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestWorkflow = Workflow.TestCase


def test_a_full_disk_changes_nothing_about_what_is_final(tmp_path: Path, label_files: Path) -> None:
    make_images(tmp_path)
    studies, learning = opened(tmp_path)
    studies.save_label("a", str(label_files / "1.nii.gz"), "final", {"label_info": [{"name": "liver"}]})
    shutil.copyfile(label_files / "2.nii.gz", tmp_path / "labels" / "final" / "b.nii.gz")
    (tmp_path / "labels" / "final" / "a.nii.gz").unlink()
    studies.refresh()
    with patch.object(Record, "_append", side_effect=OSError(28, "No space left on device")):
        assert set(learning.final()) == {"b"}
    assert {i: s.who for i, s in learning.final().items()} == {"b": BY_HAND}


def test_a_version_that_is_put_back_is_its_annotators(tmp_path: Path, label_files: Path) -> None:
    make_images(tmp_path)
    studies, learning = opened(tmp_path)
    for who, number in (("ann", 1), ("bob", 2)):
        info = {"client_id": who, "label_info": [{"name": "liver"}]}
        studies.save_label("a", str(label_files / f"{number}.nii.gz"), "final", info)
    shutil.copyfile(label_files / "1.nii.gz", tmp_path / "labels" / "final" / "a.nii.gz")
    assert learning.final()["a"].who == "ann"


@pytest.mark.parametrize(("listed", "expected"), [(["a"], {"a": "ann"}), ([], {}), (["a", "b"], None)])
def test_an_archive_is_believed_but_not_taken_for_complete(
    tmp_path: Path, label_files: Path, listed: list[str], expected: dict[str, str] | None
) -> None:
    """Its list may lag behind: nothing is noted as removed because of it."""

    class Archive:
        def get_labeled_images(self) -> list[str]:
            return listed

    from dualclickmed.learning.following import stored_labels

    record = Record(tmp_path)
    record.submit("a", label_files / "1.nii.gz", {"client_id": "ann"})
    found = follow(record, stored_labels(Archive(), fetch=False), archive=True)
    expected = {"a": "ann", "b": "unknown"} if expected is None else expected
    assert {image: s.who for image, s in found.items()} == expected
    assert list(record.final()) == ["a"]

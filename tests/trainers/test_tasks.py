"""The trainers as MONAI Label sees them, and what the app hands on to learning."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dualclickmed.configs.options import ServerOptions
from dualclickmed.errors import UserError
from dualclickmed.imaging.label_map import MAX_LABELS, LabelMap
from dualclickmed.learning.final import final_labels
from dualclickmed.learning.following import BY_HAND, follow
from dualclickmed.learning.record import PUBLISHED, STARTED, Record
from dualclickmed.learning.retraining import Settings
from dualclickmed.trainers import tasks
from dualclickmed.trainers.learning import Learning, clicks_in, with_new
from dualclickmed.trainers.tasks import DECODER, EVERYTHING, ExpertTrainer, notes_on
from fastapi import HTTPException
from monailabel.datastore.local import LocalDatastore


@pytest.fixture
def studies(tmp_path: Path) -> LocalDatastore:
    folder = tmp_path / "studies"
    folder.mkdir()
    for name in ("a", "b", "c"):
        nib.save(
            nib.Nifti1Image(np.arange(512, dtype=np.int16).reshape(8, 8, 8), np.eye(4)),
            folder / f"{name}.nii.gz",
        )
    return LocalDatastore(str(folder))


def a_label(folder: Path, value: int = 1) -> str:
    array = np.zeros((8, 8, 8), dtype=np.uint8)
    array[2:6, 2:6, 2:6] = value
    path = folder / f"label{value}.nii.gz"
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return str(path)


def trainer(record: Record) -> ExpertTrainer:
    return ExpertTrainer("global", record, ServerOptions())


def test_options_are_read_as_clients_send_them(tmp_path: Path) -> None:
    task = trainer(Record(tmp_path))
    config = task.config()
    # Untouched choices come back whole, the rest as numbers or text.
    assert task.settings({"model": "dualclickmed_global", "multi_gpu": True, **config}) == Settings()
    sent = {
        "minutes": "2.5",
        "max_epochs": 7,
        "rate": 1e-4,
        "replay": 0.5,
        "train": DECODER,
        "device": "cuda",
    }
    assert task.settings(sent) == Settings(
        minutes=2.5, epochs=7, rate=1e-4, replay=0.5, freeze_encoder=True, device="cpu"
    )
    assert config["train"] == [EVERYTHING, DECODER]


def test_monai_labels_own_options_are_honoured(tmp_path: Path) -> None:
    task = trainer(Record(tmp_path))
    sent = {
        "name": "second_try",
        "pretrained": False,
        "early_stop_patience": 4,
        "val_split": "0.4",
        "train_batch_size": 3,
        "tracking": ["None"],
    }
    assert notes_on(sent) == []
    assert task.settings(sent) == Settings(
        name="second_try", pretrained=False, patience=4, held_out=0.4, batch=3, events=False
    )


def test_what_changes_nothing_is_answered_for() -> None:
    sent = {"dataset": "CacheDataset", "val_batch_size": 2, "tracking": "mlflow", "flavour": 1, "gpus": "0"}
    notes = notes_on(sent)
    assert [next(name for name in sent if name in note) for note in notes] == [
        "tracking",
        "dataset",
        "val_batch_size",
        "flavour",
    ]
    assert notes_on({"dataset": "", "model": "dualclickmed_global", "client_id": "x"}) == []


@pytest.mark.parametrize(
    "sent",
    [
        {"minutes": 0},
        {"minutes": "soon"},
        {"rate": -1},
        {"replay": 1},
        {"train": "heads"},
        {"max_epochs": True},
        {"name": "../x"},
        {"pretrained": "perhaps"},
        {"val_split": 1},
        {"train_batch_size": -1},
        {"rate": float("nan")},
        {"device": "tpu"},
    ],
)
def test_what_cannot_be_trained_is_said(tmp_path: Path, sent: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=str(next(iter(sent.values())))):
        trainer(Record(tmp_path)).settings(sent)


def test_without_labels_the_request_is_refused(studies: LocalDatastore, tmp_path: Path) -> None:
    with pytest.raises(HTTPException) as refused:
        trainer(Record(tmp_path / "learning"))({"minutes": 1}, studies)
    assert refused.value.status_code == 400
    assert "no final label" in refused.value.detail


@pytest.mark.parametrize("asked", [True, "true", 1, [True, False]])
def test_several_gpus_that_were_asked_for_are_answered_for(
    studies: LocalDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, asked: Any
) -> None:
    card = SimpleNamespace(card=lambda: {"dice": 0.5})
    outcome = SimpleNamespace(
        state=PUBLISHED, name="w", reason="", before=card, after=card, skipped=[], seconds=1.2
    )
    given: list[Settings] = []
    monkeypatch.setattr(
        tasks, "retrain", lambda k, ls, p, settings, c, hooks: given.append(settings) or outcome
    )
    studies.save_label("a", a_label(tmp_path), "final", {})
    task = trainer(Record(tmp_path / "learning"))
    result = task({"multi_gpu": asked}, studies)
    assert result["notes"][0].startswith(
        "'multi_gpu' was asked for, but the GPUs that PyTorch can use here are 0"
    )
    assert result["notes"][0] in caplog.text
    assert task({"multi_gpu": False}, studies)["notes"] == []
    assert given == [Settings(), Settings()]


def test_progress_of_the_other_expert_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "progress.json").write_text('{"kind": "local", "step": 3}')
    record = Record(tmp_path)
    assert trainer(record).stats() == {"waiting": []}
    assert ExpertTrainer("local", record, ServerOptions()).stats()["step"] == 3


def test_final_labels_are_recorded_before_they_replace_one(studies: LocalDatastore, tmp_path: Path) -> None:
    learning = Learning(studies, tmp_path / "studies", ServerOptions())
    learning.note_prediction(
        {"image": "a", "model": "dualclickmed", "liver": [[1, 2, 3], [4, 5, 6]], "roi": [0, 1, 2, 3, 4, 5]}
    )
    info = {"client_id": "ann", "label_info": [{"name": "nodule"}]}
    assert studies.save_label("a", a_label(tmp_path), "final", info) == "a"
    assert learning.on_save_label("a")["learning"]["by"] == "ann"
    names = [{"name": "spleen"}, {"name": "nodule"}]
    studies.save_label("a", a_label(tmp_path, 2), "final", {"label_info": names, "client_id": "bob"})
    assert learning.on_save_label("a")["learning"]["replaced"]["by"] == "ann"
    assert learning.on_save_label("a") == {}
    studies.save_label("b", a_label(tmp_path), "original", {})
    first, second = learning.record.submissions()
    assert (first.clicks, first.prediction["task"]) == (2, "dualclickmed")
    assert second.clicks is None
    assert learning.record.path_of(first).read_bytes() == Path(a_label(tmp_path)).read_bytes()
    # Nothing that the datastore refuses is recorded.
    with pytest.raises(Exception, match="not found"):
        studies.save_label("nobody", a_label(tmp_path), "final", {})
    assert len(learning.record.submissions()) == 2
    # The next start offers the new label, after the server's own.
    again = Learning(LocalDatastore(str(tmp_path / "studies")), tmp_path / "studies", ServerOptions())
    assert again.options.labels.names == (*ServerOptions().labels.names, "nodule")


def test_labels_that_were_put_into_the_folder_by_hand_count(studies: LocalDatastore, tmp_path: Path) -> None:
    final = tmp_path / "studies" / "labels" / "final"
    Path(a_label(tmp_path)).replace(final / "b.nii.gz")
    studies.refresh()
    record = Record(tmp_path / "learning")
    (label,) = final_labels(studies)
    assert (label.image, label.label.resolve()) == ("b", (final / "b.nii.gz").resolve())
    assert {image: s.who for image, s in follow(record, [label.stored]).items()} == {"b": BY_HAND}
    assert follow(record, [label.stored]) == record.final()
    assert len(record.submissions()) == 1
    assert [s.image for s in record.waiting("global")] == ["b"]


def test_trainings_start_by_themselves_once_for_each_label(studies: LocalDatastore, tmp_path: Path) -> None:
    learning = Learning(studies, tmp_path / "studies", ServerOptions(retrain_after=2))
    studies.save_label("a", a_label(tmp_path), "final", {})
    assert learning.due() == []
    studies.save_label("b", a_label(tmp_path), "final", {})
    assert learning.due() == ["global", "local"]
    # Asked for already, though neither process has begun.
    assert learning.due() == []
    versions = [s.version for s in learning.record.submissions()]
    learning.record.training("run", "global", STARTED, versions)
    studies.save_label("c", a_label(tmp_path), "final", {})
    learning.record.training("run", "global", PUBLISHED, versions)
    assert learning.due() == []
    studies.save_label("a", a_label(tmp_path, 2), "final", {})
    assert learning.due() == ["global", "local"]


def test_clicks_are_counted_in_every_dialect() -> None:
    assert clicks_in({"liver": [[1, 2, 3]], "background": [[4, 5, 6], [7, 8, 9]], "roi": [1, 2, 3]}) == 3
    assert clicks_in({"foreground": [], "points": [[1, 1, 1]], "point_labels": [1], "device": "cpu"}) == 1


def test_new_labels_come_last_and_fit() -> None:
    labels = LabelMap(("liver", "spleen"))
    assert with_new(labels, ["LIVER", "tail", "head"]).names == ("liver", "spleen", "tail", "head")
    many = with_new(labels, [f"label {n}" for n in range(300)])
    assert len(many.names) == MAX_LABELS

"""Nothing that was submitted is lost, whoever submits what, and whatever happens to disk and process."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from dualclickmed.learning import record as learning_record
from dualclickmed.learning.record import (
    EVENTS,
    FAILED,
    PUBLISHED,
    REFUSED,
    STARTED,
    UNKNOWN,
    Record,
    version_of,
)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path / "learning")


def a_label(folder: Path, content: str, name: str = "label.nii.gz") -> Path:
    path = folder / name
    path.write_text(content)
    return path


def test_who_when_what_and_from_which_prediction(tmp_path: Path, record: Record) -> None:
    info = {"client_id": "ann", "label_info": [{"name": "anterior", "idx": 2}, {"name": "roi"}]}
    prediction = {"task": "dualclickmed", "weights": {"global": "global-compact"}, "clicks": 4}
    submission, replaced = record.submit("image", a_label(tmp_path, "one"), info, prediction)
    assert replaced is None
    assert Record(record.folder).submissions() == [submission]
    assert (submission.who, submission.clicks, submission.labels) == ("ann", 4, ("anterior",))
    assert submission.prediction == {"task": "dualclickmed", "weights": {"global": "global-compact"}}
    assert record.path_of(submission).read_text() == "one"
    assert record.path_of(submission).name.endswith(".nii.gz")


def test_another_annotators_label_is_kept_and_named(
    tmp_path: Path, record: Record, caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = record.submit("image", a_label(tmp_path, "by ann"), {"client_id": "ann"})
    second, replaced = record.submit("image", a_label(tmp_path, "by bob"), {"client_id": "bob"})
    assert replaced == first
    assert "now by bob; the version of ann" in caplog.text
    # The written rule: the last one is final, and the other one is kept.
    assert record.final() == {"image": second}
    assert [s.who for s in record.versions("image")] == ["ann", "bob"]
    assert record.path_of(first).read_text() == "by ann"
    assert record.summary()["several_annotators"] == ["image"]


def test_ones_own_correction_replaces_nobody(tmp_path: Path, record: Record) -> None:
    record.submit("image", a_label(tmp_path, "one"), {"client_id": "ann"})
    _, replaced = record.submit("image", a_label(tmp_path, "two"), {"client_id": "ann"})
    assert replaced is None
    assert len(record.versions("image")) == 1
    assert len(list((record.folder / "versions").iterdir())) == 2


def test_a_submission_without_a_name(tmp_path: Path, record: Record) -> None:
    submission, _ = record.submit("image", a_label(tmp_path, "x"), {"clicks": True})
    assert (submission.who, submission.clicks) == (UNKNOWN, None)


def test_what_waits(tmp_path: Path, record: Record) -> None:
    one, _ = record.submit("one", a_label(tmp_path, "1"))
    two, _ = record.submit("two", a_label(tmp_path, "2"))
    record.training("run", "global", STARTED, [one.version, two.version], ["liver"])
    # Submitted while it trains, so for the next one.
    three, _ = record.submit("three", a_label(tmp_path, "3"))
    assert [s.image for s in record.waiting("global")] == ["one", "two", "three"]
    assert [s.image for s in record.waiting("global", begun=True)] == ["three"]
    record.training("run", "global", PUBLISHED, [one.version, two.version], ["liver"])
    assert record.waiting("global") == [three]
    assert len(record.waiting("local")) == 3
    assert record.labels() == ["liver"]
    # A correction waits again.
    record.submit("one", a_label(tmp_path, "1, corrected"))
    assert [s.image for s in record.waiting("global")] == ["one", "three"]


def test_a_refused_training_has_seen_its_labels_and_a_failed_one_has_not(
    tmp_path: Path, record: Record
) -> None:
    one, _ = record.submit("one", a_label(tmp_path, "1"))
    record.training("a", "local", STARTED, [one.version])
    record.training("a", "local", FAILED, detail={"reason": "no space"})
    assert record.waiting("local") == [one]
    assert record.trainings("local")[0].versions == (one.version,)
    record.training("b", "local", REFUSED, [one.version])
    assert record.waiting("local") == []
    assert [t.state for t in record.trainings()] == [FAILED, REFUSED]


def test_a_line_that_was_cut_costs_that_line_alone(tmp_path: Path, record: Record) -> None:
    record.submit("one", a_label(tmp_path, "1"))
    with (record.folder / EVENTS).open("a") as stream:
        stream.write('{"event": "submitted", "image": "cut')
    assert list(record.final()) == ["one"]
    record.submit("two", a_label(tmp_path, "2"))
    assert list(record.final()) == ["one", "two"]
    assert list(Record(record.folder).final()) == ["one", "two"]


def test_a_full_disk_leaves_the_record_whole(
    tmp_path: Path, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    record.submit("one", a_label(tmp_path, "1"))
    before = (record.folder / EVENTS).read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("dualclickmed.learning.record.os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            record.submit("two", a_label(tmp_path, "2"))
    assert (record.folder / EVENTS).read_bytes() == before
    with monkeypatch.context() as patch:
        patch.setattr("dualclickmed.learning.record.shutil.copyfile", full)
        with pytest.raises(OSError, match="No space"):
            record.submit("three", a_label(tmp_path, "3"))
    assert [p.name for p in (record.folder / "versions").iterdir() if p.name.startswith(".")] == []
    record.submit("two", a_label(tmp_path, "2"))
    assert list(record.final()) == ["one", "two"]


def test_many_at_once(tmp_path: Path, record: Record) -> None:
    files = [a_label(tmp_path, str(n), f"{n}.nii.gz") for n in range(24)]

    def submit(part: list[Path]) -> None:
        own = Record(record.folder)
        for file in part:
            own.submit(file.name, file, {"client_id": "x" * 3000})

    threads = [threading.Thread(target=submit, args=(files[n::4],)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(record.final()) == {file.name for file in files}
    lines = (record.folder / EVENTS).read_bytes().splitlines()
    assert len([json.loads(line) for line in lines]) == len(files)


def test_the_summary_counts_what_the_record_holds(tmp_path: Path, record: Record) -> None:
    one, _ = record.submit("one", a_label(tmp_path, "1"), {"client_id": "ann"})
    record.submit("two", a_label(tmp_path, "2"), {"client_id": "ann"})
    record.submit("two", a_label(tmp_path, "2, again"), {"client_id": "bob"})
    two, _ = record.submit("two", a_label(tmp_path, "2, by ann"), {"client_id": "ann"})
    record.submit("three", a_label(tmp_path, "3"), {"client_id": "zoe"})
    record.training("run", "local", PUBLISHED, [one.version], ["liver"], {"gain": 0.5})
    record.training("other", "global", FAILED, [two.version])
    summary = record.summary()
    assert summary == {
        "submitted": 5,
        "final": 3,
        "waiting": {"global": ["one", "two", "three"], "local": ["two", "three"]},
        "by": {"ann": 2, "zoe": 1},
        "several_annotators": ["two"],
        "trainings": summary["trainings"],
    }
    assert [(t["kind"], t["state"], t.get("gain")) for t in summary["trainings"]] == [
        ("local", PUBLISHED, 0.5),
        ("global", FAILED, None),
    ]
    assert summary["waiting"] == {
        kind: [s.image for s in record.waiting(kind)] for kind in ("global", "local")
    }


@pytest.mark.parametrize("images", [1, 50])
def test_the_summary_looks_at_every_event_a_fixed_number_of_times(
    record: Record, monkeypatch: pytest.MonkeyPatch, images: int
) -> None:
    record.folder.mkdir()
    with (record.folder / EVENTS).open("w") as stream:
        for n in range(200):
            event = {"event": "submitted", "version": str(n), "image": str(n % images), "who": str(n % 7)}
            stream.write(json.dumps({**event, "time": str(n), "file": f"{n}.nii"}) + "\n")
    read: list[object] = []
    original = learning_record._submission
    monkeypatch.setattr(learning_record, "_submission", lambda e: read.append(e) or original(e))
    assert record.summary()["final"] == images
    # Once as its line is read, to see that it is whole, and once for the summary.
    assert len(read) == 2 * 200
    assert record.summary()["final"] == images
    assert len(read) == 3 * 200


def test_versions_differ_by_image_and_content(tmp_path: Path) -> None:
    one, two = a_label(tmp_path, "1"), a_label(tmp_path, "2", "other.nii.gz")
    assert len({version_of("a", one), version_of("b", one), version_of("a", two)}) == 3


def test_odd_lines_of_the_record_are_passed_over(tmp_path: Path) -> None:
    record = Record(tmp_path)
    label = tmp_path / "label.nii.gz"
    label.write_bytes(b"a label")
    record.submit("ct", label)
    whole = '"version": "a", "image": "b", "who": "c", "time": "d", "file": "e"'
    training = '"run": "a", "kind": "b", "time": "c", "state": "d"'
    odd = [
        *('{"event": "submitted"}', '{"event": "training", "run": 3}', "[]", "7", "null", "{"),
        f'{{"event": "submitted", {whole}, "labels": 3}}',
        f'{{"event": "training", {training}, "versions": 5}}',
    ]
    with (tmp_path / "record.jsonl").open("a") as stream:
        stream.write("\n".join(odd) + "\n")
    other = tmp_path / "other.nii.gz"
    other.write_bytes(b"another")
    record.submit("mr", other)
    for read in (record, Record(tmp_path)):
        assert read.summary()["submitted"] == 2
        assert sorted(read.final()) == ["ct", "mr"]
        assert read.labels() == [] and read.trainings() == []

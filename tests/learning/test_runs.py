"""What is told of a training, what stays of it, and who notes its end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dualclickmed.learning.lock import training_lock
from dualclickmed.learning.record import PUBLISHED, STARTED, STOPPED, Record
from dualclickmed.learning.retraining import Patience
from dualclickmed.learning.runs import (
    CANCELLED,
    KILLED,
    STATS,
    TRAININGS,
    ProgressWriter,
    epochs_of,
    new_run,
    note_ended,
    progress_of,
    stats_of,
    tidy,
)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path / "learning")


def begun(record: Record, kind: str = "global") -> ProgressWriter:
    """A training whose process has ended in the middle."""
    run = new_run(record.folder, kind)
    record.training(run.name, kind, STARTED, ["v1"])
    writer = ProgressWriter(run, kind)
    writer.say("training", epoch=2, total_epochs=8)
    (run / "checkpoint.pt").write_text("large")
    (run / "labels").mkdir()
    (run / "log.csv").write_text("step")
    return writer


@pytest.mark.parametrize(("reason", "state"), [(CANCELLED, CANCELLED), (KILLED, STOPPED)])
def test_the_end_of_a_killed_training_is_noted_once(record: Record, reason: str, state: str) -> None:
    run = begun(record).run
    note_ended(record, reason)
    note_ended(record)
    told = progress_of(record.folder)
    assert (told["state"], told["reason"]) == (state, reason)
    assert "total_time" in told and "current_time" not in told
    assert json.loads((run / STATS).read_text()) == told
    (training,) = record.trainings()
    assert (training.state, training.detail["reason"], training.versions) == (STOPPED, reason, ("v1",))
    assert len((record.folder / "record.jsonl").read_text().splitlines()) == 2
    # What it has left is cleared away, and what it told stays.
    assert sorted(path.name for path in run.iterdir()) == ["log.csv", STATS]


def test_what_one_leaves_that_was_killed_after_its_end_is_cleared_away(record: Record) -> None:
    writer = begun(record)
    record.training(writer.run.name, "global", PUBLISHED, ["v1"])
    writer.say(PUBLISHED)
    (writer.run / f".{STATS}.5957c74b.1.tmp").write_text("{")
    told = progress_of(record.folder)
    note_ended(record)
    assert sorted(path.name for path in writer.run.iterdir()) == ["log.csv", STATS]
    assert progress_of(record.folder) == told
    assert record.trainings()[0].state == PUBLISHED


def test_a_training_that_runs_is_not_settled(record: Record) -> None:
    begun(record)
    with training_lock(record.folder, "runs"):
        note_ended(record)
        assert record.trainings()[0].state == STARTED
    note_ended(record)
    assert record.trainings()[0].state == STOPPED


def test_each_expert_has_its_own_last_training(record: Record) -> None:
    begun(record, "local")
    begun(record, "global")
    assert stats_of(record.folder, "global")["run"] == progress_of(record.folder)["run"]
    assert stats_of(record.folder, "local")["run"].endswith("local")
    assert stats_of(record.folder / "elsewhere", "local") == {}


def test_only_the_last_trainings_stay(record: Record) -> None:
    runs = [begun(record).run for _ in range(5)]
    tidy(record.folder, most=2)
    assert sorted((record.folder / TRAININGS).iterdir()) == runs[-2:]


def test_telling_speaks_as_monai_label_does(record: Record) -> None:
    writer = ProgressWriter(new_run(record.folder, "global", "mine"), "global")
    assert writer.run.name.endswith("-global-mine")
    writer.say("reading")
    assert "best_metric" not in writer.facts
    writer.measured(0.61234, 0, better=True)
    writer.say("training", epoch=3, total_epochs=9)
    told = progress_of(record.folder)
    assert (told["epoch"], told["total_epochs"], told["best_metric"]) == (3, 9, 0.6123)
    assert "total_time" not in told and told["current_time"] == "0:00:00"
    writer.measured(0.5, 9, better=False)
    assert writer.facts["best_metric"] == 0.6123
    assert writer.facts["eval"]["metrics"] == {"val_mean_dice": 0.5}
    assert writer.facts["eval"]["best_metric"] == 0.6123
    writer.measured(0.7, 9, better=True)
    writer.say(PUBLISHED, epoch=9)
    told = progress_of(record.folder)
    assert (told["best_metric"], told["eval"]["best_metric_epoch"]) == (0.7, 9)
    assert "total_time" in told and "current_time" not in told
    # The next one begins with what is served.
    assert ProgressWriter(new_run(record.folder, "global"), "global").facts["best_metric"] == 0.7


@pytest.mark.parametrize(
    ("step", "steps", "seconds", "left", "expected"),
    [
        # Twelve steps of four to a pass; time for 40 of 600 steps.
        (12, 600, 12.0, 28.0, (3, 10)),
        # Time for all of them.
        (12, 40, 12.0, 28.0, (3, 10)),
        (40, 40, 40.0, 0.0, (10, 10)),
        (37, 600, 40.0, 0.0, (10, 10)),
        (1, 600, 1.0, 599.0, (0, 150)),
    ],
)
def test_passes_are_counted_by_what_there_is_time_for(
    step: int, steps: int, seconds: float, left: float, expected: tuple[int, int]
) -> None:
    assert epochs_of(step, steps, seconds, left, 4) == expected


def test_patience_looks_at_whole_passes() -> None:
    patience, never = Patience(2), Patience(0)
    losses = [[0.9, 0.5], [0.6, 0.6], [0.8, 0.4], [0.9, 0.3], [0.1, 0.1]]
    over = [[patience.over(number, loss) for loss in found] for number, found in enumerate(losses)]
    # Passes of mean loss 0.7, 0.6, 0.6, 0.6: two without a lower one.
    assert [any(found) for found in over] == [False, False, False, False, True]
    assert not any(never.over(number, 1.0) for number in range(50))

"""The folders of trainings, their progress, and notes on trainings that could not note their own end.

Each training has a folder of its own in `TRAININGS`, beside the submitted versions: `train_stats.json` with
MONAI Label's keys, `log.csv` and TensorBoard's events. Weights and label maps lie there while it runs only.
"""

from __future__ import annotations

import datetime
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..atomic_files import write_text
from ..errors import UserError
from ..weights.cards import Kind
from .lock import holder, training_lock
from .record import FAILED, PUBLISHED, REFUSED, STARTED, STOPPED, Record

logger = logging.getLogger(__name__)

PROGRESS = "progress.json"
TRAININGS = "trainings"
STATS = "train_stats.json"
KEPT = frozenset({STATS, "log.csv", "tensorboard"})
"""What stays of a training once it has ended."""
MOST_RUNS = 20
CANCELLED = "cancelled"
"""The state of a training that somebody has stopped; the record says `STOPPED`, with this as the reason."""
ENDED = frozenset({PUBLISHED, REFUSED, FAILED, STOPPED, CANCELLED})
KILLED = "its process was killed, or the server that it belonged to was"
METRIC = "val_mean_dice"


def is_training(folder: Path) -> bool:
    """Whether a training is running in this folder, in whichever process."""
    return holder(folder) is not None


def progress_of(folder: Path) -> dict[str, Any]:
    """The last progress of the last training; empty if there was none."""
    return _read(folder / PROGRESS)


def stats_of(folder: Path, kind: Kind) -> dict[str, Any]:
    """The last progress of one expert's last training; empty if there was none."""
    told = progress_of(folder)
    if told.get("kind") == kind:
        return told
    for run in sorted(_runs(folder), reverse=True):
        told = _read(run / STATS)
        if told.get("kind") == kind:
            return told
    return {}


def new_run(folder: Path, kind: Kind, name: str = "") -> Path:
    """The folder of a new training, named after the time, the expert and what the client calls it."""
    (folder / TRAININGS).mkdir(parents=True, exist_ok=True)
    stamp = f"{datetime.datetime.now(datetime.timezone.utc):%Y%m%d-%H%M%S-%f}-{kind}"
    made = folder / TRAININGS / (f"{stamp}-{name}" if name else stamp)
    made.mkdir()
    return made


def tidy(folder: Path, most: int = MOST_RUNS) -> None:
    """Keep `KEPT` of trainings that have ended, and only the latest ones. The caller holds the lock."""
    runs = sorted(_runs(folder))
    for old in runs[: max(0, len(runs) - most)]:
        shutil.rmtree(old, ignore_errors=True)
    for run in runs[-most:]:
        for path in run.iterdir():
            if path.name not in KEPT:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def note_ended(record: Record, reason: str = KILLED) -> None:
    """Note the end of trainings whose process was killed before it did; does nothing while one is running.

    Args:
        record: of the studies.
        reason: `CANCELLED` if somebody has stopped it.
    """
    if not _open(record):
        return
    try:
        with training_lock(record.folder, "clean-up", wait=0.0):
            note_ended_locked(record, reason)
    except UserError:
        # A training is running, so there is nothing to note.
        return
    except OSError as error:
        logger.warning("How the last training ended could not be noted: %s", error)


def note_ended_locked(record: Record, reason: str = KILLED) -> None:
    """`note_ended` for a caller that holds the training lock."""
    for training in record.trainings():
        if training.state == STARTED:
            record.training(training.run, training.kind, STOPPED, detail={"reason": reason})
    told = progress_of(record.folder)
    if told and told.get("state") not in ENDED:
        told |= {"state": CANCELLED if reason == CANCELLED else STOPPED, "reason": reason}
        told["total_time"] = told.pop("current_time", "0:00:00")
        write_json(record.folder / PROGRESS, told)
        run = record.folder / TRAININGS / str(told.get("run", ""))
        if run.is_dir() and run.parent.name == TRAININGS:
            write_json(run / STATS, told)
    tidy(record.folder)


def _open(record: Record) -> bool:
    """Whether a training did not finish or left files behind, as far as can be seen without the lock."""
    told = progress_of(record.folder)
    if told and told.get("state") not in ENDED:
        return True
    return _untidy(record.folder) or any(training.state == STARTED for training in record.trainings())


def _untidy(folder: Path) -> bool:
    """Whether the newest training left temporary files: it was killed after it had reported its end."""
    try:
        return any(path.name not in KEPT for path in max(_runs(folder)).iterdir())
    except (OSError, ValueError):
        return False


class ProgressWriter:
    """Writes the progress of a training, with the keys of MONAI Label's own trainings.

    Args:
        run: the training's folder.
        kind: which expert.
        tell: receives what is written.

    Attributes:
        facts: what was told last.
    """

    def __init__(
        self, run: Path, kind: Kind, tell: Callable[[Mapping[str, Any]], None] | None = None
    ) -> None:
        self.run, self.tell = run, tell
        self.begin = time.monotonic()
        folder = run.parents[1]
        before = stats_of(folder, kind).get("best_metric")
        self.path = folder / PROGRESS
        self.facts: dict[str, Any] = {
            "run": run.name,
            "kind": kind,
            "start_ts": int(time.time()),
            "rank": 0,
            "epoch": 0,
            "total_epochs": 1,
            **({"best_metric": before} if isinstance(before, (int, float)) else {}),
        }

    @property
    def seconds(self) -> float:
        """Since the training began."""
        return time.monotonic() - self.begin

    def say(self, state: str, **facts: Any) -> None:
        """Write the state and further facts for /info, `queue` and the training's folder.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        self.facts |= {"state": state, "elapsed": round(self.seconds), **facts}
        duration = str(datetime.timedelta(seconds=round(self.seconds)))
        self.facts["total_time" if state in ENDED else "current_time"] = duration
        if state in ENDED:
            self.facts.pop("current_time", None)
        for path in (self.path, self.run / STATS):
            write_json(path, self.facts)
        if self.tell is not None:
            self.tell(self.facts)

    def measured(self, dice: float, epoch: int, better: bool) -> None:
        """Take up what the gate measured on the held-out labels.

        Args:
            dice: mean over labels and clicks.
            epoch: after so many passes over the labelled cases.
            better: whether these weights are the best ones so far.
        """
        dice = round(dice, 4)
        known = self.facts.get("eval", {})
        best = {"best_metric": dice, "best_metric_epoch": epoch} if better else {}
        self.facts["eval"] = {
            **known,
            "metrics": {METRIC: dice},
            "key_metric_name": METRIC,
            **best,
        }
        if better:
            self.facts["best_metric"] = dice


def epochs_of(step: int, steps: int, seconds: float, left: float, each: int) -> tuple[int, int]:
    """Passes over the labelled cases that are done, and that there will be by the time that is left.

    Args:
        step, steps: done, and to do in all unless the time is up earlier.
        seconds, left: that the steps have taken, and an estimate of what remains.
        each: steps of one pass.
    """
    expected = step * (1 + left / seconds) if seconds > 0 else steps
    total = max(1, -(-min(steps, max(step, round(expected))) // each))
    ended = left <= 0 or step >= steps
    return total if ended else min(total, step // each), total


def write_json(path: Path, facts: Mapping[str, Any]) -> None:
    """Replace a JSON file at once."""
    write_text(path, json.dumps(facts, default=str))


def _read(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _runs(folder: Path) -> list[Path]:
    try:
        return [path for path in (folder / TRAININGS).iterdir() if path.is_dir()]
    except OSError:
        return []

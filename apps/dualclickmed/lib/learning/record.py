"""The record of what annotators submitted and what was trained from it; nothing in it is ever overwritten.

A folder beside the studies holds `record.jsonl`, to which one line is appended for every event, and
`versions/`, a copy of every label file that was ever submitted. The datastore decides which labels are final
(`following`); the record holds who submitted what and when, what it replaced and what was removed.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import logging
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..atomic_files import replacing
from ..configs.wire import RESERVED
from ..imaging.label_map import LabelMap
from ..weights.cards import KINDS, Kind

logger = logging.getLogger(__name__)

FOLDER = "learning"
"""Beside the studies' images."""
EVENTS = "record.jsonl"
VERSIONS = "versions"
FINAL = "final"
UNKNOWN = "unknown"
STARTED, PUBLISHED, REFUSED, FAILED = "started", "published", "refused", "failed"
STOPPED = "stopped"
"""States of a training. One that was cancelled or killed becomes `STOPPED` at the next look at the record."""
_MEANING = ("label_info", "label_names", "labels")
"""Keys sent with a label that tell what its values mean (`imaging.label_files.read_labels`)."""
_ENDINGS = (".nii.gz", ".seg.nrrd")
_NAMES = LabelMap((), RESERVED)


@dataclass(frozen=True)
class Submission:
    """A label that somebody submitted.

    Attributes:
        version: identifies the image and the file's content; equal content of one image has one version.
        image: id in the studies.
        who: the client's id, or the user's.
        time: UTC, ISO 8601.
        file: the copy, in `VERSIONS`.
        labels: names that were sent along.
        clicks: how many clicks the last prediction before it had, where known.
        prediction: which prediction was corrected: task, weights, time; empty where unknown.
        meaning: what was sent along and tells what the file's values mean.
    """

    version: str
    image: str
    who: str
    time: str
    file: str
    labels: tuple[str, ...] = ()
    clicks: int | None = None
    prediction: Mapping[str, Any] = field(default_factory=dict)
    meaning: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """A training, as far as it came; `versions` are the labels that it read, skipped ones included."""

    run: str
    kind: Kind
    time: str
    state: str
    versions: tuple[str, ...]
    labels: tuple[str, ...] = ()
    detail: Mapping[str, Any] = field(default_factory=dict)


class Record:
    """The record in one folder; safe to use from several processes.

    Args:
        folder: made on the first write.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._reading = threading.Lock()
        self._read_until = 0
        self._events: list[dict[str, Any]] = []

    # Writing ----------------------------------------------------------------------------------------------

    def submit(
        self,
        image: str,
        label: Path,
        info: Mapping[str, Any] | None = None,
        prediction: Mapping[str, Any] | None = None,
    ) -> tuple[Submission, Submission | None]:
        """Keep a copy of a final label and note who submitted it.

        Args:
            image: id in the studies.
            label: the file as it came.
            info: what was sent along: `client_id` or `user`, `label_info`, `clicks`.
            prediction: the last prediction for this image, with `clicks`.

        Returns:
            What was noted, and the last submission of another annotator for this image that is no longer
            the final label now; None if there is none.

        Raises:
            OSError: the disk is full or cannot be written; nothing was noted then.
        """
        info, prediction = info or {}, dict(prediction or {})
        version = version_of(image, label)
        before = self.final().get(image)
        clicks = info.get("clicks", prediction.pop("clicks", None))
        submission = Submission(
            version=version,
            image=image,
            who=str(info.get("client_id") or info.get("user") or UNKNOWN)[:100],
            time=now(),
            file=f"{version}{_ending(label)}",
            labels=_names_sent(info),
            clicks=clicks if isinstance(clicks, int) and not isinstance(clicks, bool) else None,
            prediction=prediction,
            meaning={name: info[name] for name in _MEANING if name in info},
        )
        self.keep(image, label)
        self._append({"event": "submitted", **_plain(submission)})
        replaced = before if before is not None and before.who != submission.who else None
        if replaced is not None and replaced.version != version:
            logger.warning(
                "The final label of %s is now by %s; the version of %s from %s is kept as %s",
                image,
                submission.who,
                replaced.who,
                replaced.time,
                self.path_of(replaced),
            )
            return submission, replaced
        return submission, None

    def keep(self, image: str, label: Path) -> Path:
        """Copy a label file to where no later one replaces it; does nothing where that was done before.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        target = self.folder / VERSIONS / f"{version_of(image, label)}{_ending(label)}"
        if not target.exists():
            with replacing(target) as partial:
                shutil.copyfile(label, partial)
        return target

    def removed(self, image: str, why: str) -> None:
        """Note that an image has no final label any more; what was submitted for it stays in `VERSIONS`.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        self._append({"event": "removed", "image": image, "time": now(), "why": why})

    def training(
        self,
        run: str,
        kind: Kind,
        state: str,
        versions: Iterable[str] = (),
        labels: Iterable[str] = (),
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Note how far a training came."""
        event = Training(run, kind, now(), state, tuple(versions), tuple(labels), detail or {})
        self._append({"event": "training", **_plain(event)})

    def _append(self, event: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / EVENTS
        line = json.dumps(event, ensure_ascii=False, default=str).encode() + b"\n"
        with FileLock(str(self.folder / f".{EVENTS}.lock")), path.open("ab") as stream:
            size = stream.tell()
            try:
                # A line that a power failure cut must not be continued by the next one.
                if size and not _ends_with_newline(path):
                    line = b"\n" + line
                stream.write(line)
                stream.flush()
                os.fsync(stream.fileno())
            except OSError:
                os.truncate(path, size)
                raise

    # Reading ----------------------------------------------------------------------------------------------

    def submissions(self) -> list[Submission]:
        """Every submission, the oldest first."""
        return [_submission(e) for e in self._all() if e.get("event") == "submitted"]

    def trainings(self, kind: Kind | None = None) -> list[Training]:
        """Every training as far as it came, in the order in which they started."""
        runs: dict[str, Training] = {}
        for event in self._all():
            if event.get("event") != "training" or (kind is not None and event.get("kind") != kind):
                continue
            found = _training(event)
            started = runs.get(found.run)
            if started is not None and not found.versions:
                found = dataclasses.replace(found, versions=started.versions)
            runs[found.run] = found
        return list(runs.values())

    def standing(self) -> dict[str, dict[str, Submission]]:
        """For each image that has a final label by this record: the last submission of each annotator.

        Those from before a removal do not count any more. The one made last comes last.
        """
        found: dict[str, dict[str, Submission]] = {}
        for event in self._all():
            if event.get("event") == "removed":
                found.pop(str(event.get("image")), None)
            elif event.get("event") == "submitted":
                submission = _submission(event)
                versions = found.setdefault(submission.image, {})
                versions.pop(submission.who, None)
                versions[submission.who] = submission
        return found

    def final(self) -> dict[str, Submission]:
        """For each image the submission that counts by this record: the last one, whoever made it."""
        return {image: list(versions.values())[-1] for image, versions in self.standing().items()}

    def versions(self, image: str) -> list[Submission]:
        """The last submission of each annotator for an image since it was last without a label."""
        return list(self.standing().get(image, {}).values())

    def waiting(
        self, kind: Kind, begun: bool = False, final: Mapping[str, Submission] | None = None
    ) -> list[Submission]:
        """Final labels that no finished training of an expert has seen.

        Args:
            kind: which expert.
            begun: labels of a training that was started count as seen, however it ended.
            final: the labels that are final (None: by this record).
        """
        final = self.final() if final is None else final
        return _unseen(final.values(), self.trainings(kind), begun)

    def labels(self) -> list[str]:
        """The name of every label that was submitted or trained, in the order in which they came."""
        names: dict[str, str] = {}
        for event in self._all():
            for name in event.get("labels", ()):
                if isinstance(name, str):
                    names.setdefault(name.strip().casefold(), name.strip())
        return [name for name in names.values() if name]

    def path_of(self, submission: Submission) -> Path:
        """The copy of a submitted file."""
        return self.folder / VERSIONS / submission.file

    def summary(self, final: Mapping[str, Submission] | None = None) -> dict[str, Any]:
        """For /info: how many labels wait for each expert, who submitted what, the last trainings.

        It takes time in proportion to the record, however many annotators and images there are.

        Args:
            final: the labels that are final (None: by this record).
        """
        standing, trainings = self.standing(), self.trainings()
        if final is None:
            final = {image: list(versions.values())[-1] for image, versions in standing.items()}
        by = Counter(s.who for s in final.values())
        return {
            "submitted": sum(event.get("event") == "submitted" for event in self._all()),
            "final": len(final),
            "waiting": {
                kind: [s.image for s in _unseen(final.values(), [t for t in trainings if t.kind == kind])]
                for kind in KINDS
            },
            "by": {who: by[who] for who in sorted(by)},
            "several_annotators": [image for image in final if len(standing.get(image, {})) > 1],
            "trainings": [
                {"run": t.run, "kind": t.kind, "time": t.time, **t.detail, "state": t.state}
                for t in trainings[-5:]
            ],
        }

    def _all(self) -> Sequence[Mapping[str, Any]]:
        """Every event; only what was appended since the last call is read."""
        with self._reading:
            try:
                self._read_on()
            except FileNotFoundError:
                self._events, self._read_until = [], 0
            return list(self._events)

    def _read_on(self) -> None:
        path = self.folder / EVENTS
        with path.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            if stream.tell() < self._read_until:
                self._events, self._read_until = [], 0
            stream.seek(self._read_until)
            data = stream.read()
        # A line that is being written is left for the next call.
        whole = data.rfind(b"\n") + 1
        for line in data[:whole].splitlines():
            try:
                event = json.loads(line) if line.strip() else None
            except ValueError:
                logger.warning("A damaged line of %s was skipped", path)
                continue
            if event is None:
                continue
            if _is_event(event):
                self._events.append(event)
            else:
                logger.warning("A line of %s that is no event of this record was skipped", path)
        self._read_until += whole


def _unseen(
    final: Iterable[Submission], trainings: Iterable[Training], begun: bool = False
) -> list[Submission]:
    """The final labels that none of the trainings has seen; see `Record.waiting`."""
    ends = (STARTED, PUBLISHED, REFUSED, FAILED, STOPPED) if begun else (PUBLISHED, REFUSED)
    seen = {version for training in trainings if training.state in ends for version in training.versions}
    return [submission for submission in final if submission.version not in seen]


def version_of(image: str, label: Path) -> str:
    """Identifies an image and the content of its label file."""
    digest = hashlib.sha256(image.encode() + b"\0")
    with label.open("rb") as stream:
        for part in iter(lambda: stream.read(1 << 20), b""):
            digest.update(part)
    return digest.hexdigest()[:16]


def now() -> str:
    """UTC, ISO 8601, to the microsecond: events are sorted by it."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat()


def _ending(path: Path) -> str:
    name = path.name.lower()
    ending = next((e for e in _ENDINGS if name.endswith(e)), path.suffix.lower())
    return ending if re.fullmatch(r"(\.[a-z0-9]{1,8}){1,2}", ending) else ""


def _names_sent(info: Mapping[str, Any]) -> tuple[str, ...]:
    entries = info.get("label_info")
    if not isinstance(entries, list):
        entries = [{"name": name} for name in info.get("label_names") or ()]
    names = [e["name"].strip() for e in entries if isinstance(e, Mapping) and isinstance(e.get("name"), str)]
    return tuple(dict.fromkeys(name for name in names if name and _NAMES.admits(name)))


def _plain(event: Submission | Training) -> dict[str, Any]:
    return {name: value for name, value in vars(event).items() if value not in (None, (), {})}


def _submission(event: Mapping[str, Any]) -> Submission:
    return Submission(
        version=str(event["version"]),
        image=str(event["image"]),
        who=str(event["who"]),
        time=str(event["time"]),
        file=str(event["file"]),
        labels=tuple(event.get("labels", ())),
        clicks=event.get("clicks"),
        prediction=event.get("prediction", {}),
        meaning=event.get("meaning") or _meant(event.get("labels", ())),
    )


def _meant(names: Sequence[str]) -> dict[str, Any]:
    """The meaning of a submission by its names, for records of earlier versions."""
    return {"label_info": [{"name": name} for name in names]} if names else {}


def _is_event(event: Any) -> bool:
    """Whether a line holds what events of its kind hold; others may have written to the file."""
    if not isinstance(event, dict):
        return False
    try:
        if event.get("event") == "submitted":
            _submission(event)
        elif event.get("event") == "training":
            _training(event)
    except (KeyError, TypeError, ValueError):
        return False
    return isinstance(event.get("labels", []), list)


def _training(event: Mapping[str, Any]) -> Training:
    return Training(
        run=str(event["run"]),
        kind=event["kind"],
        time=str(event["time"]),
        state=str(event["state"]),
        versions=tuple(event.get("versions", ())),
        labels=tuple(event.get("labels", ())),
        detail=event.get("detail", {}),
    )


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"

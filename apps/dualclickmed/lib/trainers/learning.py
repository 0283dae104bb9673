"""Connects the app to `learning`: submitted labels, predictions, trainings that start by themselves."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monailabel.datastore.dicom import DICOMWebDatastore

from ..configs import wire
from ..configs.options import ServerOptions
from ..errors import UserError
from ..imaging.label_files import LabelError, NamedLabels
from ..imaging.label_map import MAX_LABELS, LabelMap
from ..imaging.volume import Volume, load_volume
from ..learning.final import modality_of, understood, versions_of
from ..learning.following import follow, stored_labels
from ..learning.prior import Prior
from ..learning.record import FINAL, FOLDER, Record, Submission, now
from ..learning.runs import is_training, note_ended, progress_of
from ..weights.files import KINDS, Kind, default_path
from .tasks import ExpertTrainer

logger = logging.getLogger(__name__)

TRAINER = "dualclickmed_{kind}"
WATCH_SECONDS = 5.0
MOST_PREDICTIONS = 1000
"""Images whose last prediction is remembered until their label is submitted."""


class Learning:
    """Keeps the record of one studies folder; safe to use from several threads.

    The datastore decides which labels are final; the record follows it (`learning.following`).

    Args:
        datastore: of the app; from now on its final labels are read and recorded when they are stored.
        folder: where the datastore keeps its files.
        options: the server's.

    Attributes:
        options: with the labels that annotators added.
        record: what was submitted and trained.
        load: opens an image, given its path and modality.
    """

    def __init__(self, datastore: Any, folder: str | Path, options: ServerOptions) -> None:
        self.datastore = datastore
        self.archive = isinstance(datastore, DICOMWebDatastore)
        self.load: Callable[[Path, str | None], Volume] = load_volume
        self.record = Record(Path(folder) / FOLDER)
        self.options = dataclasses.replace(options, labels=with_new(options.labels, self.record.labels()))
        self._saving = threading.RLock()
        self._answers: dict[str, dict[str, Any]] = {}
        self._predictions: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._asked: dict[Kind, set[str]] = {kind: set() for kind in KINDS}
        self._prior: tuple[object, Prior] | None = None
        self._save, self._remove = datastore.save_label, datastore.remove_label
        datastore.save_label, datastore.remove_label = self.save_label, self.remove_label

    def trainers(self, made_by: type[ExpertTrainer] = ExpertTrainer) -> dict[str, Any]:
        """The trainers by name, of this class or of one's own that is made from it."""
        return {
            TRAINER.format(kind=kind): made_by(kind, self.record, self.options, self.final) for kind in KINDS
        }

    def final(self) -> dict[str, Submission]:
        """The labels that are final now, by image: those of the datastore, as the record explains them."""
        with self._saving:
            return follow(self.record, stored_labels(self.datastore, not self.archive), self.archive)

    def save_label(
        self,
        image_id: str,
        label_filename: str,
        label_tag: str,
        label_info: dict[str, Any],
        *further: Any,
        **named: Any,
    ) -> Any:
        """Save a label with the datastore's own method; a final one is checked first, and kept in the record.

        Raises:
            UserError: the label cannot be used; nothing was changed.
        """
        if label_tag != FINAL:
            return self._save(image_id, label_filename, label_tag, label_info, *further, **named)
        info = dict(label_info or {})
        path = Path(label_filename)
        meant = self._understood(image_id, path, info)
        with self._saving:
            self.final()
            self.record.keep(image_id, path)
            saved = self._save(image_id, label_filename, label_tag, label_info, *further, **named)
            prediction = self._predictions.pop(image_id, None)
            submission, replaced = self.record.submit(image_id, path, info, prediction)
            answer: dict[str, Any] = {"version": submission.version, "by": submission.who, **meant}
            if replaced is not None:
                answer["replaced"] = {
                    "by": replaced.who,
                    "time": replaced.time,
                    "kept_as": str(self.record.path_of(replaced)),
                }
            self._answers[image_id] = answer
        return saved

    def remove_label(self, label_id: str, label_tag: str, *further: Any, **named: Any) -> None:
        """The datastore's own, after which the record says that the label was removed."""
        with self._saving:
            self._remove(label_id, label_tag, *further, **named)
            if label_tag == FINAL:
                self.final()

    def _understood(self, image_id: str, label: Path, info: Mapping[str, Any]) -> dict[str, Any]:
        """Labels, voxels, volumes and notes of a label that is submitted.

        Raises:
            UserError: it cannot be used, or its image cannot be opened.
        """
        path = self.datastore.get_image_uri(image_id)
        if not path:
            # The datastore raises its own error for it.
            return {}
        volume = self.load(Path(path), modality_of(self.datastore.get_image_info(image_id)))
        try:
            return understood(volume, label, info, self.options.labels)
        except LabelError as error:
            raise UserError(f"The label of {image_id} was not stored. {error}") from error

    def versions(self, image_id: str) -> tuple[Volume, dict[str, NamedLabels]]:
        """An image, and by annotator the labels submitted for it since it last had none.

        Raises:
            UserError: there is no such image, or it has no final label that can be used.
        """
        path = self.datastore.get_image_uri(image_id) if image_id else ""
        if not path:
            raise UserError(f"There is no image {image_id[:100]!r} in the studies.")
        if image_id not in self.final():
            raise UserError(f"The image {image_id[:100]!r} has no final label.")
        volume = self.load(Path(path), modality_of(self.datastore.get_image_info(image_id)))
        found = versions_of(self.record, image_id, volume, self.options.labels)
        if not found:
            raise UserError(f"None of the labels of {image_id[:100]!r} can be used.")
        return volume, found

    def on_save_label(self, image_id: str) -> dict[str, Any]:
        """The part of the answer to a submitted label that `learning` adds."""
        answer = self._answers.pop(image_id, None)
        return {} if answer is None else {"learning": answer}

    def note_prediction(self, request: Mapping[str, Any]) -> None:
        """Remember which prediction an annotator is about to correct."""
        image = request.get(wire.IMAGE)
        if not isinstance(image, str):
            return
        with self._saving:
            self._predictions[image] = {
                "task": request.get(wire.MODEL),
                "weights": self._served(),
                "time": now(),
                "clicks": clicks_in(request),
            }
            self._predictions.move_to_end(image)
            while len(self._predictions) > MOST_PREDICTIONS:
                self._predictions.popitem(last=False)

    def prior(self) -> Prior:
        """Learned positions and sizes of labels; read again when a training has changed them."""
        path = self.record.folder / "prior.json"
        try:
            state: object = (path.stat().st_mtime_ns, path.stat().st_size)
        except OSError:
            state = None
        if self._prior is None or self._prior[0] != state:
            self._prior = state, Prior.load(self.record.folder)
        return self._prior[1]

    def info(self) -> dict[str, Any]:
        """For /info: what waits for retraining, who submitted what, how far a training is."""
        note_ended(self.record)
        return {**self.record.summary(self.final()), "progress": progress_of(self.record.folder)}

    def latest_first(self, stats: Mapping[str, Any]) -> dict[str, Any]:
        """The trainers' stats with the expert that is or was trained last in front.

        3D Slicer's panel shows the first trainer alone, whichever is training.
        """
        last = TRAINER.format(kind=progress_of(self.record.folder).get("kind"))
        return dict(sorted(stats.items(), key=lambda item: item[0] != last))

    def watch(self, start: Callable[[str], Any]) -> None:
        """Start a training whenever enough final labels wait, as long as the process lives.

        Args:
            start: takes a trainer's name and lets MONAI Label run it after those that run already.
        """
        if self.options.retrain_after < 1:
            return
        threading.Thread(target=self._watch, args=(start,), name="retraining", daemon=True).start()

    def _watch(self, start: Callable[[str], Any]) -> None:
        while True:
            time.sleep(WATCH_SECONDS)
            try:
                for kind in self.due():
                    logger.info("%d labels wait: retraining the %s expert", self.options.retrain_after, kind)
                    start(TRAINER.format(kind=kind))
            except Exception:
                # A full disk must not end the watch; the next attempt may succeed.
                logger.exception("Looking for labels that wait for retraining failed")

    def due(self) -> list[Kind]:
        """The experts to retrain now; each label is counted for one training that starts by itself."""
        if is_training(self.record.folder):
            return []
        found: list[Kind] = []
        final = self.final()
        for kind in KINDS:
            waiting = {s.version for s in self.record.waiting(kind, True, final)} - self._asked[kind]
            if len(waiting) >= self.options.retrain_after:
                self._asked[kind] |= waiting
                found.append(kind)
        return found

    def _served(self) -> dict[str, str]:
        try:
            return {
                kind: default_path(kind, self.options.preset, self.options.model_dir).stem for kind in KINDS
            }
        except UserError:
            return {}


def with_new(labels: LabelMap, names: list[str]) -> LabelMap:
    """The server's labels with those that annotators added, which come last and so change no value."""
    added = [name for name in names if labels.find(name) is None]
    room = MAX_LABELS - len(labels.names)
    if len(added) > room:
        logger.warning("Labels beyond the %dth were left out: %s", MAX_LABELS, ", ".join(added[room:]))
    return LabelMap((*labels.names, *added[:room]))


def clicks_in(request: Mapping[str, Any]) -> int:
    """How many clicks a request holds, in any dialect."""
    return sum(
        sum(isinstance(point, (list, tuple)) and len(point) == 3 for point in value)
        for key, value in request.items()
        if key != wire.ROI and isinstance(value, (list, tuple))
    )

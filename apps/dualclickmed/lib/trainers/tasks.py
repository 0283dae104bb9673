"""The trainers that MONAI Label's clients see, one for each expert."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import HTTPException
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.interfaces.tasks.train import TrainTask

from ..configs.options import ServerOptions
from ..errors import UserError
from ..experts.devices import gpus
from ..learning.final import LabelledStudies, final_labels
from ..learning.following import follow
from ..learning.record import Record, Submission
from ..learning.retraining import Place, Settings, recipe_for, retrain
from ..learning.runs import note_ended, stats_of
from ..training.pipeline import Context, Hooks, Transforms
from ..transforms.cases import click_transforms, sample_transforms
from ..weights.files import Kind, default_path, read_card

logger = logging.getLogger(__name__)

EVERYTHING, DECODER = "everything", "all but the image encoder"
TENSORBOARD, NO_TRACKING = "tensorboard", "None"
NAME = "train"
IGNORED = frozenset({"model", "local_rank", "client_id", "max_workers", "run_id"})
"""Keys that MONAI Label and its clients send and that have no effect here."""
ANSWERED = {
    "dataset": "cases are opened once and kept in memory as far as that is bounded, whatever 'dataset' says",
    "dataloader": "samples are made in the training's own process, whatever 'dataloader' says",
    "val_batch_size": "objects are measured one at a time, as they are served, whatever this says",
    "tracking_uri": "nothing is sent anywhere: TensorBoard's events lie in the studies' learning/trainings",
    "tracking_experiment_name": "'name' names the training; there is no experiment besides",
}
"""Options of MONAI Label's trainings that change nothing here, and why."""
OPTIONS = frozenset(
    {"name", "minutes", "max_epochs", "early_stop_patience", "val_split", "train_batch_size", "pretrained"}
    | {"rate", "replay", "train", "device", "multi_gpu", "gpus", "tracking", "steps", "seed"}
)
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")


class ExpertTrainer(TrainTask):
    """Retrains one expert and publishes it if it is no worse than before (`learning.retraining`).

    Args:
        kind: which expert.
        record: of what was submitted and trained.
        options: the server's.
        final: returns the labels that are final now (None: those of the record).
    """

    def __init__(
        self,
        kind: Kind,
        record: Record,
        options: ServerOptions,
        final: Callable[[], Mapping[str, Submission]] | None = None,
    ) -> None:
        what = "boxes and their corrections" if kind == "global" else "clicks"
        super().__init__(f"Retrain the {kind} expert, which answers {what}, on the final labels")
        self.kind, self.record, self.options = kind, record, options
        self.final = record.final if final is None else final

    @classmethod
    def train_pre_transforms(cls, context: Context) -> Transforms:
        """The transforms from a corrected case to its samples, as MONAI Label's BasicTrainTask calls them.

        A class of one's own may change the list (docs/learning.md). A class method, because several
        processes may train, and each finds it by its name.
        """
        return sample_transforms(context)

    @classmethod
    def get_click_transforms(cls, context: Context) -> Transforms:
        """The transforms from a prediction to the next clicks, as MONAI Label's DeepEdit calls them."""
        return click_transforms(context)

    def config(self) -> dict[str, Any]:
        """What clients may choose; of a list the first is the default."""
        defaults = Settings()
        return {
            "name": NAME,
            "minutes": defaults.minutes,
            "max_epochs": defaults.epochs,
            "early_stop_patience": -1,
            "val_split": defaults.held_out,
            "train_batch_size": self._batch(),
            "pretrained": defaults.pretrained,
            "rate": defaults.rate,
            "replay": defaults.replay,
            "train": [EVERYTHING, DECODER],
            "device": self.options.devices(),
            "multi_gpu": False,
            "gpus": "all",
            "tracking": [TENSORBOARD, NO_TRACKING],
        }

    def stats(self) -> dict[str, Any]:
        """How far the last round of this expert came, in MONAI Label's keys, and what waits for the next one.

        ``epoch`` and ``total_epochs`` are passes over the labelled cases, the latter an estimate while time
        is what ends the training; ``best_metric`` is the mean Dice on held-out labels of the weights that are
        served; ``total_time`` comes with the end.
        """
        note_ended(self.record)
        waiting = self.record.waiting(self.kind, final=self.final())
        return {**stats_of(self.record.folder, self.kind), "waiting": [s.image for s in waiting]}

    def __call__(self, request: Mapping[str, Any], datastore: LabelledStudies) -> dict[str, Any]:
        """Train; MONAI Label calls this in a process of its own.

        Raises:
            HTTPException: status 400 for anything that the user can put right.
        """
        notes = notes_on(request)
        for note in notes:
            logger.warning("%s", note)
        try:
            settings = self.settings(request)
            labels = final_labels(datastore)
            follow(self.record, [label.stored for label in labels], isinstance(datastore, DICOMWebDatastore))
            place = Place(
                self.record,
                self.options.model_dir,
                self.options.preset,
                self.options.labels,
                self.options.consensus,
            )
            command = f"POST /train/dualclickmed_{self.kind} {dict(request)}"
            hooks = Hooks(self.train_pre_transforms, self.get_click_transforms)
            outcome = retrain(self.kind, labels, place, settings, command, hooks=hooks)
        except UserError as error:
            logger.error("The training of the %s expert ended: %s", self.kind, error)
            raise HTTPException(400, str(error)) from error
        return {
            **stats_of(self.record.folder, self.kind),
            "state": outcome.state,
            "weights": outcome.name,
            "reason": outcome.reason,
            "before": outcome.before.card(),
            "after": outcome.after.card(),
            "skipped": outcome.skipped,
            "seconds": round(outcome.seconds),
            "notes": notes,
        }

    def settings(self, request: Mapping[str, Any]) -> Settings:
        """The settings that a request means.

        Raises:
            UserError: a value cannot be used.
        """
        defaults = Settings()
        part = _chosen(request.get("train"), EVERYTHING)
        if part not in (EVERYTHING, DECODER):
            raise UserError(f"'train' must be {EVERYTHING!r} or {DECODER!r}, but it is {part!r}.")
        name = str(_chosen(request.get("name"), NAME))
        if not _NAME.fullmatch(name):
            raise UserError(
                f"'name' must be 1 to 40 letters, digits, '_', '-' and '.', but it is {name[:100]!r}."
            )
        batch = int(_number(request, "train_batch_size", 0, 0, 64))
        return Settings(
            minutes=_number(request, "minutes", defaults.minutes, 0.01, 7 * 24 * 60),
            steps=int(_number(request, "steps", defaults.steps, 1, 1e7)),
            epochs=int(_number(request, "max_epochs", defaults.epochs, 0, 1e5)),
            rate=_number(request, "rate", defaults.rate, 0, 1),
            replay=_number(request, "replay", defaults.replay, 0, 0.95),
            freeze_encoder=part == DECODER,
            device=self.options.device_for(_chosen(request.get("device"), None)),
            seed=int(_number(request, "seed", defaults.seed, 0, 2**31)),
            name="" if name == NAME else name,
            pretrained=_yes(request, "pretrained", defaults.pretrained),
            patience=max(0, int(_number(request, "early_stop_patience", defaults.patience, -1, 1e5))),
            held_out=_number(request, "val_split", defaults.held_out, 0, 0.9),
            batch=0 if batch == self._batch() else batch,
            processes=max(1, len(gpus())) if _yes(request, "multi_gpu", False) else 1,
            events=str(_chosen(request.get("tracking"), TENSORBOARD)) != NO_TRACKING,
        )

    def _batch(self) -> int:
        """Labelled cases of a step, unless a request says otherwise."""
        try:
            path = default_path(self.kind, self.options.preset, self.options.model_dir)
            return recipe_for(self.kind, read_card(path), Settings()).scenes
        except (UserError, KeyError):
            return 1


def notes_on(request: Mapping[str, Any]) -> list[str]:
    """Sentences about options of a request that have no effect."""
    notes = []
    if _yes(request, "multi_gpu", False) and len(gpus()) < 2:
        notes.append(
            f"'multi_gpu' was asked for, but the GPUs that PyTorch can use here are {len(gpus())}: "
            "one process trains."
        )
    tracking = str(_chosen(request.get("tracking"), TENSORBOARD))
    if tracking not in (TENSORBOARD, NO_TRACKING):
        notes.append(f"'tracking' is {tracking[:40]!r}, but TensorBoard's events are what is written.")
    for name, why in ANSWERED.items():
        if _chosen(request.get(name), None) is not None:
            notes.append(f"{name!r} changes nothing: {why}.")
    known = {*OPTIONS, *IGNORED, *ANSWERED}
    unknown = sorted(str(name)[:40] for name in set(request) - known)
    if unknown:
        notes.append(f"The request's {', '.join(unknown)} mean nothing to this training.")
    return notes


def _chosen(value: Any, default: Any) -> Any:
    """The chosen value; of a list, which clients send whole where nothing was chosen, the first."""
    if isinstance(value, (list, tuple)):
        value = value[0] if value else None
    return default if value is None or value == "" else value


def _yes(request: Mapping[str, Any], name: str, default: bool) -> bool:
    value = _chosen(request.get(name), default)
    text = str(value).strip().lower()
    if text not in ("true", "1", "yes", "false", "0", "no"):
        raise UserError(f"{name!r} must be true or false, but it is {value!r}.")
    return text in ("true", "1", "yes")


def _number(request: Mapping[str, Any], name: str, default: float, least: float, most: float) -> float:
    value = _chosen(request.get(name), default)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not least <= number <= most:
        raise UserError(f"'{name}' must be a number from {least:g} to {most:g}, but it is {value!r}.")
    return number

"""The trainers that MONAI Label's clients see, one for each expert."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.tasks.train import TrainTask

from ..configs.options import Options
from ..errors import UserError
from ..learning.final import Studies, final_labels, note_unknown
from ..learning.record import Record
from ..learning.retraining import Place, Settings, progress_of, retrain
from ..weights.files import Kind

logger = logging.getLogger(__name__)

EVERYTHING, DECODER = "everything", "all but the image encoder"
IGNORED = frozenset({"model", "multi_gpu", "gpus", "local_rank", "client_id", "name", "max_workers"})
"""What MONAI Label and its clients send along and that means nothing here."""


class ExpertTrainer(TrainTask):
    """Retrains one expert and publishes it if it is no worse than before (`learning.retraining`).

    Args:
        kind: which expert.
        record: of what was submitted and trained.
        options: the server's.
    """

    def __init__(self, kind: Kind, record: Record, options: Options) -> None:
        what = "boxes and their corrections" if kind == "global" else "clicks"
        super().__init__(f"Retrain the {kind} expert, which answers {what}, on the final labels")
        self.kind, self.record, self.options = kind, record, options

    def config(self) -> dict[str, Any]:
        """What clients may choose; of a list the first is the default."""
        defaults = Settings()
        return {
            "minutes": defaults.minutes,
            "max_epochs": defaults.epochs,
            "rate": defaults.rate,
            "replay": defaults.replay,
            "train": [EVERYTHING, DECODER],
            "device": self.options.devices(),
            "multi_gpu": False,
        }

    def stats(self) -> dict[str, Any]:
        """How far the last round of this expert is or came, and what waits for the next one."""
        told = progress_of(self.record.folder)
        last = told if told.get("kind") == self.kind else {}
        return {**last, "waiting": [s.image for s in self.record.waiting(self.kind)]}

    def __call__(self, request: Mapping[str, Any], datastore: Studies) -> dict[str, Any]:
        """Train; MONAI Label calls this in a process of its own.

        Raises:
            HTTPException: status 400 for anything that the user can put right.
        """
        notes = _notes(request)
        for note in notes:
            logger.warning("%s", note)
        try:
            settings = self.settings(request)
            labels = final_labels(datastore)
            note_unknown(self.record, labels)
            place = Place(self.record, self.options.model_dir, self.options.preset, self.options.labels)
            command = f"POST /train/dualclickmed_{self.kind} {dict(request)}"
            outcome = retrain(self.kind, labels, place, settings, command)
        except UserError as error:
            logger.error("The training of the %s expert ended: %s", self.kind, error)
            raise HTTPException(400, str(error)) from error
        return {
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
        unknown = sorted(set(request) - set(self.config()) - IGNORED - {"steps", "seed"})
        if unknown:
            logger.warning("The request's %s mean nothing to this training", ", ".join(unknown))
        defaults = Settings()
        part = _chosen(request.get("train"), EVERYTHING)
        if part not in (EVERYTHING, DECODER):
            raise UserError(f"'train' must be {EVERYTHING!r} or {DECODER!r}, but it is {part!r}.")
        return Settings(
            minutes=_number(request, "minutes", defaults.minutes, 0.01, 7 * 24 * 60),
            steps=int(_number(request, "steps", defaults.steps, 1, 1e7)),
            epochs=int(_number(request, "max_epochs", defaults.epochs, 0, 1e5)),
            rate=_number(request, "rate", defaults.rate, 0, 1),
            replay=_number(request, "replay", defaults.replay, 0, 0.95),
            freeze_encoder=part == DECODER,
            device=self.options.device_for(_chosen(request.get("device"), None)),
            seed=int(_number(request, "seed", defaults.seed, 0, 2**31)),
        )


def _notes(request: Mapping[str, Any]) -> list[str]:
    """What of a request does not happen though it was asked for, as sentences."""
    wanted = _chosen(request.get("multi_gpu"), False)
    if wanted is True or str(wanted).strip().lower() in ("true", "1"):
        return [
            "'multi_gpu' was asked for, but a few cases are trained on one device; choose it with 'device'. "
            "'torchrun main.py train' trains on several (docs/training.md)."
        ]
    return []


def _chosen(value: Any, default: Any) -> Any:
    """Clients send a list whole where nobody has chosen from it."""
    if isinstance(value, (list, tuple)):
        value = value[0] if value else None
    return default if value is None or value == "" else value


def _number(request: Mapping[str, Any], name: str, default: float, least: float, most: float) -> float:
    value = _chosen(request.get(name), default)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if isinstance(value, bool) or not least <= number <= most:
        raise UserError(f"'{name}' must be a number from {least:g} to {most:g}, but it is {value!r}.")
    return number

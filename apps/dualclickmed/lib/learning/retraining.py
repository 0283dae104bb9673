"""One round of learning: read the final labels, train, compare with the parent, publish or refuse.

Only one round runs at a time in a studies folder. Whenever it is cut short, by a kill or a full disk, what is
served stays as it was, and the next round starts: its lock ends with its process, and its files lie in a
folder of their own that the next round tidies.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..configs.consensus import LAST
from ..errors import UserError
from ..experts.scope import SCOPE_KEY, training_scope_of
from ..imaging.label_map import LabelMap
from ..training.loop import Options, Progress, train
from ..training.pipeline import Hooks
from ..training.recipes import Recipe, changed, fine_tune
from ..training.sources import WeightedSource
from ..weights.files import Kind, default_path, load_expert, read_card, save_expert
from ..weights.lineage import origin_of, trained_images
from . import gate
from .final import FinalLabel, Prepared, prepare
from .lock import training_lock
from .prior import Prior
from .publishing import publish
from .record import FAILED, PUBLISHED, REFUSED, STARTED, STOPPED, Record
from .runs import CANCELLED, ProgressWriter, epochs_of, new_run, note_ended_locked, tidy
from .settings import Settings
from .together import Material, train_together

logger = logging.getLogger(__name__)

BLENDS = (1.0, 0.6, 0.3)
"""Parts of the way from the parent's weights to the trained ones that are tried until one passes the gate.

Weights between the two forget less than they lose of what was learned (Wortsman et al., WiSE-FT, 2022).
"""
REPORT_SECONDS = 5.0
RATE = 6e-4
"""Peak learning rate of the compact preset. More data and time would want less; a few minutes on a few cases
do not, because what the weights knew elsewhere is safe with their origin (`experts.scope`)."""
SIZES: dict[Kind, dict[str, int]] = {
    "global": {"scenes": 1, "targets": 2, "interactions": 1},
    "local": {"scenes": 1, "targets": 2, "interactions": 2},
}
"""Of a step: many small ones learn a few cases faster than few large ones."""
MOST_EXAMPLES = 1000
"""Trained objects that a card lists, the latest ones."""


@dataclass(frozen=True)
class Outcome:
    """How a round ended.

    Attributes:
        state: "published" or "refused".
        name: of the published weights; None if refused.
        reason: why they were refused.
        before, after: what the gate measured.
        skipped: image id to the reason why its label was not used.
        seconds: of the whole round.
    """

    state: str
    name: str | None
    reason: str | None
    before: gate.Report
    after: gate.Report
    skipped: dict[str, str]
    seconds: float


@dataclass
class Place:
    """The folders and settings of the server that a round uses.

    Attributes:
        record: of the studies.
        model_dir: the folder of weights.
        preset: which weights are served; None: what was chosen.
        known: the server's labels.
        consensus: which label trains where there are several annotators, one of `CONSENSUS`.
    """

    record: Record
    model_dir: Path | None = None
    preset: str | None = None
    known: LabelMap = field(default_factory=lambda: LabelMap(()))
    consensus: str = LAST

    @property
    def folder(self) -> Path:
        """Beside the studies."""
        return self.record.folder


def retrain(
    kind: Kind,
    labels: Sequence[FinalLabel],
    place: Place,
    settings: Settings | None = None,
    command: str = "",
    tell: Callable[[Mapping[str, Any]], None] | None = None,
    hooks: Hooks | None = None,
) -> Outcome:
    """Train an expert from the weights that are served, and publish the result if it is no worse.

    Args:
        kind: which expert.
        labels: every final label of the studies.
        place: record, folders, known labels.
        settings: of the training.
        command: for the model card.
        tell: receives the progress, as `progress.json` holds it.
        hooks: make the transforms of samples and clicks, as for `training.loop.train`.

    Raises:
        UserError: another round is running, no label can be used, or the weights cannot be read or published.
        OSError: the disk is full, say.
    """
    settings = settings or Settings()
    with training_lock(place.folder, f"{kind} expert"):
        note_ended_locked(place.record)
        folder = new_run(place.folder, kind, settings.name)
        round_ = _Round(kind, place, settings, folder, command, ProgressWriter(folder, kind, tell), hooks)
        try:
            return round_.go(labels)
        except BaseException as error:
            round_.failed(error)
            raise
        finally:
            tidy(place.folder)


class _Round:
    def __init__(
        self,
        kind: Kind,
        place: Place,
        settings: Settings,
        folder: Path,
        command: str,
        writer: ProgressWriter,
        hooks: Hooks | None,
    ) -> None:
        self.kind, self.place, self.settings = kind, place, settings
        self.folder, self.command = folder, command
        self.run = folder.name
        self.writer, self.hooks = writer, hooks
        self.told = 0.0
        self.noted = False
        self.pass_steps = 1
        self.patience = Patience(settings.patience)
        # Set with the last step, so that the training does not measure its weights: the gate does.
        self.enough = threading.Event()

    def go(self, labels: Sequence[FinalLabel]) -> Outcome:
        kind, place, settings = self.kind, self.place, self.settings
        served = default_path(kind, place.preset, place.model_dir)
        parent = served if settings.pretrained else origin_of(served) or served
        self.say("reading", labels=len(labels))
        prior = Prior.load(place.folder)
        prepared = prepare(labels, self.folder / "labels", place.known, prior, place.record, place.consensus)
        place.record.training(self.run, kind, STARTED, prepared.versions, prepared.labels)
        self.noted = True
        prior.keep(prepared.versions).save(place.folder)
        if not prepared.cases:
            raise UserError(
                "There is nothing to train on: the studies hold "
                + (f"{len(labels)} final labels, but none can be used." if labels else "no final label.")
            )
        training, held = gate.split(list(prepared.cases), trained_images(served), settings.held_out)
        objects = gate.objects_of(prepared.of(held or training))
        self.say("measuring the parent", train=len(training), held_out=len(held))
        before = gate.measure(kind, served, objects, settings.device)
        self.writer.measured(before.mean, 0, better=True)
        logger.info("Before: %s", _sentence(before))
        trained = self.trained(parent, prepared, training)
        name, after, blend = self.best(parent, trained, before, objects)
        logger.info("After: %s", _sentence(after))
        reason = gate.verdict(before, after)
        published = None
        if reason is None:
            card = self.card(prepared, training, held, before, after, blend)
            scope = training_scope_of(parent)
            examples = [*(scope.examples if scope else ()), *prior.keep(prepared.versions).all()]
            card[SCOPE_KEY] = [e.to_dict() for e in dict.fromkeys(examples[-MOST_EXAMPLES:])]
            published = publish(name, parent, card, place.model_dir)
            if place.preset is not None:
                logger.warning(
                    "The server keeps to the preset %s that it was started with; without one it serves %s",
                    place.preset,
                    published,
                )
        return self.ended(prepared, before, after, published, reason)

    def ended(
        self,
        prepared: Prepared,
        before: gate.Report,
        after: gate.Report,
        published: str | None,
        reason: str | None,
    ) -> Outcome:
        """Note how the round ended."""
        seconds = self.writer.seconds
        state = PUBLISHED if reason is None else REFUSED
        detail = {
            **({"weights": published} if published else {"reason": reason}),
            "before": before.card(),
            "after": after.card(),
            "skipped": prepared.skipped,
            "seconds": round(seconds),
        }
        epoch = self.writer.facts["total_epochs"]
        self.writer.measured(after.mean, epoch, better=published is not None)
        self.place.record.training(self.run, self.kind, state, prepared.versions, prepared.labels, detail)
        self.say(state, **detail, epoch=epoch)
        if reason is None:
            logger.info("Published %s after %.0f s", published, seconds)
        else:
            logger.warning("Not published: %s. What was served is served still.", reason)
        return Outcome(state, published, reason, before, after, prepared.skipped, seconds)

    def trained(self, parent: Path, prepared: Prepared, images: Sequence[str]) -> Path:
        """Weights trained on some images, beginning with the parent's."""
        card = read_card(parent)
        recipe = recipe_for(self.kind, card, self.settings)
        options = Options(
            out=self.folder,
            resume=False,
            minutes=self.settings.minutes,
            device=self.settings.device,
            tensorboard=self.settings.events,
        )
        cases = prepared.of(images)
        self.pass_steps = max(
            1, -(-len(cases) // (recipe.scenes * recipe.accumulate * self.settings.processes))
        )
        passes = recipe.epochs or -(-recipe.steps // self.pass_steps)
        self.say("training", epoch=0, total_epochs=passes, steps=passes * self.pass_steps)
        logger.info(
            "Training the %s expert on %d images (%s) for at most %g minutes",
            self.kind,
            len(images),
            ", ".join(prepared.labels),
            self.settings.minutes,
        )
        if self.settings.processes > 1:
            return train_together(
                recipe,
                options,
                self.command,
                Material(cases, parent, self.hooks),
                self.progress,
                self.enough,
                self.settings.processes,
            )
        return train(
            recipe,
            options,
            self.command,
            data=[WeightedSource(cases)],
            start=parent,
            progress=self.progress,
            stop=self.enough,
            hooks=self.hooks,
        )

    def best(
        self, parent: Path, trained: Path, before: gate.Report, objects: gate.Objects
    ) -> tuple[Path, gate.Report, float]:
        """The boldest blend of parent and trained weights that passes the gate; the boldest if none does."""
        first: tuple[Path, gate.Report, float] | None = None
        for blend in BLENDS:
            path = trained if blend == 1 else _blended(self.kind, parent, trained, blend, self.folder)
            self.say("measuring", blend=blend)
            report = gate.measure(self.kind, path, objects, self.settings.device)
            logger.info("%.0f %% of the way: %s", 100 * blend, _sentence(report))
            if gate.verdict(before, report) is None:
                return path, report, blend
            first = first or (path, report, blend)
        assert first is not None
        return first

    def card(
        self,
        prepared: Prepared,
        training: Sequence[str],
        held: Sequence[str],
        before: gate.Report,
        after: gate.Report,
        blend: float,
    ) -> dict[str, Any]:
        how = f"{gate.Start[self.kind]} and {gate.CLICKS} corrective clicks"
        checked = "held-out images" if held else "the training images, because there are too few to hold out"
        return {
            "data": {
                "what": "labels of the annotators, and generated volumes",
                "trained": list(training),
                "held_out": list(held),
                "labels": prepared.labels,
                "versions": prepared.versions,
            },
            "blend": blend,
            "measured": {
                "protocol": f"{how}; on {checked} and on generated volumes",
                "before": before.card(),
                "after": after.card(),
            },
        }

    def progress(self, now: Progress) -> None:
        """After every step."""
        epoch, total = epochs_of(now.step, now.steps, now.seconds, now.left, self.pass_steps)
        if self.patience.over(now.step // self.pass_steps, now.loss) and not self.enough.is_set():
            logger.info("The loss has not fallen for %d passes: the training ends", self.patience.most)
            self.enough.set()
            total = max(1, epoch)
        if now.step >= now.steps or now.left <= 0:
            self.enough.set()
        if time.monotonic() - self.told < REPORT_SECONDS and not self.enough.is_set():
            return
        self.told = time.monotonic()
        # MONAI Label's keys beside this project's own.
        self.say(
            "training",
            **dataclasses.asdict(now),
            epoch=epoch,
            total_epochs=total,
            current_epoch=epoch,
            current_iteration=now.step % self.pass_steps,
            total_iterations=self.pass_steps,
            train={
                "metrics": {"loss": round(now.loss, 4), "train_dice": round(now.dice, 4)},
                "key_metric_name": "train_dice",
            },
        )

    def say(self, state: str, **facts: Any) -> None:
        """Report the state of the round to /info and `queue`."""
        self.writer.say(state, **facts)

    def failed(self, error: BaseException) -> None:
        """Note it as far as the disk allows; the record is whole without the note as well."""
        reason = str(error) or type(error).__name__
        stopped = isinstance(error, (KeyboardInterrupt, SystemExit))
        try:
            if self.noted:
                state, reason = (STOPPED, CANCELLED) if stopped else (FAILED, reason)
                self.place.record.training(self.run, self.kind, state, detail={"reason": reason})
            self.say(CANCELLED if stopped else FAILED, reason=reason)
        except OSError as full:
            logger.warning("That this training failed could not be noted: %s", full)


class Patience:
    """Whether the mean loss of a pass over the cases has stopped falling.

    Args:
        most: passes without a lower one; 0 or less for any number.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._losses: list[float] = []
        self._pass, self._without = 0, 0
        self._best = float("inf")

    def over(self, number: int, loss: float) -> bool:
        """Add the loss of a step of a pass; returns whether the patience is over."""
        if number != self._pass and self._losses:
            mean = sum(self._losses) / len(self._losses)
            self._without = 0 if mean < self._best else self._without + 1
            self._best = min(self._best, mean)
            self._losses, self._pass = [], number
        self._losses.append(loss)
        return 0 < self.most <= self._without


def recipe_for(kind: Kind, card: Mapping[str, Any], settings: Settings) -> Recipe:
    """The recipe of a training that goes on from weights with this card, by the prompts that they know."""
    published = card["preset"] == "paper"
    preset = "paper" if published else "compact"
    if kind == "global" and not published and not card["config"].get("unet_channels"):
        preset = "transformer"
    # Networks of other sizes are small ones too.
    recipe = fine_tune(kind, preset)
    values: dict[str, Any] = {
        **({} if published else SIZES[kind] | {"rate": RATE}),
        "steps": settings.steps,
        "epochs": settings.epochs,
        "replay": settings.replay,
        "freeze_encoder": settings.freeze_encoder,
        "seed": settings.seed,
    }
    if settings.rate > 0:
        values["rate"] = settings.rate
    if settings.batch > 0:
        values["scenes"] = settings.batch
    return changed(recipe, values)


def _blended(kind: Kind, parent: Path, trained: Path, part: float, folder: Path) -> Path:
    """Weights `part` of the way from the parent's to the trained ones, with the trained ones' card."""
    old, new = load_expert(kind, parent), load_expert(kind, trained)
    state: dict[str, Tensor] = old.state_dict()
    for name, value in new.state_dict().items():
        if value.is_floating_point():
            state[name] = state[name] + part * (value - state[name])
        else:
            state[name] = value
    new.load_state_dict(state)
    path = folder / f"blended-{round(100 * part)}.safetensors"
    save_expert(new, kind, path, read_card(trained))
    return path


def _sentence(report: gate.Report) -> str:
    """For the log."""
    parts = [f"{name} {', '.join(f'{d:.3f}' for d in dice)}" for name, dice in report.labels.items()]
    parts.append(f"generated volumes {', '.join(f'{d:.3f}' for d in report.generated)}")
    return "; ".join(parts)

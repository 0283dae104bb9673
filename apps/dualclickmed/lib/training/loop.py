"""The training loop: one path for both experts, for one process and for torchrun; resumable."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..atomic_files import replacing
from ..errors import UserError
from ..experts.precision import training_precision
from ..weights.files import save_expert
from .batches import GlobalBatch, Loaded, LocalBatch
from .checkpoints import CHECKPOINT, random_states, read_checkpoint, restore_random_states
from .counting import object_counts
from .learner import Learner, StepOutcome
from .logs import LogEntry, Progress, RunLog
from .opened import CACHE_BYTES, OpenedCases
from .parallel import Team
from .pipeline import ComposedClicks, Context, Hooks, SamplePipeline
from .plan import labelled_cases, steps_of, with_replay
from .prepare import PreparedCrops
from .recipes import BAD_SHARE, Recipe
from .samples import Samples, Share
from .schedules import rate_factor
from .sources import LabelledCase, WeightedSource, summary
from .validation import validate

logger = logging.getLogger(__name__)

LOG_EVERY = 25


@dataclass
class Options:
    """How a run is carried out, as opposed to what it computes (the recipe).

    Attributes:
        out: folder of checkpoint and log.
        resume: go on from the checkpoint in `out` if there is one.
        minutes: stop after this much time (None: after the recipe's steps); the schedule is fitted to it.
        device: torch device; under torchrun "cuda" means the GPU of the local rank.
        half: train in 16 bits where that is faster (`experts.precision.training_precision`).
        workers: processes that make samples; 0 makes them in the training process.
        save_every: seconds between checkpoints.
        validate_every: steps between validations, 0 for the end only; the recipe may keep the best weights.
        validation: cases to measure on (None: fixed generated objects).
        bad_share: stop when more than this part of the cases can't be used.
        prepared: folder of `main.py prepare` (global expert).
        cache_bytes: memory for opened cases in each process that reads them.
        tensorboard: write scalars and pictures of clicks for TensorBoard.
        picture_every: steps between such pictures.
    """

    out: Path
    resume: bool = True
    minutes: float | None = None
    device: str = "cpu"
    half: bool = True
    workers: int = 0
    save_every: float = 120.0
    validate_every: int = 0
    validation: Sequence[LabelledCase] | None = None
    bad_share: float = BAD_SHARE
    prepared: Path | None = None
    cache_bytes: int = CACHE_BYTES
    tensorboard: bool = False
    picture_every: int = 500


def train(
    recipe: Recipe,
    options: Options,
    command: str = "",
    data: Sequence[WeightedSource] | None = None,
    start: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
    hooks: Hooks | None = None,
) -> Path:
    """Run or resume a training and write the weights with their card.

    Args:
        recipe: what is computed.
        options: how.
        command: for the card.
        data: sources of samples (None: generated scenes). The recipe's share of generated scenes is added to
            labelled cases.
        start: weight file to begin from; a checkpoint in `options.out` goes before it.
        progress: called after every step.
        stop: once another thread sets it, the run drops its present step, saves its checkpoint, writes the
            weights so far without measuring them, and returns.
        hooks: make the transforms for samples of labelled cases and for clicks (None: the same functions
            without MONAI's calling convention).

    Returns:
        The weight file, `<out>/<kind>-<preset>.safetensors`.

    Raises:
        UserError: the folder holds a checkpoint of another recipe, or one without `resume`; the start weights
            can't be used; too many cases can't be used.
    """
    _keep_freed_memory()
    run = _Run(recipe, options, data, start, hooks)
    finished = run.go(progress, stop)
    path = run.export(command, measure=finished)
    run.team.leave()
    return path


def _keep_freed_memory() -> None:
    """Ask the C library to keep freed blocks: each step allocates the same tensors again.

    Returning them to the system and clearing fresh pages takes about a quarter of a training step on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, mmap_max = -1, -4
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_max, 0)


class _Stopped(Exception):
    """A run was asked to end in the middle of a step or a measurement."""


@dataclass
class _Clock:
    """The time of a run, earlier parts included, and its speed since the last row of the log."""

    earlier: float
    begin: float = field(default_factory=time.monotonic)
    row: tuple[int, float] = (0, 0.0)

    @property
    def seconds(self) -> float:
        """That the run has taken."""
        return self.earlier + time.monotonic() - self.begin

    def speed(self, samples: int) -> float:
        """Objects per second since the last row."""
        return (samples - self.row[0]) / max(1e-6, self.seconds - self.row[1])


def _left_to_the_run(worker: int) -> None:
    """In a process that makes batches: ignore Ctrl-C and SIGTERM, which reach the whole group. The run
    handles them and ends its workers once it has saved.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


class _Run:
    def __init__(
        self,
        recipe: Recipe,
        options: Options,
        data: Sequence[WeightedSource] | None = None,
        start: Path | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        self.hooks = hooks
        self.team = Team.joined(options.device)
        self.options, self.device = options, self.team.device
        self.stop = threading.Event()
        options.out.mkdir(parents=True, exist_ok=True)
        checkpoint = options.out / CHECKPOINT
        if checkpoint.exists() and not options.resume:
            raise UserError(f"'{options.out}' holds a checkpoint already: resume it or name another folder.")
        state = read_checkpoint(checkpoint, recipe, self.device) if checkpoint.exists() else None
        dtype = _half_type(self.team) if options.half else None
        self.learner = Learner(recipe, self.team, dtype, state, start, self._check)
        # With samples as the network takes them.
        self.recipe = self.learner.recipe
        self.opened = OpenedCases(self.recipe, options.cache_bytes)
        if hooks is not None:
            self.learner.strategy = ComposedClicks(hooks.clicks, Context(self.recipe, self.opened))
        self.data = with_replay(recipe, data)
        self.prepared = None if options.prepared is None else PreparedCrops(options.prepared, self.recipe)
        self.counts = self._counts()
        self.steps = steps_of(recipe, self.data, self.team.world, self.counts)
        self.step, self.samples, self.seconds = 0, 0, 0.0
        self.best: tuple[float, dict[str, Tensor]] | None = None
        self.bad: dict[str, str] = {}
        self.validated = 0
        if state is not None:
            self._load(state)

    def _counts(self) -> dict[str, int] | None:
        """Objects of each labelled case, where epochs are counted in them; one process counts for all."""
        cases = labelled_cases(self.data)
        if not self.recipe.epochs or not cases:
            return None
        if not self.team.leads:
            self.team.wait()
        counts = object_counts(cases, self.recipe, self.options.out, self.prepared)
        if self.team.leads:
            self.team.wait()
        return counts

    def _check(self) -> None:
        """End here if the run is to stop: a step may take minutes. Several processes end after a step only,
        since none may leave the others waiting.

        Raises:
            _Stopped: it is to stop.
        """
        if self.team.world == 1 and self.stop.is_set():
            raise _Stopped

    # The run --------------------------------------------------------------------------------------

    def go(
        self, progress: Callable[[Progress], None] | None = None, stop: threading.Event | None = None
    ) -> bool:
        """Train to the end; False if `stop` ended it."""
        self.stop = stop or self.stop
        log = RunLog(self.options.out, self.steps, self.step, self.team.leads, self.options.tensorboard)
        if self.team.leads and (cases := labelled_cases(self.data)):
            logger.info("Training on %s, %d steps.", summary(cases), self.steps)
        finished = True
        try:
            self._steps(log, progress)
            if self.recipe.keep == "best":
                self._validated(log)
        except _Stopped:
            finished = False
        finally:
            log.close()
        self.save()
        if self.bad:
            logger.warning(
                "%d of %d cases could not be used: %s.",
                len(self.bad),
                len(labelled_cases(self.data)),
                ", ".join(sorted(self.bad)),
            )
        return finished

    def _steps(self, log: RunLog, progress: Callable[[Progress], None] | None) -> None:
        """All steps that are left.

        Raises:
            _Stopped: the run was asked to stop; it is as it was after its last whole step.
        """
        options = self.options
        clock = _Clock(self.seconds, row=(self.samples, self.seconds))
        saved, first, loader = time.monotonic(), (self.step, self.seconds), self._loader()
        window: list[StepOutcome] = []
        while True:
            self.seconds = clock.seconds
            timed = self.seconds / (60 * options.minutes) if options.minutes else 0.0
            done, stopped = self._agree(max(self.step / self.steps, timed))
            if stopped:
                raise _Stopped
            # At the beginning of a turn, so that a resumed run repeats what was cut short.
            if options.validate_every and self.step % options.validate_every == 0 < self.step:
                self._validated(log)
            if done >= 1:
                return
            batches = [self._next(loader) for _ in range(self.recipe.accumulate)]
            outcome = self._whole_step(batches, done)
            self.seconds = clock.seconds
            window.append(outcome)
            now = self._progress(outcome, first)
            if progress is not None:
                progress(now)
            log.tick(now, clock.speed(self.samples))
            if self.step % LOG_EVERY == 0 or self.step == self.steps:
                log.write(self._entry(window, clock.speed(self.samples)))
                window, clock.row = [], (self.samples, clock.seconds)
            if self.step % options.picture_every == 0:
                log.picture(self.step, batches[-1], outcome.clicks, outcome.last)
            if time.monotonic() - saved > options.save_every:
                self.save()
                saved = time.monotonic()

    def _whole_step(self, batches: Sequence[GlobalBatch | LocalBatch], done: float) -> StepOutcome:
        """A step, or nothing of it.

        Raises:
            _Stopped: the run was asked to stop.
        """
        random = random_states(self.device)
        try:
            factor = rate_factor(self.recipe, done, self.steps)
            outcome = self.learner.optimise(batches, self.step, factor)
        except _Stopped:
            restore_random_states(random)
            raise
        self.step += 1
        self.samples += outcome.samples
        return outcome

    def _progress(self, outcome: StepOutcome, first: tuple[int, float]) -> Progress:
        """Where the run is; `first` is the step and the time that this part of it began with."""
        each = (self.seconds - first[1]) / (self.step - first[0])
        left = (self.steps - self.step) * each
        if self.options.minutes:
            left = min(left, max(0.0, 60 * self.options.minutes - self.seconds))
        return Progress(self.step, self.steps, outcome.loss, outcome.dice[-1], self.seconds, left)

    def _entry(self, window: Sequence[StepOutcome], speed: float) -> LogEntry:
        number = len(window)
        return LogEntry(
            self.step,
            self.samples,
            self.seconds,
            speed,
            self.learner.optimiser.param_groups[0]["lr"],
            sum(o.loss for o in window) / number,
            [sum(o.dice[i] for o in window) / number for i in range(len(window[0].dice))],
        )

    def _loader(self) -> Iterator[Loaded]:
        options, recipe = self.options, self.recipe
        numbers = range(self.step * recipe.accumulate, self.steps * recipe.accumulate)
        # A generator of its own: the loader would draw from the global one, which resuming restores.
        return iter(
            DataLoader(
                self._samples(),
                batch_size=None,
                sampler=numbers,
                num_workers=options.workers,
                generator=torch.Generator(),
                worker_init_fn=_left_to_the_run,
            )
        )

    def _samples(self) -> Samples:
        samples = Samples(
            self.recipe,
            self.data,
            self.recipe.seed,
            Share(self.team.rank, self.team.world),
            self.opened,
            self.prepared,
            self.counts,
        )
        if self.hooks is not None:
            samples.pipeline = SamplePipeline(self.hooks.samples, Context(self.recipe, self.opened))
        return samples

    def _next(self, loader: Iterator[Loaded]) -> GlobalBatch | LocalBatch:
        loaded = next(loader)
        for name, reason in loaded.troubles.items():
            if name not in self.bad:
                self.bad[name] = reason
                logger.warning("Left out: %s", reason)
        if loaded.batch is None:
            raise UserError(
                f"None of the cases can be used; the first one: {next(iter(loaded.troubles.values()))}"
            )
        batch = loaded.batch
        return type(batch)(*(part.to(self.device, non_blocking=True) for part in batch))

    def _agree(self, done: float) -> tuple[float, bool]:
        """The run's progress and whether it stops, the same in every process.

        Raises:
            UserError: more of the cases than the options allow can't be used.
        """
        known = self.team.gathered([done, float(self.stop.is_set()), float(len(self.bad))])
        cases = len(labelled_cases(self.data))
        own_parts = cases >= self.recipe.scenes * self.team.world
        bad = int(known[:, 2].sum() if own_parts else known[:, 2].max())
        if bad > self.options.bad_share * cases:
            raise UserError(
                f"{bad} of {cases} cases can't be used, more than the {self.options.bad_share:.0%} that a "
                f"training puts up with. Among them: {next(iter(self.bad.values()), 'see above')}"
            )
        return float(known[:, 0].max()), bool(known[:, 1].any())

    # What stays -----------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint."""
        if not self.team.leads:
            return
        state = {
            "recipe": dataclasses.asdict(self.recipe),
            **self.learner.state(),
            "best": self.best,
            "random": random_states(self.device),
            "step": self.step,
            "samples": self.samples,
            "validated": self.validated,
            "seconds": self.seconds,
            "steps": self.steps,
        }
        with replacing(self.options.out / CHECKPOINT) as partial:
            torch.save(state, partial)

    def _load(self, state: dict[str, Any]) -> None:
        # The checkpoints of earlier versions lack some of these.
        self.best, self.validated = state.get("best"), state.get("validated", 0)
        restore_random_states(state.get("random", {}))
        self.step, self.samples, self.seconds = state["step"], state["samples"], state["seconds"]
        logger.info("Resumed at step %d after %d samples.", self.step, self.samples)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Mean Dice on the validation cases or on generated objects."""
        return validate(self.learner, network, self.options.validation, self.options.cache_bytes)

    def _validated(self, log: RunLog) -> None:
        """Measure the weights to be kept, at most once for a step, and keep them if they are the best."""
        if self.team.leads and self.validated != self.step:
            logger.info("Measuring the weights of step %d.", self.step)
            measured = self.validate(self.learner.kept)
            score = sum(measured.values()) / len(measured)
            log.validation(self.step, measured)
            if self.recipe.keep == "best" and (self.best is None or score > self.best[0]):
                self.best = score, {k: v.clone() for k, v in self.learner.kept.state_dict().items()}
            self.validated = self.step
        self.team.wait()

    def export(self, command: str, measure: bool = True) -> Path:
        """Write the weights that the recipe keeps, and their card."""
        recipe = self.recipe
        path = self.options.out / f"{recipe.kind}-{recipe.preset}.safetensors"
        if self.team.leads:
            network = self.learner.kept
            if recipe.keep == "best" and self.best is not None:
                network.load_state_dict(self.best[1])
            cases = labelled_cases(self.data)
            where = "generated volumes" if self.options.validation is None else "validation cases"
            card: dict[str, Any] = {
                "command": command,
                "steps": self.step,
                "samples": self.samples,
                "hours": round(self.seconds / 3600, 2),
                "seed": recipe.seed,
                "recipe": dataclasses.asdict(recipe),
                "data": f"labelled: {summary(cases)}" if cases else "generated volumes only",
                "left out": len(self.bad),
                "measured": {},
            }
            if measure:
                logger.info("Measuring the weights on %s.", where)
                with contextlib.suppress(_Stopped):
                    card["measured"] = {f"dice on {where}": self.validate(network)}
            save_expert(network, recipe.kind, path, card)
        self.team.wait()
        return path


def _half_type(team: Team) -> torch.dtype | None:
    """The lower precision if it pays for every process: one that computes slower holds up all."""
    found = training_precision(team.device)
    agreed = bool(team.gathered([float(found is not None)]).all())
    return found if agreed else None

"""The training loop: one path for both experts, for one process and for torchrun; resumable."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..atomic_files import replacing
from ..errors import UserError
from ..experts.precision import training_precision
from ..networks.build import build_global, build_local
from ..networks.configs import GlobalConfig, LocalConfig
from ..networks.features import Features
from ..networks.global_network import GlobalFeatures, RegionNetwork
from ..networks.local_network import LocalFeatures, LocalNetwork
from ..simulation.clicks import STRATEGIES, Clicks, Draws, Strategy
from ..simulation.rounds import global_masks, global_rounds, local_rounds
from ..weights.files import load_expert, save_expert
from .batches import GlobalBatch, Loaded, LocalBatch
from .logs import LogEntry, RunLog
from .losses import dice_focal, hard_dice
from .opened import CACHE_BYTES, OpenedCases
from .parallel import Team
from .prepare import PreparedCrops
from .recipes import Recipe, fitted
from .samples import GENERATED, Samples
from .schedules import rate_factor
from .sources import LabelledCase, WeightedSource, summary

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
# Seeds far from any run's own, so that what is measured was never trained on.
VALIDATION_SEED = 1_000_003
VALIDATION_BATCHES = 12
LOG_EVERY = 25
BAD_SHARE = 0.05


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


@dataclass(frozen=True)
class Progress:
    """Where a training is, after a step.

    Attributes:
        step, steps: done, and to do in all (fewer if the time is up earlier).
        loss: of the step.
        dice: mean Dice of the step's last masks, those after all clicks.
        seconds: that the run has taken, earlier parts included; left: an estimate of what remains.
    """

    step: int
    steps: int
    loss: float
    dice: float
    seconds: float
    left: float


def train(
    recipe: Recipe,
    options: Options,
    command: str = "",
    data: Sequence[WeightedSource] | None = None,
    start: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    stop: threading.Event | None = None,
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
        stop: set it from another thread, and the run lets go of the step that it is in, saves its checkpoint,
            writes the weights so far without measuring them, and returns.

    Returns:
        The weight file, `<out>/<kind>-<preset>.safetensors`.

    Raises:
        UserError: the folder holds a checkpoint of another recipe, or one without `resume`; the start weights
            can't be used; too many cases can't be used.
    """
    _keep_freed_memory()
    run = _Run(recipe, options, data, start)
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


def with_replay(recipe: Recipe, data: Sequence[WeightedSource] | None) -> tuple[WeightedSource, ...]:
    """The sources of a run: those given with the recipe's share of generated scenes, or these alone."""
    if not data:
        return GENERATED
    if recipe.replay > 0 and all(source.cases != "generated" for source in data):
        total = sum(source.weight for source in data)
        return (*data, WeightedSource("generated", total * recipe.replay / (1 - recipe.replay)))
    return tuple(data)


def labelled_cases(data: Sequence[WeightedSource]) -> list[LabelledCase]:
    """All labelled cases of the sources."""
    return [case for source in data if source.cases != "generated" for case in cast(Any, source.cases)]


def steps_of(recipe: Recipe, data: Sequence[WeightedSource], world: int = 1) -> int:
    """Optimiser steps of a run: the recipe's, or those of its epochs over the labelled cases.

    Raises:
        UserError: epochs were asked for, but there are no labelled cases.
    """
    if not recipe.epochs:
        return recipe.steps
    cases = len(labelled_cases(data))
    if not cases:
        raise UserError(
            f"The recipe counts {recipe.epochs} epochs over labelled cases, but there are none; "
            "name them with --data, or give --steps."
        )
    each = recipe.scenes * world * recipe.accumulate
    return recipe.epochs * -(-cases // each)


def masks_of(recipe: Recipe) -> int:
    """Predictions for each object in a step."""
    if recipe.kind == "local":
        return recipe.interactions
    return global_masks(recipe.interactions, recipe.points, recipe.together)


@dataclass
class _Recorder:
    """Remembers the clicks that a strategy gives, for pictures."""

    strategy: Strategy
    clicks: list[Clicks] = field(default_factory=list)

    def __call__(self, *arguments: Any) -> Clicks:
        self.clicks.append(self.strategy(*arguments))
        return self.clicks[-1]


class _Stopped(Exception):
    """A run was asked to end in the middle of a step or a measurement."""


@dataclass(frozen=True)
class _Outcome:
    """Samples of all processes, loss and mean Dice of each mask of one batch, and what a picture shows."""

    samples: int
    loss: float
    dice: list[float]
    clicks: list[Clicks]
    last: Tensor


class _Run:
    def __init__(
        self,
        recipe: Recipe,
        options: Options,
        data: Sequence[WeightedSource] | None = None,
        start: Path | None = None,
    ) -> None:
        self.team = Team.joined(options.device)
        self.recipe, self.options, self.device = recipe, options, self.team.device
        self.data = with_replay(recipe, data)
        self.steps = steps_of(recipe, self.data, self.team.world)
        self.dtype = _half_type(self.team) if options.half else None
        options.out.mkdir(parents=True, exist_ok=True)
        checkpoint = options.out / CHECKPOINT
        if checkpoint.exists() and not options.resume:
            raise UserError(f"'{options.out}' holds a checkpoint already: resume it or name another folder.")
        state = _read_checkpoint(checkpoint, recipe, self.device) if checkpoint.exists() else None
        torch.manual_seed(recipe.seed)
        self.network: nn.Module = _network(recipe, state, start).to(self.device)
        self.recipe = recipe = fitted(recipe, cast(Any, self.network).config)
        self.average: nn.Module = copy.deepcopy(self.network).eval()
        self.parameters = _parameter_groups(self.network, recipe)
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=recipe.rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98)
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        self.step, self.samples, self.seconds = 0, 0, 0.0
        self.best: tuple[float, dict[str, Tensor]] | None = None
        self.bad: dict[str, str] = {}
        self.stop = threading.Event()
        self.validated = 0
        if state is not None:
            self._load(state)

    # One step -------------------------------------------------------------------------------------

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def _masks(self, features: Features, batch: Any, draws: Draws, strategy: Strategy) -> Iterator[Tensor]:
        recipe = self.recipe
        network = self.average if not torch.is_grad_enabled() else self.network
        if isinstance(batch, GlobalBatch):
            return global_rounds(
                cast(RegionNetwork, network),
                cast(GlobalFeatures, features),
                batch.truth,
                batch.valid,
                recipe.interactions,
                recipe.points,
                draws,
                together=recipe.together,
                strategy=strategy,
                first=(batch.points, batch.labels),
                last_only=recipe.last_only,
                boxed=batch.boxed,
            )
        assert isinstance(batch, LocalBatch)
        return local_rounds(
            cast(LocalNetwork, network),
            cast(LocalFeatures, features),
            batch.truth,
            batch.valid,
            batch.owner,
            batch.first,
            recipe.interactions,
            draws,
            strategy=strategy,
            last_only=recipe.last_only,
        )

    def _generator(self, number: int, seed: int) -> torch.Generator:
        return torch.Generator(device=self.device).manual_seed(seed * 1_000_003 + number)

    def _check(self) -> None:
        """End here if the run is to stop: a step may take minutes. Several processes end after a step only,
        since none may leave the others waiting.

        Raises:
            _Stopped: it is to stop.
        """
        if self.team.world == 1 and self.stop.is_set():
            raise _Stopped

    def gradients(self, batch: GlobalBatch | LocalBatch, number: int) -> _Outcome:
        """Add the gradients of one batch to the parameters': its mean loss over samples and masks.

        Each mask's backward pass ends at the embedding, where gradients add up; the encoder's own pass comes
        once, at the end. So memory holds the graph of one mask, however many there are.

        Args:
            batch: this process's part, on its device.
            number: of the batch in the run, which seeds the clicks.
        """
        counts = self.team.gathered([float(len(batch.truth))])[:, 0].tolist()
        total = int(sum(counts))
        draws = Draws(self._generator(number, self.recipe.seed), int(sum(counts[: self.team.rank])), total)
        recorder = _Recorder(STRATEGIES[self.recipe.clicks])
        with self._autocast():
            encoded = cast(Any, self.network).encode(batch.image)
        ends, leaves, features = _leaves(encoded)
        masks = self._masks(features, batch, draws, recorder)
        count = masks_of(self.recipe)
        share = len(batch.truth) / total / count / self.recipe.accumulate
        # Numbers stay on the device until the end: reading one would wait for all that is queued there.
        losses, dice = [], []
        for _ in range(count):
            self._check()
            with self._autocast():
                output = next(masks)
            loss = dice_focal(output, batch.truth, self.recipe.focal)
            self.scaler.scale(loss * share).backward()
            losses.append(loss.detach())
            last = output.detach()
            dice.append(hard_dice(last, batch.truth).mean())
        reached = [(end, leaf.grad) for end, leaf in zip(ends, leaves, strict=True) if leaf.grad is not None]
        if reached:
            torch.autograd.backward([e for e, _ in reached], [g.to(e.dtype) for e, g in reached])
        mean = float(torch.stack(losses).mean())
        return _Outcome(total, mean, torch.stack(dice).tolist(), recorder.clicks, last)

    def optimise(self, batches: Sequence[GlobalBatch | LocalBatch], done: float) -> _Outcome:
        """One step of the optimiser on the gradients of some batches.

        Args:
            batches: as many as the recipe accumulates.
            done: part of the run that is over, in [0, 1], for the schedule.
        """
        recipe = self.recipe
        factor = rate_factor(recipe, self.step, done)
        for group in self.optimiser.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self.network.train()
        self.optimiser.zero_grad(set_to_none=True)
        outcomes = [
            self.gradients(batch, self.step * recipe.accumulate + turn) for turn, batch in enumerate(batches)
        ]
        trained = [p for group in self.parameters for p in group["params"]]
        self.team.sum_gradients(trained)
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(trained, recipe.clip)
        if self.scaler.is_enabled() or bool(torch.isfinite(norm)):
            self.scaler.step(self.optimiser)
        else:
            logger.warning("Step %d skipped: the gradient is not finite.", self.step)
        self.scaler.update()
        decay = min(recipe.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, new in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(new, 1 - decay)
            for kept, current in zip(self.average.buffers(), self.network.buffers(), strict=True):
                kept.copy_(current)
        means = [sum(o.dice[i] for o in outcomes) / len(outcomes) for i in range(len(outcomes[0].dice))]
        return dataclasses.replace(
            outcomes[-1],
            samples=sum(o.samples for o in outcomes),
            loss=sum(o.loss for o in outcomes) / len(outcomes),
            dice=means,
        )

    # The run --------------------------------------------------------------------------------------

    def go(
        self, progress: Callable[[Progress], None] | None = None, stop: threading.Event | None = None
    ) -> bool:
        """Train to the end; False if `stop` ended it."""
        options, recipe = self.options, self.recipe
        self.stop = stop or self.stop
        begin, saved, earlier, first = time.monotonic(), time.monotonic(), self.seconds, self.step
        log = RunLog(options.out, self.steps, self.step, self.team.leads, options.tensorboard)
        if self.team.leads and (cases := labelled_cases(self.data)):
            logger.info("Training on %s, %d steps.", summary(cases), self.steps)
        loader = self._loader()
        finished, window = True, []
        random: dict[str, Tensor] | None = None
        try:
            while True:
                random = None
                self.seconds = earlier + time.monotonic() - begin
                timed = self.seconds / (60 * options.minutes) if options.minutes else 0.0
                done, stopped = self._agree(max(self.step / self.steps, timed))
                if stopped:
                    raise _Stopped
                # At the beginning of a turn, so that a resumed run makes up for one that was cut short.
                if options.validate_every and self.step % options.validate_every == 0 < self.step:
                    self._validated(log)
                if done >= 1:
                    break
                batches = [self._next(loader) for _ in range(recipe.accumulate)]
                random = _random_states(self.device)
                outcome = self.optimise(batches, done)
                self.step += 1
                self.samples += outcome.samples
                self.seconds = earlier + time.monotonic() - begin
                window.append(outcome)
                each = (self.seconds - earlier) / (self.step - first)
                left = (self.steps - self.step) * each
                if options.minutes:
                    left = min(left, max(0.0, 60 * options.minutes - self.seconds))
                if progress is not None:
                    progress(
                        Progress(self.step, self.steps, outcome.loss, outcome.dice[-1], self.seconds, left)
                    )
                log.tick(self.step, outcome.loss, outcome.dice[-1], left)
                if self.step % LOG_EVERY == 0 or self.step == self.steps:
                    log.write(self._entry(window))
                    window = []
                if self.step % options.picture_every == 0:
                    log.picture(self.step, batches[-1], outcome.clicks, outcome.last)
                if time.monotonic() - saved > options.save_every:
                    self.save()
                    saved = time.monotonic()
            if recipe.keep == "best":
                self._validated(log)
        except _Stopped:
            finished = False
            if random is not None:
                _restore_random_states(random)
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

    def _entry(self, window: Sequence[_Outcome]) -> LogEntry:
        number = len(window)
        return LogEntry(
            self.step,
            self.samples,
            self.seconds,
            self.optimiser.param_groups[0]["lr"],
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
            )
        )

    def _samples(self) -> Samples:
        options = self.options
        prepared = None if options.prepared is None else PreparedCrops(options.prepared, self.recipe)
        return Samples(
            self.recipe,
            self.data,
            self.recipe.seed,
            self.team.rank,
            self.team.world,
            OpenedCases(self.recipe, options.cache_bytes),
            prepared,
        )

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
        """How far the run is and whether it stops, the same in every process.

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

    # Checkpoints ----------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint under another name first: an interrupted write leaves the old one."""
        if not self.team.leads:
            return
        path = self.options.out / CHECKPOINT
        state = {
            "recipe": dataclasses.asdict(self.recipe),
            "config": cast(Any, self.network).config.to_dict(),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "best": self.best,
            "random": _random_states(self.device),
            "step": self.step,
            "samples": self.samples,
            "validated": self.validated,
            "seconds": self.seconds,
            "steps": self.steps,
        }
        with replacing(path) as partial:
            torch.save(state, partial)

    def _load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        rates = [(group["initial_lr"], group["weight_decay"]) for group in self.optimiser.param_groups]
        self.optimiser.load_state_dict(state["optimiser"])
        for group, (rate, decay) in zip(self.optimiser.param_groups, rates, strict=True):
            group["initial_lr"], group["weight_decay"] = rate, decay
        # The checkpoints of earlier versions lack these, and those of other devices have no scale.
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])
        self.best, self.validated = state.get("best"), state.get("validated", 0)
        _restore_random_states(state.get("random", {}))
        self.step, self.samples, self.seconds = state["step"], state["samples"], state["seconds"]
        logger.info("Resumed at step %d after %d samples.", self.step, self.samples)

    # The result -----------------------------------------------------------------------------------

    def validate(self) -> dict[str, float]:
        """Mean Dice of the averaged weights on fixed objects, from the first prompt and after each click.

        The objects are those of the validation cases, or generated ones.
        """
        recipe = dataclasses.replace(self.recipe, affine=0.0, flip=0.0, rotate=0.0, intensity=0.0)
        cases = self.options.validation
        data = GENERATED if not cases else (WeightedSource(cases),)
        source = Samples(recipe, data, VALIDATION_SEED, opened=OpenedCases(recipe, self.options.cache_bytes))
        number = VALIDATION_BATCHES if not cases else -(-len(cases) // recipe.scenes)
        totals: list[Tensor] = []
        with torch.inference_mode():
            for turn in range(number):
                self._check()
                batch = source[turn].batch
                if batch is None:
                    raise UserError("None of the validation cases can be used.")
                batch = type(batch)(*(part.to(self.device) for part in batch))
                draws = Draws(self._generator(turn, VALIDATION_SEED))
                with self._autocast():
                    features = cast(Any, self.average).encode(batch.image)
                    masks = self._masks(features, batch, draws, STRATEGIES[recipe.clicks])
                    dice = [hard_dice(mask, batch.truth) for mask in masks]
                totals.append(torch.stack(dice, dim=1).cpu())
        means = torch.cat(totals).mean(dim=0).tolist()
        names = ["first prompt"] + [f"{i} clicks" for i in range(1, len(means))]
        return {name: round(mean, 4) for name, mean in zip(names, means, strict=True)}

    def _validated(self, log: RunLog) -> None:
        """Measure once a step, and remember the averaged weights if they are the best so far."""
        if self.team.leads and self.validated != self.step:
            measured = self.validate()
            score = sum(measured.values()) / len(measured)
            log.validation(self.step, measured)
            if self.recipe.keep == "best" and (self.best is None or score > self.best[0]):
                self.best = score, {k: v.clone() for k, v in self.average.state_dict().items()}
            self.validated = self.step
        self.team.wait()

    def export(self, command: str, measure: bool = True) -> Path:
        """Write the weights that the recipe keeps, and their card."""
        recipe = self.recipe
        path = self.options.out / f"{recipe.kind}-{recipe.preset}.safetensors"
        if self.team.leads:
            if recipe.keep == "last":
                self.average.load_state_dict(self.network.state_dict())
            elif recipe.keep == "best" and self.best is not None:
                self.average.load_state_dict(self.best[1])
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
                with contextlib.suppress(_Stopped):
                    card["measured"] = {f"dice on {where}": self.validate()}
            save_expert(self.average, recipe.kind, path, card)
        self.team.wait()
        return path


def _half_type(team: Team) -> torch.dtype | None:
    """The lower precision if it pays for every process: one that computes slower holds up all."""
    found = training_precision(team.device)
    agreed = bool(team.gathered([float(found is not None)]).all())
    return found if agreed else None


def _network(recipe: Recipe, state: dict[str, Any] | None, start: Path | None) -> nn.Module:
    if state is None and start is not None:
        return load_expert(recipe.kind, start)
    # The checkpoints of earlier versions have no configuration.
    config = None if state is None else state.get("config")
    if recipe.kind == "global":
        return build_global(recipe.preset if config is None else GlobalConfig.from_dict(config))
    return build_local(recipe.preset if config is None else LocalConfig.from_dict(config))


def _parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """AdamW's groups: all parameters, or image encoder and the rest where their rates differ."""
    encoder = {id(p) for p in cast(Any, network).image_encoder.parameters()}
    if recipe.freeze_encoder:
        for parameter in cast(Any, network).image_encoder.parameters():
            parameter.requires_grad_(False)
    parts = [list(network.parameters())]
    rates = [recipe.rate]
    if recipe.freeze_encoder or recipe.decoder_rate != 1:
        parts = [
            [p for p in network.parameters() if id(p) in encoder and p.requires_grad],
            [p for p in network.parameters() if id(p) not in encoder],
        ]
        rates = [recipe.rate, recipe.rate * recipe.decoder_rate]
    return [
        {"params": part, "lr": rate, "initial_lr": rate}
        for part, rate in zip(parts, rates, strict=True)
        if part
    ]


def _leaves(features: Features) -> tuple[list[Tensor], list[Tensor], Features]:
    """Cut the graph behind encoded images.

    Returns:
        The tensors at the encoder's end, float32 leaves that collect their gradients (those of 16 bits would
        lose most of thirty small sums), and features made of the leaves, in the encoder's own type.
    """
    ends = [features.embedding, *features.skips]
    leaves = [end.detach().float().requires_grad_(end.requires_grad) for end in ends]
    embedding, *skips = (leaf.to(end.dtype) for leaf, end in zip(leaves, ends, strict=True))
    return ends, leaves, type(features)(embedding, tuple(skips))


def _read_checkpoint(path: Path, recipe: Recipe, device: torch.device) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        was, now = state["recipe"], dataclasses.asdict(recipe)
    except Exception as error:  # PyTorch lets a damaged file end in errors of a dozen types.
        first = (str(error) or repr(error)).splitlines()[0]
        raise UserError(
            f"The checkpoint '{path}' can't be read ({first}); remove it or name another folder."
        ) from error
    differ = [key for key in ("kind", "preset", "seed") if was[key] != now[key]]
    if differ:
        raise UserError(
            "The checkpoint in '{}' belongs to another run: {}.".format(
                path.parent, ", ".join(f"{key} is {was[key]}, asked for {now[key]}" for key in differ)
            )
        )
    return state


def _random_states(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_random_states(states: dict[str, Tensor]) -> None:
    if "cpu" in states:
        torch.set_rng_state(states["cpu"].cpu())
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())

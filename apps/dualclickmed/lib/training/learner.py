"""The learner: a network, its running mean and its optimiser, and one step of them."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..networks.build import build_global, build_local
from ..networks.configs import GlobalConfig, LocalConfig
from ..networks.features import Features
from ..networks.global_network import GlobalFeatures, RegionNetwork
from ..networks.local_network import LocalFeatures, LocalNetwork
from ..simulation.clicks import STRATEGIES, Clicks, Draws, Strategy
from ..simulation.rounds import LocalRounds, Targets, global_rounds, local_rounds
from ..weights.files import load_expert
from .batches import GlobalBatch, LocalBatch
from .losses import dice_focal, hard_dice
from .parallel import Team
from .plan import global_plan, masks_of
from .recipes import Recipe, fitted

logger = logging.getLogger(__name__)


@dataclass
class _Recorder:
    """Keeps the clicks that a strategy gives, for pictures."""

    strategy: Strategy
    clicks: list[Clicks] = field(default_factory=list)

    def __call__(self, *arguments: Any) -> Clicks:
        self.clicks.append(self.strategy(*arguments))
        return self.clicks[-1]


@dataclass(frozen=True)
class StepOutcome:
    """Samples of all processes, loss and mean Dice of each mask of one batch, and the data of a picture."""

    samples: int
    loss: float
    dice: list[float]
    clicks: list[Clicks]
    last: Tensor


class Learner:
    """A network in training.

    Args:
        recipe: its numbers; `self.recipe` has samples as the network takes them (`fitted`).
        team: the processes that share the batches.
        dtype: what to compute in, None for float32.
        state: of a checkpoint to go on from (`state`), or None.
        start: weight file to begin from when there is no state.
        check: called before every mask; it may raise to end a step, of which nothing stays then.

    Attributes:
        strategy: where simulated users click; the recipe's, unless another is set.
    """

    def __init__(
        self,
        recipe: Recipe,
        team: Team,
        dtype: torch.dtype | None = None,
        state: dict[str, Any] | None = None,
        start: Path | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.recipe, self.team, self.dtype, self.check = recipe, team, dtype, check
        self.device = team.device
        self.strategy: Strategy = STRATEGIES[recipe.clicks]
        torch.manual_seed(recipe.seed)
        self.network: nn.Module = _network(recipe, state, start).to(self.device)
        self.recipe = recipe = fitted(recipe, cast(Any, self.network).config)
        self.average: nn.Module = copy.deepcopy(self.network).eval()
        self.groups = _parameter_groups(self.network, recipe)
        first, second = recipe.betas
        self.optimiser = torch.optim.AdamW(
            self.groups, lr=recipe.rate, weight_decay=recipe.weight_decay, betas=(first, second)
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype is torch.float16)
        if state is not None:
            self._load(state)

    @property
    def kept(self) -> nn.Module:
        """The network whose weights the recipe would keep now: the last, or the running mean."""
        return self.network.eval() if self.recipe.keep == "last" else self.average

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the run."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def generator(self, number: int, seed: int) -> torch.Generator:
        """Random numbers of one batch."""
        return torch.Generator(device=self.device).manual_seed(seed * 1_000_003 + number)

    def masks(
        self,
        network: nn.Module,
        features: Features,
        batch: GlobalBatch | LocalBatch,
        draws: Draws,
        strategy: Strategy,
    ) -> Iterator[Tensor]:
        """Logits (B, K, D, H, W) of a batch's rounds, as `global_rounds` or `local_rounds` yields them."""
        recipe = self.recipe
        if isinstance(batch, GlobalBatch):
            return global_rounds(
                cast(RegionNetwork, network),
                cast(GlobalFeatures, features),
                Targets(batch.truth, batch.valid),
                global_plan(recipe),
                draws,
                strategy=strategy,
                first=(batch.points, batch.labels),
                boxed=batch.boxed,
            )
        return local_rounds(
            cast(LocalNetwork, network),
            cast(LocalFeatures, features),
            Targets(batch.truth, batch.valid),
            batch.owner,
            batch.first,
            LocalRounds(recipe.interactions, recipe.last_only),
            draws,
            strategy=strategy,
        )

    def gradients(self, batch: GlobalBatch | LocalBatch, number: int) -> StepOutcome:
        """Add the gradients of one batch to the parameters': its mean loss over samples and masks.

        Each decoding's backward pass ends at the embedding, where gradients add up; the encoder's own pass
        comes once, at the end. So memory holds the graph of one decoding, however many there are.

        Args:
            batch: this process's part, on its device.
            number: of the batch in the run, which seeds the clicks.
        """
        recipe, own = self.recipe, len(batch.truth)
        counts = self.team.gathered([float(own)])[:, 0].tolist()
        total = int(sum(counts))
        generator = self.generator(number, recipe.seed)
        draws = Draws(generator, int(sum(counts[: self.team.rank])), total)
        recorder = _Recorder(self.strategy)
        with self.autocast():
            encoded = cast(Any, self.network).encode(batch.image)
        ends, leaves, features = _leaves(encoded)
        masks = self.masks(self.network, features, batch, draws, recorder)
        share = own / total / masks_of(recipe) / recipe.accumulate
        # Numbers stay on the device until the end, because reading one waits for all queued work.
        losses, dice, done = [], [], 0
        while done < masks_of(recipe):
            self.check()
            with self.autocast():
                output = next(masks)
            alike = output.shape[1]
            truth = batch.truth.repeat_interleave(alike, dim=0)
            loss = dice_focal(output.flatten(0, 1), truth, recipe.focal) * alike
            self.scaler.scale(loss * share).backward()
            losses.append(loss.detach())
            scores = hard_dice(output.detach().flatten(0, 1), truth)
            dice.append(scores.unflatten(0, (own, alike)).mean(dim=0))
            last, done = output.detach()[:, 0], done + alike
        reached = [(end, leaf.grad) for end, leaf in zip(ends, leaves, strict=True) if leaf.grad is not None]
        if reached:
            torch.autograd.backward([e for e, _ in reached], [g.to(e.dtype) for e, g in reached])
        mean = float(torch.stack(losses).sum()) / done
        return StepOutcome(total, mean, torch.cat(dice).tolist(), recorder.clicks, last)

    def optimise(self, batches: Sequence[GlobalBatch | LocalBatch], step: int, factor: float) -> StepOutcome:
        """One step of the optimiser on the gradients of some batches.

        Args:
            batches: as many as the recipe accumulates.
            step: its number in the run.
            factor: what the peak rate is multiplied by (`schedules.rate_factor`).
        """
        recipe = self.recipe
        for group in self.optimiser.param_groups:
            group["lr"] = group["initial_lr"] * factor
        self.network.train()
        self.optimiser.zero_grad(set_to_none=True)
        outcomes = [
            self.gradients(batch, step * recipe.accumulate + turn) for turn, batch in enumerate(batches)
        ]
        trained = [p for group in self.groups for p in group["params"]]
        self.team.sum_gradients(trained)
        self.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(trained, recipe.clip)
        if self.scaler.is_enabled() or bool(torch.isfinite(norm)):
            self.scaler.step(self.optimiser)
        else:
            logger.warning("Step %d skipped: the gradient is not finite.", step)
        self.scaler.update()
        self._average(step)
        means = [sum(o.dice[i] for o in outcomes) / len(outcomes) for i in range(len(outcomes[0].dice))]
        return dataclasses.replace(
            outcomes[-1],
            samples=sum(o.samples for o in outcomes),
            loss=sum(o.loss for o in outcomes) / len(outcomes),
            dice=means,
        )

    @torch.no_grad()
    def _average(self, step: int) -> None:
        decay = min(self.recipe.average, (1 + step) / (10 + step))
        for mean, new in zip(self.average.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(new, 1 - decay)
        for kept, current in zip(self.average.buffers(), self.network.buffers(), strict=True):
            kept.copy_(current)

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of the learner."""
        return {
            "config": cast(Any, self.network).config.to_dict(),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def _load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        rates = [(group["initial_lr"], group["weight_decay"]) for group in self.optimiser.param_groups]
        self.optimiser.load_state_dict(state["optimiser"])
        for group, (rate, decay) in zip(self.optimiser.param_groups, rates, strict=True):
            group["initial_lr"], group["weight_decay"] = rate, decay
            group["betas"] = self.recipe.betas
        # Checkpoints of earlier versions lack it, and those of other devices have no scale.
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])


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

"""The training loop on generated volumes: one path for both experts, resumable, on any device."""

from __future__ import annotations

import copy
import csv
import ctypes
import dataclasses
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..errors import UserError
from ..networks.build import GlobalNetwork, LocalNetwork, build_global, build_local
from ..simulation.rounds import global_rounds, local_rounds
from ..weights import save_expert
from .losses import dice_focal, hard_dice
from .recipes import Recipe
from .samples import GlobalBatch, GlobalSource, LocalBatch, LocalSource

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
LOG = "log.csv"
# Seeds far from any run's own, so that what is measured was never trained on.
VALIDATION_SEED = 1_000_003
VALIDATION_BATCHES = 12
LOG_EVERY = 25


@dataclass
class Options:
    """How a run is carried out, as opposed to what it computes (the recipe).

    Attributes:
        out: folder of checkpoint and log.
        resume: go on from the checkpoint in `out` if there is one.
        minutes: stop after this much time (None: after the recipe's steps); the cool-down is fitted to it.
        device: torch device.
        half: train in bfloat16 where autocast allows it.
        workers: processes that make samples; 0 makes them in the training process.
        save_every: seconds between checkpoints.
    """

    out: Path
    resume: bool = True
    minutes: float | None = None
    device: str = "cpu"
    half: bool = True
    workers: int = 0
    save_every: float = 120.0


def train(recipe: Recipe, options: Options, command: str = "") -> Path:
    """Run or resume a training and write the averaged weights with their card.

    Returns:
        The weight file, `<out>/<kind>-<preset>.safetensors`.

    Raises:
        UserError: the folder holds a checkpoint of another recipe, or one without `resume`.
    """
    _keep_freed_memory()
    run = _Run(recipe, options)
    run.go()
    return run.export(command)


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


class _Run:
    def __init__(self, recipe: Recipe, options: Options) -> None:
        self.recipe, self.options = recipe, options
        self.device = torch.device(options.device)
        torch.manual_seed(recipe.seed)
        build = build_global if recipe.kind == "global" else build_local
        self.network: nn.Module = build(recipe.preset).to(self.device)
        self.average: nn.Module = copy.deepcopy(self.network).eval()
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay, betas=(0.9, 0.98)
        )
        self.step, self.samples, self.seconds = 0, 0, 0.0
        options.out.mkdir(parents=True, exist_ok=True)
        checkpoint = options.out / CHECKPOINT
        if checkpoint.exists():
            if not options.resume:
                raise UserError(
                    f"'{options.out}' holds a checkpoint already: resume it or name another folder."
                )
            self._load(checkpoint)

    # One step -------------------------------------------------------------------------------------

    def _outputs(
        self, network: nn.Module, batch: Any, clicks: torch.Generator
    ) -> tuple[list[Tensor], Tensor]:
        recipe = self.recipe
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.options.half):
            if isinstance(batch, GlobalBatch):
                assert isinstance(network, GlobalNetwork)
                return (
                    global_rounds(
                        network,
                        batch.image,
                        batch.truth,
                        batch.valid,
                        recipe.interactions,
                        recipe.points,
                        clicks,
                        together=recipe.together,
                    ),
                    batch.truth,
                )
            assert isinstance(network, LocalNetwork) and isinstance(batch, LocalBatch)
            return (
                local_rounds(
                    network,
                    batch.image,
                    batch.truth,
                    batch.valid,
                    batch.owner,
                    batch.first,
                    recipe.interactions,
                    clicks,
                ),
                batch.truth,
            )

    def _clicks(self, number: int, seed: int) -> torch.Generator:
        return torch.Generator(device=self.device).manual_seed(seed * 1_000_003 + number)

    def _rate(self, progress: float) -> float:
        warm = min(1.0, (self.step + 1) / self.recipe.warmup)
        left = (1.0 - progress) / self.recipe.cooldown if self.recipe.cooldown > 0 else 1.0
        return self.recipe.rate * warm * min(1.0, max(0.0, left))

    def _optimise(self, batch: Any, progress: float) -> tuple[float, list[float]]:
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate(progress)
        self.network.train()
        outputs, truth = self._outputs(self.network, batch, self._clicks(self.step, self.recipe.seed))
        loss = torch.stack([dice_focal(o, truth, self.recipe.focal) for o in outputs]).mean()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        if bool(torch.isfinite(norm)):
            self.optimiser.step()
        else:
            logger.warning("Step %d skipped: the gradient is not finite.", self.step)
        decay = min(self.recipe.average, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, new in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.lerp_(new, 1 - decay)
            for kept, current in zip(self.average.buffers(), self.network.buffers(), strict=True):
                kept.copy_(current)
        return float(loss.detach()), [float(hard_dice(o.detach(), truth).mean()) for o in outputs]

    # The run --------------------------------------------------------------------------------------

    def go(self) -> None:
        recipe, options = self.recipe, self.options
        begin, saved = time.monotonic(), time.monotonic()
        earlier = self.seconds
        loader = self._loader(_source(recipe, recipe.seed), range(self.step, recipe.steps))
        bar = tqdm(total=recipe.steps, initial=self.step, unit="step", dynamic_ncols=True)
        window: list[tuple[float, list[float]]] = []
        for batch in loader:
            self.seconds = earlier + time.monotonic() - begin
            timed = self.seconds / (60 * options.minutes) if options.minutes else 0.0
            progress = max(self.step / recipe.steps, timed)
            if progress >= 1:
                break
            batch = type(batch)(*(part.to(self.device, non_blocking=True) for part in batch))
            window.append(self._optimise(batch, progress))
            self.step += 1
            self.samples += len(batch.truth)
            bar.update()
            if self.step % LOG_EVERY == 0:
                loss = sum(w[0] for w in window) / len(window)
                dice = [sum(w[1][i] for w in window) / len(window) for i in range(len(window[0][1]))]
                bar.set_postfix(loss=f"{loss:.3f}", dice=" ".join(f"{d:.3f}" for d in dice))
                self._log(loss, dice)
                window = []
            if time.monotonic() - saved > options.save_every:
                self.save()
                saved = time.monotonic()
        bar.close()
        self.save()

    def _loader(self, source: Dataset[Any], numbers: range) -> Iterator[Any]:
        return iter(DataLoader(source, batch_size=None, sampler=numbers, num_workers=self.options.workers))

    def _log(self, loss: float, dice: list[float]) -> None:
        path = self.options.out / LOG
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(
                    ["step", "samples", "seconds", "rate", "loss", *(f"dice_{i}" for i in range(len(dice)))]
                )
            rate = self.optimiser.param_groups[0]["lr"]
            writer.writerow(
                [self.step, self.samples, f"{self.seconds:.0f}", f"{rate:.2e}", f"{loss:.4f}"]
                + [f"{d:.4f}" for d in dice]
            )

    # Checkpoints ----------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint under another name first: an interrupted write leaves the old one."""
        path = self.options.out / CHECKPOINT
        state = {
            "recipe": dataclasses.asdict(self.recipe),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "samples": self.samples,
            "seconds": self.seconds,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def _load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        was, now = state["recipe"], dataclasses.asdict(self.recipe)
        differ = [key for key in ("kind", "preset", "seed") if was[key] != now[key]]
        if differ:
            raise UserError(
                "The checkpoint in '{}' belongs to another run: {}.".format(
                    self.options.out,
                    ", ".join(f"{key} is {was[key]}, asked for {now[key]}" for key in differ),
                )
            )
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.samples, self.seconds = state["step"], state["samples"], state["seconds"]
        logger.info("Resumed at step %d after %d samples.", self.step, self.samples)

    def validate(self) -> dict[str, float]:
        """Mean Dice of the averaged weights on fixed generated objects, from the first prompt and after
        each click.
        """
        source = _source(self.recipe, VALIDATION_SEED)
        totals: list[Tensor] = []
        with torch.inference_mode():
            for number in range(VALIDATION_BATCHES):
                batch = source[number]
                batch = type(batch)(*(part.to(self.device) for part in batch))
                outputs, truth = self._outputs(self.average, batch, self._clicks(number, VALIDATION_SEED))
                totals.append(torch.stack([hard_dice(o, truth) for o in outputs], dim=1).cpu())
        means = torch.cat(totals).mean(dim=0).tolist()
        names = ["first prompt"] + [f"{i} clicks" for i in range(1, len(means))]
        return {name: round(mean, 4) for name, mean in zip(names, means, strict=True)}

    def export(self, command: str) -> Path:
        recipe = self.recipe
        path = self.options.out / f"{recipe.kind}-{recipe.preset}.safetensors"
        card = {
            "command": command,
            "steps": self.step,
            "samples": self.samples,
            "hours": round(self.seconds / 3600, 2),
            "seed": recipe.seed,
            "recipe": dataclasses.asdict(recipe),
            "data": "generated volumes only",
            "measured": {"dice on generated volumes": self.validate()},
        }
        save_expert(self.average, recipe.kind, path, card)
        return path


def _source(recipe: Recipe, seed: int) -> GlobalSource | LocalSource:
    if recipe.kind == "global":
        return GlobalSource(recipe.scenes, recipe.targets, seed)
    return LocalSource(recipe.scenes, recipe.targets, seed, recipe.size)

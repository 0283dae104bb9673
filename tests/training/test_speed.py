"""What prompts cost in training: memory that does not grow with them, and little time.

`pytest -m slow -o log_cli=true -o log_cli_level=INFO tests/training/test_speed.py` shows the figures.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path

import pytest
import torch
from dualclickmed.networks.configs import PRESETS
from dualclickmed.training import loop
from dualclickmed.training.batches import GlobalBatch, LocalBatch
from dualclickmed.training.loop import Options
from dualclickmed.training.recipes import Recipe, load_recipe

from tests.support.recipes import RECIPE

logger = logging.getLogger(__name__)

REPEATS = 2


class Held:
    """Bytes that autograd keeps for backward passes, counted while they are alive."""

    def __init__(self) -> None:
        self.now = self.peak = 0

    def pack(self, tensor: torch.Tensor) -> _Kept:
        return _Kept(self, tensor)

    @staticmethod
    def unpack(kept: _Kept) -> torch.Tensor:
        return kept.tensor


class _Kept:
    def __init__(self, held: Held, tensor: torch.Tensor) -> None:
        self.held, self.tensor = held, tensor
        held.now += tensor.nbytes
        held.peak = max(held.peak, held.now)

    def __del__(self) -> None:
        self.held.now -= self.tensor.nbytes


def global_batch(size: int, grid: int = 64) -> GlobalBatch:
    torch.manual_seed(1)
    truth = torch.zeros(size, *(grid,) * 3, dtype=torch.bool)
    truth[:, grid // 4 : 3 * grid // 4, grid // 3 : 2 * grid // 3, grid // 5 : 4 * grid // 5] = True
    image = truth[:, None].float() + 0.3 * torch.randn(size, 1, *(grid,) * 3)
    nothing = torch.zeros(size, 0, 3), torch.zeros(size, 0, dtype=torch.long)
    return GlobalBatch(
        image, truth, torch.ones_like(truth), *nothing, torch.ones(len(truth), dtype=torch.bool)
    )


def local_batch(size: int, windows: int = 1, targets: int = 1) -> LocalBatch:
    """Windows with the same object, asked for `targets` times in each."""
    torch.manual_seed(1)
    truth = torch.zeros(windows, *(size,) * 3, dtype=torch.bool)
    truth[:, size // 4 : size // 2, 8:24, 8:24] = True
    image = truth[:, None].float() + 0.3 * torch.randn(windows, 1, *(size,) * 3)
    asked = torch.arange(windows).repeat_interleave(targets)
    first = torch.tensor([[size // 3, 12, 12]]).repeat(len(asked), 1, 1)
    return LocalBatch(image, truth[asked], torch.ones_like(truth[asked]), asked, first)


@pytest.mark.parametrize("kind", ["global", "local"])
def test_memory_is_flat_in_the_number_of_prompts(kind: str, tmp_path: Path) -> None:
    batch = global_batch(1) if kind == "global" else local_batch(32)
    peaks = []
    for rounds in (1, 5):
        recipe = dataclasses.replace(RECIPE[kind], interactions=rounds, points=1, mode="chain")
        run = loop._Run(recipe, Options(tmp_path, half=False)).learner
        held = Held()
        with torch.autograd.graph.saved_tensors_hooks(held.pack, held.unpack):
            run.gradients(batch, 0)
        assert held.now == 0 and held.peak > 1_000_000
        peaks.append(held.peak)
    # Six masks instead of two; only the few tokens of the clicks themselves are more.
    assert peaks[1] < 1.1 * peaks[0]


def timed_step(recipe: Recipe, batch: GlobalBatch | LocalBatch, folder: Path) -> tuple[float, float]:
    """Processor seconds of a step (least of some), and of the click simulation in it.

    Processor time instead of the clock's, since other work may share the machine.
    """
    # Without cases there are no epochs.
    run = loop._Run(dataclasses.replace(recipe, epochs=0), Options(folder, half=False)).learner
    strategy, spent = run.strategy, [0.0]

    def timed(*arguments):
        begin = time.process_time()
        found = strategy(*arguments)
        spent[0] += time.process_time() - begin
        return found

    run.strategy = timed
    best = (float("inf"), 0.0)
    for _ in range(REPEATS):
        spent[0] = 0.0
        begin = time.process_time()
        run.optimise([batch], 0, 1.0)
        best = min(best, (time.process_time() - begin, spent[0]))
    return best


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["global-compact", "local-compact", "global-paper"])
def test_click_simulation_is_a_tenth_of_a_step_at_most(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    if recipe.kind == "global":
        batch: GlobalBatch | LocalBatch = global_batch(
            recipe.scenes * recipe.targets, PRESETS[recipe.preset][0].image_size
        )
    else:
        batch = local_batch(recipe.size, recipe.scenes, recipe.targets)
    step, simulated = timed_step(recipe, batch, tmp_path)
    told = "%s: %.2f s of processor time a step, clicks %.3f s, %.1f %%"
    logger.info(told, name, step, simulated, 100 * simulated / step)
    assert 0 < simulated < 0.1 * step


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_thirty_prompts_cost_at_most_twice_one(tmp_path: Path) -> None:
    recipe = load_recipe("global-paper")
    batch = global_batch(2)
    many, _ = timed_step(recipe, batch, tmp_path)
    one, _ = timed_step(dataclasses.replace(recipe, interactions=1, points=1), batch, tmp_path)
    logger.info("2 masks %.2f s of processor time a step, 31 masks %.2f s, %.2f times", one, many, many / one)
    assert many < 2 * one

"""The training loop: a resumed run equals an uninterrupted one, and the card says what was done."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from dualclickmed.errors import UserError
from dualclickmed.training import loop
from dualclickmed.training.loop import CHECKPOINT, Options, train
from dualclickmed.training.recipes import COMPACT
from dualclickmed.training.samples import Samples
from dualclickmed.weights import load_expert

TINY = {
    "global": dataclasses.replace(COMPACT["global"], steps=4, scenes=1, targets=1, interactions=1, points=2),
    "local": dataclasses.replace(COMPACT["local"], steps=4, scenes=1, targets=1, interactions=2, size=32),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "VALIDATION_BATCHES", 1)
    monkeypatch.setattr(loop, "LOG_EVERY", 2)
    # Not for a process that goes on with other tests.
    monkeypatch.setattr(loop, "_keep_freed_memory", lambda: None)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / CHECKPOINT, weights_only=True)["network"]


@pytest.mark.parametrize("kind", ["global", "local"])
def test_resuming_changes_nothing(kind, tmp_path: Path) -> None:
    recipe = TINY[kind]
    train(recipe, Options(tmp_path / "whole", half=False))
    # The rate depends on the recipe's length, so the first part is cut off rather than shortened.
    run = loop._Run(recipe, Options(tmp_path / "parts", half=False))
    source = run._samples()
    for number in range(2):
        run.optimise([source[number].batch], number / recipe.steps)
        run.step += 1
    run.save()
    train(recipe, Options(tmp_path / "parts", half=False))
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_weights_card_and_log(tmp_path: Path) -> None:
    path = train(TINY["global"], Options(tmp_path), command="python main.py train global --steps 4")
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["steps"] == 4 and card["samples"] == 4 and card["seed"] == 1
    assert card["command"] == "python main.py train global --steps 4"
    assert set(card["measured"]["dice on generated volumes"]) == {"first prompt", "1 clicks"}
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0] == "step,samples,seconds,rate,loss,dice_0,dice_1"
    assert [line.split(",")[0] for line in lines[1:]] == ["2", "4"]
    average = torch.load(tmp_path / CHECKPOINT, weights_only=True)["average"]
    loaded = load_expert("global", path).state_dict()
    for name, value in loaded.items():
        assert torch.allclose(value, average[name], atol=2e-3, rtol=2e-3), name


def test_a_step_lowers_the_loss_on_its_own_batch(tmp_path: Path) -> None:
    run = loop._Run(dataclasses.replace(TINY["global"], warmup=1, rate=3e-3), Options(tmp_path, half=False))
    batch = Samples(run.recipe, seed=7)[0].batch
    losses = [run.optimise([batch], 0.0).loss for _ in range(8)]
    assert losses[-1] < losses[0] - 0.02


def test_another_run_s_checkpoint_is_refused(tmp_path: Path) -> None:
    train(dataclasses.replace(TINY["global"], steps=1), Options(tmp_path))
    with pytest.raises(UserError, match="seed is 1, asked for 9"):
        train(dataclasses.replace(TINY["global"], seed=9), Options(tmp_path))
    with pytest.raises(UserError, match="holds a checkpoint already"):
        train(TINY["global"], Options(tmp_path, resume=False))

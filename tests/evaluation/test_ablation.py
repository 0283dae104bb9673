"""Ablations: both sides get the same but for the choice, and what is evaluated was never trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dualclickmed.cli.app import app
from dualclickmed.evaluation import ablation
from dualclickmed.evaluation.ablation import ROWS, LastPrompt, generated_tasks
from dualclickmed.imaging.geometry import Box
from dualclickmed.imaging.prompts import Click, Prompts
from dualclickmed.predictor import Predictor
from dualclickmed.training.recipes import Recipe
from dualclickmed.weights.files import default_path
from typer.testing import CliRunner


def test_both_sides_of_a_row_are_evaluated_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Recipe] = []
    starts: list[Path | None] = []

    def train(recipe, options, command="", data=None, start=None):
        """The shipped weights, whatever the recipe."""
        trained.append(recipe)
        starts.append(start)
        options.out.mkdir(parents=True, exist_ok=True)
        found = default_path(recipe.kind)
        for ending in (".safetensors", ".json"):
            (options.out / f"{recipe.kind}-compact{ending}").write_bytes(
                found.with_suffix(ending).read_bytes()
            )
        return options.out / f"{recipe.kind}-compact.safetensors"

    monkeypatch.setattr(ablation, "train", train)
    arguments = [
        "ablate",
        "--out",
        str(tmp_path / "out"),
        "--steps",
        "30",
        "--most",
        "2",
        "--set",
        "rate=0.01",
        "--start",
        "global-compact",
    ]
    for _ in range(2):  # the second time everything is there already
        result = CliRunner().invoke(app, [*arguments, "--row", "global-clicks", "--row", "six-points"])
        assert result.exit_code == 0, result.output
    # Both rows have the paper's recipe on one side: it is trained and evaluated once.
    assert not (tmp_path / "out" / "six-points" / "with").exists()
    assert [(r.kind, r.clicks, r.points) for r in trained] == [
        ("global", "boundary", 6),
        ("global", "uniform", 6),
        ("global", "boundary", 1),
    ]
    assert {(r.steps, r.rate, r.interactions, r.mode) for r in trained} == {(30, 0.01, 5, "alternatives")}
    assert set(starts) == {default_path("global")}
    table = json.loads((tmp_path / "out" / "ablations.json").read_text())
    assert [row["row"] for row in table] == ["global-clicks", "six-points"]
    for row in table:
        # The same weights on both sides: no difference.
        assert row["cases"] == 2 and row["chosen"] == row["other"] and row["difference"]["value"] == 0
    assert "0.7182 to 0.7361" in (tmp_path / "out" / "ablations.md").read_text()
    again = CliRunner().invoke(app, [*arguments[:4], "31", "--row", "global-clicks"])
    assert again.exit_code == 2 and "name another folder" in " ".join(again.output.split())


def test_sides_differ_in_the_choice_alone() -> None:
    budget = ablation.TrainingBudget(100)
    for row in ROWS:
        chosen, other = (vars(ablation._recipe(row.kind, budget, c)) for c in (row.chosen, row.other))
        assert {key for key in chosen if chosen[key] != other[key]} <= set(row.chosen)
        assert chosen != other


def test_generated_cases_have_their_object_and_come_again() -> None:
    first, again = dict(generated_tasks(3)), dict(generated_tasks(3))
    for name, task in first.items():
        assert (task.labels == 1).any() and task.boxes is not None
        assert np.array_equal(task.volume.array, again[name].volume.array)


def test_the_last_prompt_alone_is_shown_with_the_mask_before_it() -> None:
    seen = []

    class Expert:
        def segment(self, volume, prompts, strategy):
            (given,) = prompts.values()
            seen.append(([c.index for c in given.clicks], given.mask is not None))
            return type("Result", (), {"labels": np.zeros(volume.shape, np.uint8)})()

    volume = next(iter(generated_tasks(1)))[1].volume
    box = Box((2, 2, 2), (9, 9, 9))
    LastPrompt(Expert(), "global")(volume, Prompts((Click((3, 3, 3)), Click((1, 1, 1), False)), box))
    assert seen == [([], False), ([(3, 3, 3)], True), ([(1, 1, 1)], True)]


def test_the_last_prompt_of_a_real_expert() -> None:
    name, task = next(iter(generated_tasks(1)))
    method = LastPrompt(Predictor.from_weights(device="cpu").expert, "global")
    (z, y, x) = np.argwhere(task.labels == 1)[0].tolist()
    assert task.boxes is not None
    mask = method(task.volume, Prompts((Click((z, y, x)),), task.boxes[1]))
    assert mask[z, y, x] and mask.any(), name


def test_unknown_rows_and_settings_are_named(tmp_path: Path) -> None:
    for arguments, message in (
        (["--row", "colours"], "--row must be one of global-clicks"),
        (["--set", "rate"], "KEY=VALUE"),
        (["--epochs", "20"], "name them with --data"),
        (["--start", "global-compact", "--start", "global-compact"], "two weights of the global expert"),
        (["--set", "speed=3", "--most", "2"], "speed"),
    ):
        result = CliRunner().invoke(app, ["ablate", "--out", str(tmp_path / "out"), *arguments])
        assert result.exit_code == 2 and message in " ".join(result.output.split()), result.output

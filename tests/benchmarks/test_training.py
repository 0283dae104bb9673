"""How the speed of recipes is measured: in turns, on the same objects, without the making of samples."""

from __future__ import annotations

import dataclasses

import pytest
from dualclickmed.benchmarks import training
from dualclickmed.benchmarks.training import training_speeds
from dualclickmed.errors import UserError
from dualclickmed.networks.build import build_global, build_local
from dualclickmed.training import learner

from tests.support.cases import SMALL
from tests.support.recipes import RECIPE


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner, "build_global", lambda preset: build_global(SMALL["global"]))
    monkeypatch.setattr(learner, "build_local", lambda preset: build_local(SMALL["local"]))


def test_recipes_take_turns_and_the_first_step_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[tuple[str, int]] = []
    step = training._Turn.step

    def noted(self, number):
        turns.append((self.recipe.kind, number))
        step(self, number)

    monkeypatch.setattr(training._Turn, "step", noted)
    recipes = {
        "wide": dataclasses.replace(RECIPE["global"], scenes=1, interactions=1, points=2, mode="chain"),
        "near": dataclasses.replace(RECIPE["local"], scenes=1, size=32, targets=1, interactions=2),
    }
    wide, near = training_speeds(recipes, 2)
    assert turns == [(kind, number) for number in range(3) for kind in ("global", "local")]
    assert (wide.recipe, wide.masks, near.recipe, near.masks, near.objects) == ("wide", 3, "near", 2, 1.0)
    assert 1.0 <= wide.objects <= 2.0
    for speed in (wide, near):
        assert speed.making > 0 and speed.step > 0 and speed.processor > 0
    with pytest.raises(UserError, match="At least one step"):
        training_speeds(recipes, 0)


def test_objects_per_second_are_the_median_of_the_steps_that_count() -> None:
    turn = training._Turn(dataclasses.replace(RECIPE["local"], size=32, targets=1), "cpu")
    turn.taken = [(1, 9.0, 9.0, 9.0), (2, 0.1, 1.0, 1.5), (4, 0.3, 1.0, 1.7), (3, 0.2, 3.0, 1.6)]
    speed = training._speed("near", turn)
    assert (speed.objects, speed.making, speed.step, speed.processor) == (3.0, 0.2, 1.0, 1.6)
    assert speed.objects_per_second == pytest.approx(2.0)

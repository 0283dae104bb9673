"""Recipes: the paper's numbers, overriding them, schedules."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest
from dualclickmed.errors import UserError
from dualclickmed.networks.configs import PRESETS
from dualclickmed.training.recipes import (
    RECIPES,
    Recipe,
    changed,
    fine_tune,
    from_dict,
    load_recipe,
    recipe_names,
)
from dualclickmed.training.schedules import rate_factor

from tests.support.recipes import RECIPE


def test_the_paper_s_protocols_are_those_of_its_table_2() -> None:
    wide, near = load_recipe("global-paper"), load_recipe("local-paper")
    assert (wide.kind, wide.preset, near.kind, near.preset) == ("global", "paper", "local", "paper")
    assert (wide.scenes * wide.targets * wide.accumulate, near.scenes, near.targets) == (2, 1, 10)
    assert (wide.epochs, near.epochs) == (20, 20)
    assert (wide.rate, near.rate) == (8e-4, 2e-6)
    assert (wide.schedule, near.schedule) == ("multistep", "cosine")
    assert (wide.keep, near.keep) == ("last", "last")
    assert (wide.interactions, wide.points, wide.mode, wide.clicks) == (5, 6, "alternatives", "boundary")
    assert (near.interactions, near.clicks, near.size) == (5, "balanced", 128)
    assert (wide.scale_z, wide.scale_xy, wide.shift, wide.affine) == ((0.9, 1.1), (0.5, 1.5), 4.0, 1.0)
    assert near.flip > 0 and near.rotate > 0 and near.intensity > 0 and near.noise > 0
    assert (wide.weight_decay, near.weight_decay, wide.decoder_rate) == (1e-4, 1e-5, 0.1)


def test_networks_are_trained_in_windows_as_they_are_served_in() -> None:
    sides = {
        name: (load_recipe(f"local-{name}").size, PRESETS[name][1].window) for name in ("paper", "compact")
    }
    assert sides == {"paper": (128, 128), "compact": (64, 64)}


def test_every_recipe_survives_its_card(tmp_path) -> None:
    assert recipe_names() == [
        "global-compact",
        "global-paper",
        "global-transformer",
        "local-compact",
        "local-paper",
    ]
    for name in recipe_names():
        recipe = load_recipe(name)
        assert from_dict({**dataclasses.asdict(recipe), "gone": 3}) == recipe


def test_any_number_can_be_overridden_by_text() -> None:
    recipe = changed(
        RECIPE["global"],
        {"rate": "3e-4", "steps": "7", "mode": "chain", "clicks": "uniform", "starts": "1,1, 0 0"},
    )
    assert (recipe.rate, recipe.steps, recipe.mode, recipe.clicks) == (3e-4, 7, "chain", "uniform")
    assert recipe.starts == (1.0, 1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("rat", "1", "Recipes have no 'rat'; they have kind, preset"),
        ("steps", "1.5", "steps must be a whole number, but it is '1.5'"),
        ("steps", 0, "steps must be at least 1"),
        ("rate", "fast", "rate must be a number"),
        ("rate", "nan", "rate must be at least 0"),
        ("rate", "inf", "rate must be"),
        ("exact_boxes", "perhaps", "exact_boxes must be true or false"),
        ("mode", "at once", "mode must be one of alternatives, chain, together"),
        ("warmup", "200", "warmup must lie between 0 and 1"),
        ("betas", "0.9", "betas must be 2 numbers"),
        ("betas", "0.9,1", "betas must be at least 0 and below 1"),
        ("clicks", "anywhere", "clicks must be one of boundary, balanced, uniform, realistic"),
        ("starts", "1,2", "starts must be 4 numbers"),
        ("starts", "0,0,0,0", "starts must be shares"),
        ("affine", "1.1", "affine must lie between 0 and 1"),
        ("replay", "1", "leave room"),
        ("scale_xy", "0,1", "scale_xy must be positive"),
        ("size", "100", "size must be a multiple of 16"),
    ],
)
def test_a_wrong_number_is_refused(name: str, value: object, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        changed(RECIPE["global"], {name: value})


def test_a_recipe_of_one_s_own(tmp_path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('kind = "local"\nsteps = 12\nmilestones = [0.5]\n')
    assert load_recipe(path) == Recipe(kind="local", steps=12, milestones=(0.5,))
    for text, complaint in (('kind = "both"', "must have kind"), ("kind =", "can't be read")):
        path.write_text(text)
        with pytest.raises(UserError, match=complaint):
            load_recipe(path)
    with pytest.raises(UserError, match="no recipe 'nothing'; there are: global-compact"):
        load_recipe("nothing")


def test_fine_tuning_is_slow_replays_and_can_freeze_the_encoder() -> None:
    for name in recipe_names():
        kind, preset = name.split("-")
        recipe, usual = fine_tune(kind, preset), load_recipe(name)
        assert (recipe.kind, recipe.preset) == (kind, preset)
        assert recipe.rate == pytest.approx(usual.rate / 10) and recipe.replay == 0.3
        assert (recipe.epochs, recipe.steps) == (0, 500)
        assert dataclasses.replace(recipe, freeze_encoder=True).freeze_encoder


def test_schedules() -> None:
    flat = Recipe(kind="global", schedule="flat", warmup=0.1, cooldown=0.25)
    assert [rate_factor(flat, step / 100, 100) for step in (0, 4, 9, 50)] == pytest.approx([0.1, 0.5, 1, 1])
    assert [rate_factor(flat, done, 100) for done in (0.75, 0.875, 1.0)] == pytest.approx([1, 0.5, 0])
    paper = load_recipe("global-paper")
    assert [rate_factor(paper, done, 9) for done in (0.0, 0.66, 0.67, 0.92)] == pytest.approx(
        [1, 1, 0.1, 0.01]
    )
    wave = Recipe(kind="local", schedule="cosine", warmup=0.0)
    assert [rate_factor(wave, done, 9) for done in (0.0, 0.5, 1.0)] == pytest.approx([1, 0.5, 0])
    assert rate_factor(wave, 0.25, 9) == pytest.approx((1 + math.sqrt(0.5)) / 2)


@pytest.mark.parametrize("steps", [20, 200, 20_000])
def test_a_run_of_any_length_reaches_its_peak(steps: int) -> None:
    for name in recipe_names():
        recipe = load_recipe(name)
        factors = [rate_factor(recipe, step / steps, steps) for step in range(steps)]
        assert max(factors) == pytest.approx(1.0) and factors[0] > 0


def test_every_number_of_a_run_is_in_its_recipe_file() -> None:
    wide = {"points", "mode", "starts", "exact_boxes", "grid", "hold_edges", "clicked", "components"}
    wide |= {"parts", "affine", "scale_z", "scale_xy", "shift"}
    near = {"size", "rotate", "intensity", "intensity_scale", "intensity_shift", "noise"}
    names = {field.name for field in dataclasses.fields(Recipe)}
    for name in recipe_names():
        text = (RECIPES / f"{name}.toml").read_text()
        written = set(re.findall(r"^(\w+) = ", text, re.MULTILINE))
        assert written == names - (near if name.startswith("global") else wide), name


def test_what_earlier_versions_recorded_is_translated() -> None:
    before = {"kind": "global", "together": True, "warmup": 200, "steps": 1000}
    assert (from_dict(before).mode, from_dict(before).warmup) == ("together", 0.2)
    assert from_dict({**before, "together": False}).mode == "chain"

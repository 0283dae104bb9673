"""The stages that the app's trainers run give what the functions give, and leave room for others."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dualclickmed.errors import UserError
from dualclickmed.networks.build import build_global, build_local
from dualclickmed.simulation.clicks import STRATEGIES, Draws
from dualclickmed.training import loop
from dualclickmed.training.loop import Options
from dualclickmed.training.opened import OpenedCases
from dualclickmed.training.pipeline import (
    ComposedClicks,
    Context,
    Hooks,
    SamplePipeline,
    Transforms,
    hooks_named,
)
from dualclickmed.training.recipes import Recipe, fine_tune
from dualclickmed.training.samples import Samples
from dualclickmed.training.sources import LabelledCase, WeightedSource, folder_cases
from dualclickmed.transforms import click_transforms, sample_transforms
from dualclickmed.weights.files import Kind, save_expert
from monai.transforms import Lambdad, RandAdjustContrastd, RandScaleIntensityd

from tests.support.cases import SMALL, decathlon
from tests.support.recipes import RECIPE

STOCK = Hooks(sample_transforms, click_transforms)
RECIPES: dict[str, Recipe] = {
    "global": dataclasses.replace(fine_tune("global"), scenes=2, targets=2, grid=32, affine=0.8, flip=0.5),
    "starts": dataclasses.replace(
        fine_tune("global"), scenes=2, grid=32, starts=(0.4, 0.3, 0.1, 0.2), clicked=0.5
    ),
    "local": dataclasses.replace(fine_tune("local"), scenes=2, targets=2, size=32, intensity=0.8),
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[LabelledCase]:
    return folder_cases(decathlon(tmp_path_factory.mktemp("set"), 6))


def batches(recipe: Recipe, cases: list[LabelledCase], hooks: Hooks | None, count: int = 6) -> list[Any]:
    opened = OpenedCases(recipe)
    samples = Samples(recipe, [WeightedSource(cases)], seed=5, opened=opened)
    if hooks is not None:
        samples.pipeline = SamplePipeline(hooks.samples, Context(recipe, opened))
    return [samples[number].batch for number in range(count)]


def same(first: Sequence[Any], second: Sequence[Any]) -> bool:
    return all(
        torch.equal(one.nan_to_num(), other.nan_to_num())
        for a, b in zip(first, second, strict=True)
        for one, other in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("name", list(RECIPES))
def test_samples_are_those_of_the_functions_bit_for_bit(name: str, cases: list[LabelledCase]) -> None:
    recipe = RECIPES[name]
    assert same(batches(recipe, cases, None), batches(recipe, cases, STOCK))


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_clicks_are_those_of_the_strategies(strategy: str) -> None:
    recipe = dataclasses.replace(RECIPE["global"], clicks=strategy)
    composed = ComposedClicks(click_transforms, Context(recipe, OpenedCases(recipe)))
    shape = (3, 20, 20, 20)
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    truth = torch.zeros(shape, dtype=torch.bool)
    truth[:, 5:14, 4:15, 6:13] = True
    valid = torch.ones_like(truth)
    valid[..., :3] = False
    # Nothing is wrong in the last one: its clicks are padding.
    logits[2] = torch.where(truth[2], 3.0, -3.0)
    # As one of two processes draws them, too.
    for first, total in ((0, None), (2, 5)):
        one, other = (Draws(torch.Generator().manual_seed(4), first, total) for _ in range(2))
        for _ in range(3):
            expected = STRATEGIES[strategy](logits, truth, valid, 4, one)
            found = composed(logits, truth, valid, 4, other)
            assert torch.equal(found.labels, expected.labels)
            given = expected.labels >= 0
            assert torch.equal(found.points[given], expected.points[given])
        # And what is drawn next is the same, too.
        assert one.one() == other.one()


@pytest.mark.parametrize("kind", ["global", "local"])
def test_a_training_through_them_gives_the_same_weights(
    kind: Kind, cases: list[LabelledCase], tmp_path: Path
) -> None:
    recipe = dataclasses.replace(
        fine_tune(kind), steps=2, scenes=1, targets=2, interactions=2, size=32, replay=0.0, warmup=0.0
    )
    torch.manual_seed(0)
    start = tmp_path / f"{kind}-compact.safetensors"
    save_expert({"global": build_global, "local": build_local}[kind](SMALL[kind]), kind, start)
    states = []
    for name, hooks in (("plain", None), ("composed", STOCK)):
        run = loop._Run(recipe, Options(tmp_path / name), [WeightedSource(cases)], start, hooks)
        run.go()
        states.append(run.learner.network.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def add(hook: Callable[[Context], Transforms], at: int, *new: Any) -> Callable[[Context], Transforms]:
    def changed(context: Context) -> Transforms:
        stages = list(hook(context))
        return [*stages[:at], *new, *stages[at:]]

    return changed


def test_what_is_put_in_between_works_and_leaves_the_rest_alone(cases: list[LabelledCase]) -> None:
    recipe = RECIPES["global"]
    stock = batches(recipe, cases, STOCK)
    contrast = RandAdjustContrastd("image", prob=1.0, gamma=(1.5, 2.0))
    hooks = Hooks(add(sample_transforms, 2, contrast), click_transforms)
    first, again = batches(recipe, cases, hooks), batches(recipe, cases, hooks)
    assert same(first, again)
    for ours, theirs in zip(first, stock, strict=True):
        assert not torch.equal(ours.image, theirs.image)
        assert torch.equal(ours.truth, theirs.truth)


def test_a_transform_may_change_the_whole_image_or_its_labels(cases: list[LabelledCase]) -> None:
    recipe = dataclasses.replace(RECIPES["global"], affine=0.0, flip=0.0)
    # The whole image twice as bright looks the same after the normalisation.
    double = Lambdad("image", lambda image: np.asarray(image, dtype=np.float32) * 2)
    stock = batches(recipe, cases, STOCK)
    changed = batches(recipe, cases, Hooks(add(sample_transforms, 1, double), click_transforms))
    assert torch.allclose(stock[0].image, changed[0].image, atol=0.05)
    one = Lambdad("label", lambda label: (np.asarray(label) > 0).astype(np.uint8))
    merged = batches(recipe, cases, Hooks(add(sample_transforms, 1, one), click_transforms))
    # One object a case instead of two.
    assert len(merged[0].truth) == recipe.scenes < len(stock[0].truth)


def test_the_local_window_takes_others_as_well(cases: list[LabelledCase]) -> None:
    recipe = RECIPES["local"]
    scale = RandScaleIntensityd("image", factors=(0.5, 0.5), prob=1.0)
    stock = batches(recipe, cases, STOCK)
    changed = batches(recipe, cases, Hooks(add(sample_transforms, 3, scale), click_transforms))
    assert torch.allclose(changed[0].image, 1.5 * stock[0].image)
    assert torch.equal(changed[0].truth, stock[0].truth)


def test_clicks_keep_off_what_a_transform_takes_out_of_the_discrepancy() -> None:
    recipe = RECIPE["global"]

    def upper_half(discrepancy: torch.Tensor) -> torch.Tensor:
        kept = discrepancy.clone()
        kept[:, 10:] = 0
        return kept

    hook = add(click_transforms, 1, Lambdad("discrepancy", upper_half))
    clicks = ComposedClicks(hook, Context(recipe, OpenedCases(recipe)))
    truth = torch.zeros((2, 20, 20, 20), dtype=torch.bool)
    truth[:, 4:16, 4:16, 4:16] = True
    found = clicks(torch.full(truth.shape, -1.0), truth, torch.ones_like(truth), 9, Draws(torch.Generator()))
    assert int(found.points[..., 0].max()) < 10 and bool((found.labels == 1).all())


def test_a_case_that_cannot_be_used_is_named_as_ever(cases: list[LabelledCase], tmp_path: Path) -> None:
    recipe = RECIPES["global"]
    bad = dataclasses.replace(cases[0], id="bad", label=tmp_path / "missing.nii.gz")
    opened = OpenedCases(recipe)
    samples = Samples(recipe, [WeightedSource([bad])], opened=opened)
    samples.pipeline = SamplePipeline(sample_transforms, Context(recipe, opened))
    loaded = samples[0]
    assert loaded.batch is None and list(loaded.troubles) == ["bad"]
    broken = Hooks(add(sample_transforms, 1, Lambdad("image", lambda image: image / None)), click_transforms)
    with pytest.raises(RuntimeError, match="Lambdad"):
        batches(recipe, cases, broken, 1)


def test_hooks_are_found_by_their_names() -> None:
    assert hooks_named(STOCK.names()) == STOCK
    with pytest.raises(UserError, match="make it a function or a class method of a module"):
        Hooks(add(sample_transforms, 1), click_transforms).names()

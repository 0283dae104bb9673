"""The training loop: exact resuming, gradients, bad cases, stopping, and what a run leaves behind."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dualclickmed.errors import UserError
from dualclickmed.experts import precision
from dualclickmed.networks.build import build_global, build_local
from dualclickmed.networks.configs import GlobalConfig, LocalConfig
from dualclickmed.simulation.clicks import STRATEGIES, Draws
from dualclickmed.training import learner, loop, validation
from dualclickmed.training.loop import CHECKPOINT, Options, Progress, train
from dualclickmed.training.losses import dice_focal
from dualclickmed.training.plan import masks_of, steps_of, with_replay
from dualclickmed.training.recipes import Recipe, changed, fine_tune, load_recipe
from dualclickmed.training.samples import Samples
from dualclickmed.training.sources import LabelledCase, WeightedSource, folder_cases
from dualclickmed.weights.files import load_expert, save_expert

from tests.support.cases import SMALL, decathlon, volume_and_labels, write_nifti
from tests.support.recipes import RECIPE

TINY = {
    "global": dataclasses.replace(RECIPE["global"], steps=4, scenes=1, targets=1, interactions=1, points=2),
    "local": dataclasses.replace(RECIPE["local"], steps=4, scenes=1, targets=1, interactions=2, size=32),
}
SMALL_PAPER = GlobalConfig(
    embed_dim=48, depth=2, heads=2, global_blocks=(1,), prompt_dim=48, decoder_heads=2, decoder_mlp=64
)
SMALL_VISTA = LocalConfig(init_filters=8, blocks_down=(1, 1, 1, 1), out_channels=16, feature_size=16)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "VALIDATION_BATCHES", 1)
    monkeypatch.setattr(loop, "LOG_EVERY", 2)
    monkeypatch.setattr(
        learner, "build_global", lambda c: build_global(SMALL["global"] if c == "transformer" else c)
    )
    monkeypatch.setattr(
        learner, "build_local", lambda c: build_local(SMALL["local"] if c == "compact" else c)
    )
    # Not for a process that goes on with other tests.
    monkeypatch.setattr(loop, "_keep_freed_memory", lambda: None)


def tensors(folder: Path, part: str = "network") -> dict[str, torch.Tensor]:
    return torch.load(folder / CHECKPOINT, weights_only=True)[part]


def small_start(kind: str, path: Path) -> Path:
    """Weights of a small network of the published form."""
    torch.manual_seed(0)
    network = build_global(SMALL_PAPER) if kind == "global" else build_local(SMALL_VISTA)
    save_expert(network, kind, path)
    return path


def stop_after(step: int) -> dict[str, Any]:
    """Arguments of a training that is asked to end as soon as that many steps are done."""
    stop = threading.Event()
    return {"stop": stop, "progress": lambda now: stop.set() if now.step == step else None}


# Resuming -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["global", "local"])
def test_a_stopped_and_resumed_run_ends_with_the_same_bits(kind, tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY[kind], accumulate=2 if kind == "global" else 1)
    data = [WeightedSource(folder_cases(decathlon(tmp_path / "set", 3))), WeightedSource("generated")]
    train(recipe, Options(tmp_path / "whole", half=False), data=data)
    path = train(recipe, Options(tmp_path / "parts", half=False), data=data, **stop_after(2))
    assert json.loads(path.with_suffix(".json").read_text())["steps"] == 2
    torch.manual_seed(99)
    train(recipe, Options(tmp_path / "parts", half=False), data=data)
    for part in ("network", "average"):
        whole, parts = tensors(tmp_path / "whole", part), tensors(tmp_path / "parts", part)
        assert whole.keys() == parts.keys()
        assert all(torch.equal(whole[k], parts[k]) for k in whole)
    states = [torch.load(tmp_path / p / CHECKPOINT, weights_only=True) for p in ("whole", "parts")]
    moments = [state["optimiser"]["state"] for state in states]
    assert all(torch.equal(moments[0][k]["exp_avg_sq"], moments[1][k]["exp_avg_sq"]) for k in moments[0])
    assert torch.equal(states[0]["random"]["cpu"], states[1]["random"]["cpu"])


@pytest.mark.parametrize("mask", [1, 2])
def test_a_run_stops_in_the_middle_of_a_step_and_loses_nothing_of_those_before(
    mask: int, tmp_path: Path, monkeypatch
) -> None:
    recipe = dataclasses.replace(TINY["global"], interactions=2, points=3)
    train(recipe, Options(tmp_path / "whole", half=False))
    stop, seen = threading.Event(), []

    def counted(*arguments):
        seen.append(1)
        if len(seen) == masks_of(recipe) + mask:
            stop.set()
        return dice_focal(*arguments)

    monkeypatch.setattr(learner, "dice_focal", counted)
    path = train(recipe, Options(tmp_path / "parts", half=False), stop=stop)
    # No mask more of the second step than the one it was in.
    assert len(seen) == masks_of(recipe) + mask
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["steps"] == 1 and card["measured"] == {}
    train(recipe, Options(tmp_path / "parts", half=False))
    whole, parts = tensors(tmp_path / "whole"), tensors(tmp_path / "parts")
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_a_validation_that_was_cut_short_is_made_up_for(tmp_path: Path, monkeypatch) -> None:
    recipe = dataclasses.replace(TINY["global"], steps=2)
    validated: list[int] = []
    stop = threading.Event()

    def validate(self, network):
        validated.append(self.step)
        stop.set()
        self._check()
        return {"first prompt": 0.5}

    monkeypatch.setattr(loop._Run, "validate", validate)
    options = Options(tmp_path, half=False, validate_every=1)
    train(recipe, options, stop=stop)
    assert validated == [1] and torch.load(tmp_path / CHECKPOINT, weights_only=True)["step"] == 1
    train(recipe, options)
    assert validated == [1, 1, 2, 2]


@pytest.mark.parametrize(("bfloat16", "expected"), [(1.0, None), (0.8, None), (0.5, torch.bfloat16)])
def test_a_training_runs_in_16_bits_where_the_processor_s_clock_is_for_it(
    bfloat16: float, expected: torch.dtype | None, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(precision, "seconds_of_products", lambda: (bfloat16, 1.0))
    assert loop._Run(TINY["local"], Options(tmp_path)).learner.dtype is expected
    assert loop._Run(TINY["local"], Options(tmp_path, half=False)).learner.dtype is None


def test_a_checkpoint_of_an_earlier_version_is_resumed(tmp_path: Path) -> None:
    train(TINY["global"], Options(tmp_path), **stop_after(1))
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    for key in ("config", "scaler", "best", "random", "steps"):
        del state[key]
    state["recipe"] = {key: state["recipe"][key] for key in ("kind", "preset", "seed", "steps", "scenes")}
    torch.save(state, tmp_path / CHECKPOINT)
    path = train(TINY["global"], Options(tmp_path))
    assert json.loads(path.with_suffix(".json").read_text())["steps"] == 4


def test_another_run_s_checkpoint_is_refused(tmp_path: Path) -> None:
    train(dataclasses.replace(TINY["global"], steps=1), Options(tmp_path))
    with pytest.raises(UserError, match="seed is 1, asked for 9"):
        train(dataclasses.replace(TINY["global"], seed=9), Options(tmp_path))
    with pytest.raises(UserError, match="holds a checkpoint already"):
        train(TINY["global"], Options(tmp_path, resume=False))
    (tmp_path / CHECKPOINT).write_bytes(b"half a checkpo")
    with pytest.raises(UserError, match="can't be read"):
        train(TINY["global"], Options(tmp_path))


# Steps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["global-paper", "local-paper", "global-compact", "local-compact"])
def test_every_recipe_trains_on_labelled_and_generated_cases_and_its_loss_falls(name, tmp_path: Path) -> None:
    kind = name.split("-")[0]
    start = small_start(kind, tmp_path / "start.safetensors") if name.endswith("paper") else None
    cases = folder_cases(decathlon(tmp_path / "set", 2))
    settings = {"epochs": 0, "steps": 8, "size": 32, "interactions": 2, "points": 2, "targets": 1}
    steep = {"rate": 3e-3, "warmup": 0, "affine": 0.0, "decoder_rate": 1.0, "exact_boxes": True}
    recipe = changed(load_recipe(name), {**settings, **steep, "schedule": "flat", "cooldown": 0})
    losses: list[float] = []
    train(
        recipe,
        Options(tmp_path / "out", half=False),
        data=[WeightedSource(cases, 4), WeightedSource("generated", 1)],
        start=start,
        progress=lambda p: losses.append(p.loss),
    )
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    loaded = load_expert(kind, tmp_path / "out" / f"{name}.safetensors")
    average = tensors(tmp_path / "out", "network" if recipe.keep == "last" else "average")
    for key, value in loaded.state_dict().items():
        assert torch.allclose(value, average[key], atol=2e-3, rtol=2e-3), key


@pytest.mark.parametrize("kind", ["global", "local"])
def test_the_paper_s_recipes_learn_real_cases(kind: str, real_data: Path, tmp_path: Path) -> None:
    cases = folder_cases(real_data / "mri" / "msd_hippocampus")[:3]
    # The paper's schedule, loops and augmentation; a small network needs larger steps.
    settings = {"epochs": 3, "rate": 3e-3, "decoder_rate": 1, "warmup": 0, "size": 32, "points": 2}
    recipe = changed(load_recipe(f"{kind}-paper"), settings)
    losses: list[float] = []
    path = train(
        recipe,
        Options(tmp_path / "out", half=False),
        data=[WeightedSource(cases)],
        start=small_start(kind, tmp_path / "start.safetensors"),
        progress=lambda p: losses.append(p.loss),
    )
    # Two objects in each case.
    assert len(losses) == 3 * (3 if kind == "global" else 6)
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert "labelled: 3 cases" in json.loads(path.with_suffix(".json").read_text())["data"]


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("global", "alternatives"), ("global", "chain"), ("global", "together"), ("local", "chain")],
)
def test_gradients_met_at_the_embedding_are_those_of_the_whole_graph(kind, mode, tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY[kind], interactions=3, points=2, scenes=2, mode=mode)
    run = loop._Run(recipe, Options(tmp_path, half=False)).learner
    batch = Samples(recipe, seed=3)[0].batch
    calls = []
    encode = run.network.encode
    run.network.encode = lambda image: calls.append(1) or encode(image)
    run.gradients(batch, 5)
    assert len(calls) == 1
    ours = {name: p.grad.clone() for name, p in run.network.named_parameters() if p.grad is not None}
    run.optimiser.zero_grad(set_to_none=True)
    masks = run.masks(
        run.network,
        run.network.encode(batch.image),
        batch,
        Draws(run.generator(5, recipe.seed)),
        STRATEGIES[recipe.clicks],
    )
    each = [dice_focal(one, batch.truth, recipe.focal) for mask in masks for one in mask.unbind(dim=1)]
    assert len(each) == masks_of(recipe)
    torch.stack(each).mean().backward()
    for name, parameter in run.network.named_parameters():
        if parameter.grad is None:
            assert name not in ours or not bool(ours[name].any()), name
        else:
            scale = float(parameter.grad.abs().max()) + 1e-6
            assert torch.allclose(ours[name], parameter.grad, atol=2e-4 * scale), name


def test_a_step_lowers_the_loss_on_its_own_batch_in_half_precision_too(tmp_path: Path) -> None:
    for half in (False, True):
        recipe = dataclasses.replace(TINY["global"], warmup=0.0, rate=3e-3)
        run = loop._Run(recipe, Options(tmp_path, half=half)).learner
        batch = Samples(run.recipe, seed=7)[0].batch
        losses = [run.optimise([batch], step, 1.0).loss for step in range(8)]
        assert losses[-1] < losses[0] - 0.02


def test_accumulated_batches_are_one_larger_batch(tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY["global"], interactions=1, points=1)
    batches = [Samples(recipe, seed=3)[number].batch for number in (0, 1)]
    twice = loop._Run(dataclasses.replace(recipe, accumulate=2), Options(tmp_path / "a", half=False)).learner
    for number, batch in enumerate(batches):
        twice.gradients(batch, number)
    once = loop._Run(recipe, Options(tmp_path / "b", half=False)).learner
    for number, batch in enumerate(batches):
        once.gradients(batch, number)
    for a, b in zip(twice.network.parameters(), once.network.parameters(), strict=True):
        if a.grad is not None:
            assert torch.allclose(2 * a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_a_frozen_encoder_stays_and_the_rest_learns(tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY["local"], freeze_encoder=True, steps=2, warmup=0.0)
    train(recipe, Options(tmp_path, half=False))
    torch.manual_seed(recipe.seed)
    before = build_local(SMALL["local"]).state_dict()
    after = tensors(tmp_path)
    changes = {name: not torch.equal(before[name], after[name]) for name in before}
    assert not any(change for name, change in changes.items() if name.startswith("image_encoder."))
    assert any(changes.values())


def test_the_decoder_s_rate_is_a_part_of_the_encoder_s(tmp_path: Path) -> None:
    recipe = dataclasses.replace(TINY["global"], decoder_rate=0.1, rate=1e-2, warmup=0.0, cooldown=0)
    run = loop._Run(recipe, Options(tmp_path, half=False)).learner
    run.optimise([Samples(recipe, seed=1)[0].batch], 0, 1.0)
    assert [group["lr"] for group in run.optimiser.param_groups] == pytest.approx([1e-2, 1e-3])
    assert sum(len(group["params"]) for group in run.optimiser.param_groups) == len(
        list(run.network.parameters())
    )


# What a run leaves behind ---------------------------------------------------------------------------------


def test_weights_card_log_and_progress(tmp_path: Path) -> None:
    told: list[Progress] = []
    command = "python main.py train global --steps 4"
    path = train(TINY["global"], Options(tmp_path), command=command, progress=told.append)
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["steps"] == 4 and card["samples"] == 4 and card["seed"] == 1
    assert card["command"] == command
    assert card["data"] == "generated volumes only"
    assert set(card["measured"]["dice on generated volumes"]) == {"first prompt", "1 clicks"}
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0] == "step,samples,seconds,rate,loss,dice_0,dice_1,objects_per_second"
    rows = [line.split(",") for line in lines[1:]]
    assert [row[0] for row in rows] == ["2", "4"]
    assert all(float(row[-1]) > 0 for row in rows)
    average = tensors(tmp_path, "average")
    for name, value in load_expert("global", path).state_dict().items():
        assert torch.allclose(value, average[name], atol=2e-3, rtol=2e-3), name
    assert [(p.step, p.steps) for p in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert told[-1].left == 0 and told[0].left > 0 and 0 <= told[0].dice <= 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint.pt",
        "global-transformer.json",
        "global-transformer.safetensors",
        "log.csv",
    ]


def test_tensorboard_gets_scalars_and_pictures_of_clicks(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = Options(tmp_path, tensorboard=True, picture_every=2, validate_every=2)
    for kind in ("global", "local"):
        train(TINY[kind], dataclasses.replace(options, out=tmp_path / kind))
        events = EventAccumulator(str(tmp_path / kind / "tensorboard"))
        events.Reload()
        assert [e.step for e in events.Scalars("train/loss")] == [2, 4]
        assert [e.step for e in events.Scalars("validation/first prompt")] == [2, 4]
        assert [e.step for e in events.Images("clicks")] == [2, 4]


def test_without_a_terminal_there_is_a_line_now_and_then(tmp_path: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr("dualclickmed.training.logs.SECONDS_BETWEEN_LINES", 0.0)
    with caplog.at_level(logging.INFO, logger="dualclickmed"):
        train(TINY["global"], Options(tmp_path))
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Step ")]
    assert len(lines) == 4 and lines[0].startswith("Step 1 of 4, loss ")


def test_the_best_weights_on_the_validation_cases_are_kept(tmp_path: Path, monkeypatch) -> None:
    cases = folder_cases(decathlon(tmp_path / "set", 2))
    recipe = dataclasses.replace(TINY["global"], keep="best", steps=3)
    scores = iter([0.5, 0.9, 0.2, 0.1, 0.3])
    kept = []

    def validate(self, network):
        assert network is self.learner.average
        kept.append({k: v.clone() for k, v in network.state_dict().items()})
        return {"first prompt": next(scores)}

    monkeypatch.setattr(loop._Run, "validate", validate)
    options = Options(tmp_path / "out", half=False, validation=cases, validate_every=1)
    path = train(recipe, options)
    loaded = load_expert("global", path).state_dict()
    assert all(torch.allclose(loaded[k], kept[1][k], atol=2e-3, rtol=2e-3) for k in loaded)
    assert not all(torch.allclose(loaded[k], kept[2][k], atol=0, rtol=1e-3) for k in loaded)


def test_validation_cases_are_measured(tmp_path: Path) -> None:
    cases = folder_cases(decathlon(tmp_path / "set", 2))
    path = train(TINY["global"], Options(tmp_path / "out", validation=cases))
    measured = json.loads(path.with_suffix(".json").read_text())["measured"]["dice on validation cases"]
    assert set(measured) == {"first prompt", "1 clicks"}


# Data -----------------------------------------------------------------------------------------------------


def test_generated_scenes_are_replayed_beside_labelled_cases() -> None:
    labelled = WeightedSource([LabelledCase("a", Path("i"), Path("l"))], 3.0)
    recipe = fine_tune("global")
    given, replayed = with_replay(recipe, [labelled])
    assert given is labelled and replayed.cases == "generated"
    assert replayed.weight / (replayed.weight + 3.0) == pytest.approx(recipe.replay)
    assert with_replay(recipe, [labelled, WeightedSource("generated", 1.0)])[-1].weight == 1.0
    assert [s.cases for s in with_replay(recipe, None)] == ["generated"]


def test_epochs_are_passes_over_the_objects_of_the_labelled_cases() -> None:
    cases = [LabelledCase(f"{n}", Path("i"), Path("l")) for n in range(11)]
    data, counts = [WeightedSource(cases)], {case.id: 3 for case in cases}
    wide, near = load_recipe("global-paper"), load_recipe("local-paper")
    assert steps_of(wide, data, counts=counts) == 20 * 17
    assert steps_of(wide, data, world=2, counts=counts) == 20 * 9
    # A window about every object, however many others are asked for in it.
    assert steps_of(near, data, counts=counts) == 20 * 33
    # Half of the samples are generated: twice the steps.
    assert steps_of(near, [*data, WeightedSource("generated")], counts=counts) == 20 * 66
    with pytest.raises(UserError, match="there are none"):
        steps_of(wide, [WeightedSource("generated")])
    with pytest.raises(UserError, match="no object to train on"):
        steps_of(wide, data, counts=dict.fromkeys(counts, 0))


@pytest.mark.parametrize("kind", ["global", "local"])
def test_two_cases_of_two_objects_take_twice_the_steps_of_one(kind: str, tmp_path: Path) -> None:
    cases = folder_cases(decathlon(tmp_path / "set", 2))
    recipe = dataclasses.replace(TINY[kind], epochs=3)
    run = loop._Run(recipe, Options(tmp_path / "out", half=False), [WeightedSource(cases)])
    assert run.counts == {case.id: 2 for case in cases}
    assert run.steps == 3 * 4
    # The resumed run need not open the cases again.
    for case in cases:
        stat = case.image.stat()
        case.image.write_bytes(b"x" * stat.st_size)
        os.utime(case.image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again = loop._Run(recipe, Options(tmp_path / "out", half=False), [WeightedSource(cases)])
    assert again.counts == run.counts


@pytest.mark.parametrize("keep", ["last", "average"])
def test_a_validation_measures_the_weights_that_are_kept(keep: str, tmp_path: Path, monkeypatch) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    def validate(self, network):
        seen.append({k: v.clone() for k, v in network.state_dict().items()})
        return {"first prompt": 0.5}

    monkeypatch.setattr(loop._Run, "validate", validate)
    recipe = dataclasses.replace(TINY["local"], keep=keep, steps=2, warmup=0.0, cooldown=0.0)
    path = train(recipe, Options(tmp_path, half=False, validate_every=2))
    kept = load_expert("local", path).state_dict()
    assert len(seen) == 2
    for weights in seen:
        assert all(torch.allclose(kept[k], weights[k], atol=2e-3, rtol=2e-3) for k in kept)
    other = tensors(tmp_path, "average" if keep == "last" else "network")
    assert not all(torch.equal(seen[0][k], other[k]) for k in other)


def test_a_few_unusable_cases_are_named_once_and_many_stop_the_run(tmp_path: Path, caplog) -> None:
    cases = folder_cases(decathlon(tmp_path / "set", 20))
    _, labels = volume_and_labels()
    write_nifti(cases[3].label, 0 * labels)
    recipe = dataclasses.replace(TINY["global"], steps=20, points=1)
    options = Options(tmp_path / "out", half=False)
    with caplog.at_level(logging.INFO, logger="dualclickmed"):
        path = train(recipe, options, data=[WeightedSource(cases)])
    text = caplog.text
    assert text.count("Left out: Case 'set/case_03': the label has no foreground") == 1
    assert "1 of 20 cases could not be used: set/case_03" in text
    assert json.loads(path.with_suffix(".json").read_text())["left out"] == 1
    write_nifti(cases[5].label, labels[1:])
    with pytest.raises(UserError, match=r"2 of 20 cases can't be used, more than the 5% .*case_0"):
        train(recipe, Options(tmp_path / "again", half=False), data=[WeightedSource(cases)])
    lenient = Options(tmp_path / "lenient", half=False, bad_share=0.2)
    train(dataclasses.replace(recipe, steps=1), lenient, data=[WeightedSource(cases)])


def test_workers_make_the_same_batches(tmp_path: Path) -> None:
    data = [WeightedSource(folder_cases(decathlon(tmp_path / "set", 2)))]
    recipe: Recipe = dataclasses.replace(TINY["global"], steps=2)
    threads = torch.get_num_threads()
    # As many as a worker has: sums over more threads differ in their last bits.
    torch.set_num_threads(1)
    try:
        train(recipe, Options(tmp_path / "none", half=False), data=data)
        train(recipe, Options(tmp_path / "two", half=False, workers=2), data=data)
    finally:
        torch.set_num_threads(threads)
    one, other = tensors(tmp_path / "none"), tensors(tmp_path / "two")
    assert all(torch.equal(one[k], other[k]) for k in one)

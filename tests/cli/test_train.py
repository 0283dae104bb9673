"""`main.py train` and `main.py prepare`."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from dualclickmed.cli.app import app
from dualclickmed.cli.train import chosen_recipe, read_sources, stopped_by_signals
from dualclickmed.networks.build import build_global
from dualclickmed.networks.configs import TRANSFORMER_GLOBAL
from dualclickmed.training.recipes import fine_tune
from dualclickmed.weights.files import default_path, save_expert, verify
from typer.testing import CliRunner

from tests.support.cases import decathlon, volume_and_labels, write_nifti

ROOT = Path(__file__).parents[2]
RUNNER = CliRunner()


def small_start(path: Path) -> Path:
    small = dataclasses.replace(
        TRANSFORMER_GLOBAL, embed_dim=32, depth=1, heads=2, stem_channels=(2, 4, 8), upscaling=(8, 4)
    )
    torch.manual_seed(0)
    save_expert(build_global(small), "global", path)
    return path


def test_from_a_folder_of_cases_to_weights(tmp_path: Path) -> None:
    decathlon(tmp_path / "set", 3)
    arguments = ["prepare", "--data", str(tmp_path / "set"), "--out", str(tmp_path / "crops")]
    result = RUNNER.invoke(app, [*arguments, "--recipe", "global-compact", "--set", "exact_boxes=true"])
    assert result.exit_code == 0, result.output
    arguments = ["train", "global", "--data", f"{tmp_path / 'set'}=2", "--data", "generated=1"]
    for setting in ("exact_boxes=true", "interactions=1", "points=1", "scenes=1"):
        arguments += ["--set", setting]
    arguments += ["--start", str(small_start(tmp_path / "start.safetensors"))]
    arguments += ["--prepared", str(tmp_path / "crops"), "--validation", str(tmp_path / "set")]
    arguments += ["--steps", "2", "--rate", "1e-4", "--out", str(tmp_path / "run"), "--no-tensorboard"]
    result = RUNNER.invoke(app, [*arguments, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    card = verify(tmp_path / "run" / "global-compact.safetensors")
    assert card["steps"] == 2 and card["recipe"]["rate"] == 1e-4 and card["recipe"]["points"] == 1
    assert card["data"] == "labelled: 3 cases (unknown 3)"
    assert set(card["measured"]) == {"dice on validation cases"}


@pytest.mark.parametrize(
    ("workers", "signum"), [(0, signal.SIGTERM), (1, signal.SIGTERM), (1, signal.SIGINT)]
)
def test_a_signal_to_the_group_saves_and_exits_with_0(tmp_path: Path, workers: int, signum: int) -> None:
    command = [sys.executable, str(ROOT / "main.py"), "train", "global", "--out", str(tmp_path / "run")]
    command += ["--start", str(small_start(tmp_path / "start.safetensors")), "--steps", "100000"]
    command += ["--set", "scenes=1", "--set", "interactions=1", "--no-tensorboard", "--threads", "1"]
    command += ["--workers", str(workers)]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ}, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        time.sleep(3)
        os.killpg(process.pid, signum)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, told
    assert "the same command goes on from" in told.replace("\n", " ")
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    card = json.loads((tmp_path / "run" / "global-compact.json").read_text())
    assert state["step"] == card["steps"] < 100_000 and card["measured"] == {}


def test_signals_set_the_event_and_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stopped_by_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert isinstance(stop, threading.Event) and stop.wait(5)
    assert signal.getsignal(signal.SIGTERM) is before


def test_too_many_bad_cases_fail_the_preparation(tmp_path: Path) -> None:
    decathlon(tmp_path / "set", 3)
    write_nifti(tmp_path / "set" / "labelsTr" / "case_01.nii.gz", 0 * volume_and_labels()[1])
    arguments = ["prepare", "--data", str(tmp_path / "set"), "--out", str(tmp_path / "crops")]
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 2 and "1 of 3 cases can't be used" in result.output
    assert RUNNER.invoke(app, [*arguments, "--bad-share", "0.4"]).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--set", "rat=1"], "Recipes have no 'rat'"),
        (["--set", "rate"], "--set takes NAME=VALUE"),
        (["--recipe", "local-paper"], "trains the local expert; for the global one: global-"),
        (["--preset", "paper"], "there are none; name them with --data"),
        (["--data", "/nowhere"], "there is no '/nowhere'"),
        (["--data", "generated=often"], "the weight of 'generated=often' is no number"),
        (["--data", "generated=-1"], "must be a positive number"),
        (["--fine-tune", "--recipe", "global-paper"], "a recipe of its own"),
        (["--start", "/nowhere.safetensors"], "There are no weights"),
        (["--from", "/nowhere.safetensors"], "There are no weights"),
    ],
)
def test_a_wrong_argument_is_one_sentence(tmp_path: Path, arguments, complaint, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = RUNNER.invoke(app, ["train", "global", *arguments])
    assert result.exit_code == 2
    assert complaint in " ".join(result.output.split())


def test_sources_have_weights_and_coresets(tmp_path: Path) -> None:
    folder = decathlon(tmp_path / "a=b", 10)
    labelled, generated = read_sources([f"{folder}=2.5", "generated"], 0.2, 0) or []
    assert len(labelled.cases) == 2 and labelled.weight == 2.5
    assert generated.cases == "generated" and generated.weight == 1
    # A path that holds an equals sign is a path.
    [plain] = read_sources([str(folder)], None, 0) or []
    assert len(plain.cases) == 10 and read_sources([], None, 0) is None


def test_settings_reach_the_recipe() -> None:
    recipe = chosen_recipe("local-paper", "local", ["rate=3e-6", "clicks = realistic", "point_only=true"])
    assert (recipe.rate, recipe.clicks, recipe.point_only) == (3e-6, "realistic", True)


def test_steps_and_seed_override_the_recipe(monkeypatch, tmp_path: Path) -> None:
    seen = {}
    monkeypatch.setattr(
        "dualclickmed.training.loop.train", lambda recipe, options, **rest: seen.update(recipe=recipe, **rest)
    )
    folder = decathlon(tmp_path / "set", 1)
    RUNNER.invoke(
        app, ["train", "global", "--preset", "paper", "--data", str(folder), "--steps", "9", "--seed", "4"]
    )
    assert (seen["recipe"].steps, seen["recipe"].epochs, seen["recipe"].seed) == (9, 0, 4)
    RUNNER.invoke(app, ["train", "global", "--preset", "paper", "--data", str(folder)])
    assert seen["recipe"].epochs == 20 and len(seen["data"][0].cases) == 1
    RUNNER.invoke(
        app, ["train", "local", "--fine-tune", "--data", str(folder), "--set", "freeze_encoder=yes"]
    )
    assert seen["recipe"] == dataclasses.replace(fine_tune("local"), freeze_encoder=True)
    assert seen["start"] == default_path("local")

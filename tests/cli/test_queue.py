"""`queue`, `learn-curve` and `weights back`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dualclickmed.cli import queue
from dualclickmed.cli.app import app
from dualclickmed.learning import curve
from dualclickmed.learning.curve import Scores, clicks_to
from dualclickmed.learning.publishing import publish
from dualclickmed.learning.record import PUBLISHED, Record
from dualclickmed.weights.files import default_path, load_expert, save_expert
from typer.testing import CliRunner

from tests.support.live import make_weights


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def test_queue(tmp_path: Path) -> None:
    assert "Nothing was submitted yet" in run("queue", "--studies", str(tmp_path)).output
    record = Record(tmp_path / "learning")
    label = tmp_path / "label.nii.gz"
    for who, content in (("ann", "1"), ("bob", "2")):
        label.write_text(content)
        record.submit("image 7", label, {"client_id": who, "clicks": 3, "label_info": [{"name": "tail"}]})
    seen = record.final()["image 7"].version
    record.training("run", "local", PUBLISHED, [seen], ["tail"], {"weights": "local-learned-0001"})
    shown = run("queue", "--studies", str(tmp_path)).output
    row = next(line for line in shown.splitlines() if "image 7" in line)
    assert [cell.strip() for cell in row.split("│")[1:3]] == ["image 7", "bob"]
    assert [cell.strip() for cell in row.split("│")[4:7]] == ["3", "tail", "global"]
    assert "ann:" in row
    assert "local-learned-0001" in shown


def test_queue_tells_of_a_running_training_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = tmp_path / "label.nii.gz"
    label.write_text("1")
    Record(tmp_path / "learning").submit("image 7", label, {"client_id": "ann"})
    told = {
        "kind": "local",
        "state": "training",
        "step": 41,
        "steps": 600,
        "labels": 3,
        "elapsed": 68,
        "left": 7.8,
    }
    monkeypatch.setattr(queue, "is_training", lambda folder: True)
    monkeypatch.setattr(queue, "progress_of", lambda folder: told)
    shown = run("queue", "--studies", str(tmp_path)).output
    sentence = "the local expert, training, step 41 of at most 600, on 3 labels, for 68 s, about 8 s left"
    assert f"Running: {sentence}.\n" in shown
    monkeypatch.setattr(queue, "progress_of", lambda folder: {})
    assert "Running: a training that has told nothing yet." in run("queue", "--studies", str(tmp_path)).output


def test_queue_follows_the_folder_and_compares_annotators(tmp_path: Path) -> None:
    array = np.arange(512, dtype=np.int16).reshape(8, 8, 8)
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "case.nii.gz")
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "other.nii.gz")
    final = tmp_path / "labels" / "final"
    final.mkdir(parents=True)
    record = Record(tmp_path / "learning")
    for who, stop in (("ann", 5), ("bob", 6)):
        mask = np.zeros((8, 8, 8), dtype=np.uint8)
        mask[1:stop, 2:6, 2:6] = 1
        nib.save(nib.Nifti1Image(mask, np.eye(4)), final / "case.nii.gz")
        record.submit("case", final / "case.nii.gz", {"client_id": who, "label_info": [{"name": "tail"}]})
    # Submitted once, and deleted since.
    record.submit("other", final / "case.nii.gz", {"client_id": "ann"})
    file = {"info": {}, "ext": ".nii.gz"}
    objects = {
        "case": {"image": file, "labels": {"final": file}},
        "other": {"image": file, "labels": {}},
    }
    (tmp_path / "datastore_v2.json").write_text(json.dumps({"objects": objects}))
    shown = run("queue", "--studies", str(tmp_path)).output
    assert "Final labels: 1" in shown
    assert not any("other" in line for line in shown.splitlines() if "│" in line)
    row = next(line for line in shown.splitlines() if "ann, bob" in line)
    assert [cell.strip() for cell in row.split("│")[1:5]] == ["case", "tail", "ann, bob", "0.889"]


@pytest.mark.parametrize(
    ("studies", "message"), [("nowhere", "no studies folder"), ("http://host/dicom-web", "running server")]
)
def test_queue_of_no_folder(studies: str, message: str) -> None:
    result = run("queue", "--studies", studies)
    assert result.exit_code == 2


def test_weights_back(tmp_path: Path) -> None:
    make_weights(tmp_path)
    parent = default_path("local", directory=tmp_path)
    trained = tmp_path / "trained" / "local-compact.safetensors"
    save_expert(load_expert("local", parent), "local", trained)
    publish(trained, parent, {}, tmp_path)
    result = run("weights", "back", "local", "--model-dir", str(tmp_path))
    assert "was served from local-learned-0001 and is served from local-compact now" in result.output
    assert default_path("local", directory=tmp_path) == parent
    assert run("weights", "back", "local", "--model-dir", str(tmp_path)).exit_code == 2
    assert run("weights", "back", "both", "--model-dir", str(tmp_path)).exit_code == 2


def make_cases(folder: Path, count: int) -> None:
    for number in range(count):
        case = folder / f"case_{number}"
        case.mkdir(parents=True)
        rng = np.random.default_rng(number)
        label = np.zeros((22, 20, 18), dtype=np.uint8)
        label[3:10, 4:11, 5:12], label[12:19, 8:15, 3:9] = 1, 2
        image = label * 50 + rng.integers(0, 9, label.shape)
        nib.save(nib.Nifti1Image(image.astype(np.int16), np.eye(4)), case / "image.nii.gz")
        nib.save(nib.Nifti1Image(label, np.eye(4)), case / "label.nii.gz")
        (case / "meta.json").write_text(json.dumps({"labels": {"1": "front", "2": "back"}}))


def test_learn_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels, retrains, measures, writes and plots; the weights that are served stay as they are."""
    make_weights(tmp_path / "model")
    make_cases(tmp_path / "cases", 5)
    make_cases(tmp_path / "others" / "ct", 1)
    seen: list[int] = []

    def retrain(kind: Any, labels: Any, place: Any, settings: Any, command: str) -> Any:
        seen.append(len(labels))
        assert [s.who for s in place.record.submissions()] == ["simulated"] * len(labels)
        parent = default_path(kind, directory=place.model_dir)
        trained = tmp_path / f"trained {len(labels)}" / "global-compact.safetensors"
        save_expert(load_expert(kind, parent), kind, trained)
        publish(trained, parent, {}, place.model_dir)
        return type("Outcome", (), {"seconds": 1.0, "state": PUBLISHED})

    monkeypatch.setattr(curve, "retrain", retrain)
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    out = tmp_path / "out"
    arguments = ["learn-curve", "--cases", str(tmp_path / "cases"), "--out", str(out), "--every", "2"]
    arguments += ["--test", "1", "--clicks", "2", "--others", str(tmp_path / "others")]
    result = run(*arguments, "--model-dir", str(tmp_path / "model"))
    assert result.exit_code == 0, result.output
    assert seen == [2, 4]
    points = json.loads((out / "curve.json").read_text())["points"]
    assert [point["images"] for point in points] == [0, 2, 4]
    assert [point["weights"] for point in points] == [
        "global-compact",
        "global-learned-0001",
        "global-learned-0002",
    ]
    assert points[0]["mean"].keys() == {"front", "back"}
    assert len(points[0]["mean"]["front"]) == 3
    assert points[1]["spent"].keys() == {"front", "back"}
    assert points[2]["others"]["all objects"] == points[0]["others"]["all objects"]
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    again = run(*arguments, "--model-dir", str(tmp_path / "model"))
    assert again.exit_code == 2

    # At other numbers, in another order, in one picture with the first.
    other = tmp_path / "random"
    arguments[arguments.index(str(out))] = str(other)
    further = ["--at", "1,4", "--order", "random", "--seed", "3", "--beside", str(out)]
    result = run(*arguments, *further, "--model-dir", str(tmp_path / "model"))
    assert result.exit_code == 0, result.output
    points = json.loads((other / "curve.json").read_text())["points"]
    assert [point["images"] for point in points] == [0, 1, 4]
    assert (other / "together.png").read_bytes().startswith(b"\x89PNG")
    # From clicks alone, by both experts.
    alone = tmp_path / "alone"
    arguments[arguments.index(str(other))] = str(alone)
    result = run(*arguments, "--at", "4", "--clicks-alone", "--model-dir", str(tmp_path / "model"))
    assert result.exit_code == 0, result.output
    told = json.loads((alone / "curve.json").read_text())
    assert (told["expert"], told["strategy"], told["start"]) == ("global", "fused", "point")
    assert told["points"][0]["mean"] != points[0]["mean"]

    arguments[arguments.index(str(alone))] = str(other)
    for wrong in ("2,1", "9", "some"):
        shutil.rmtree(other)
        result = run(*arguments, "--at", wrong, "--model-dir", str(tmp_path / "model"))
        assert result.exit_code == 2 and wrong.replace(",", ", ") in result.output.replace("'", "")
        other.mkdir()


def test_clicks_until_a_target() -> None:
    assert clicks_to([0.9, 0.95], 0.85) == 0
    assert clicks_to([0.5, 0.8, 0.86], 0.85) == 2
    assert clicks_to([0.5, 0.6, 0.7], 0.85) == 2
    scores = Scores({"a": [[0.5, 0.9], [0.9, 0.9]], "b": [[0.1, 0.2]]})
    assert scores.clicks(0.85) == {"a": 0.5, "b": 1.0}
    assert scores.reached(0.85) == {"a": 1.0, "b": 0.0}
    assert scores.mean()["a"] == pytest.approx([0.7, 0.9])

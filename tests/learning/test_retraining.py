"""One round: which labels train, what is held out, what is published or refused, and one at a time.

The training itself is a stand-in that bends the weights in a known way; `test_http` runs the real one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from dualclickmed.errors import UserError
from dualclickmed.experts.scope import training_scope_of
from dualclickmed.imaging.label_map import LabelMap
from dualclickmed.learning import gate, retraining
from dualclickmed.learning.final import FinalLabel, prepare
from dualclickmed.learning.prior import Prior
from dualclickmed.learning.record import FAILED, PUBLISHED, REFUSED, Record
from dualclickmed.learning.retraining import Place, Settings, retrain
from dualclickmed.learning.runs import KEPT, TRAININGS, is_training, progress_of
from dualclickmed.training.loop import Options, Progress
from dualclickmed.training.recipes import Recipe
from dualclickmed.training.sources import WeightedSource, load_case
from dualclickmed.weights.files import default_path, load_expert, read_card, save_expert

from tests.support.live import make_weights

SHAPE = (30, 28, 26)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    make_weights(tmp_path / "model")
    monkeypatch.setattr(gate, "GENERATED", 2)
    monkeypatch.setattr(gate, "generated_objects", lambda: _generated())
    return Place(Record(tmp_path / "learning"), tmp_path / "model", None, LabelMap(("spleen",)))


def _generated() -> gate.Objects:
    from dualclickmed.imaging.volume import from_array

    rng = np.random.default_rng(0)
    mask = np.zeros((24, 24, 24), dtype=bool)
    mask[6:16, 6:16, 6:16] = True
    volume = from_array((mask * 100 + rng.integers(0, 9, mask.shape)).astype(np.uint8))
    return gate.Objects(["ct"], [volume], [mask])


def final(folder: Path, name: str, label: np.ndarray | None = None, **info: Any) -> FinalLabel:
    rng = np.random.default_rng(sum(name.encode()))
    truth = np.zeros(SHAPE, dtype=np.uint8)
    truth[5:14, 6:16, 7:17], truth[17:25, 10:20, 6:15] = 1, 2
    if label is None:
        label = truth
    image = np.where(truth > 0, 60 * truth, 10) + rng.integers(0, 9, SHAPE)
    path = folder / name
    path.mkdir(parents=True)
    nib.save(nib.Nifti1Image(image.astype(np.int16), np.eye(4)), path / "image.nii.gz")
    nib.save(nib.Nifti1Image(label, np.eye(4)), path / "label.nii.gz")
    names = info or {"label_info": [{"name": "Spleen"}, {"name": "tail"}]}
    return FinalLabel(name, path / "image.nii.gz", path / "label.nii.gz", names)


Seen = list[tuple[Recipe, Sequence[WeightedSource]]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """A training that adds to the gain of the ellipsoid in the box, which a cuboid is closer to."""
    return trains(monkeypatch, lambda network: network.prior_gain.add_(3.0))


def trains(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> Seen:
    seen: Seen = []

    def train(recipe: Recipe, options: Options, command: str = "", **given: Any) -> Path:
        seen.append((recipe, given["data"]))
        network = load_expert(recipe.kind, given["start"])
        with torch.no_grad():
            change(network)
        given["progress"](Progress(3, 3, 0.4, 0.8, 12.0, 0.0))
        assert given["stop"].is_set()
        path = options.out / f"{recipe.kind}-{recipe.preset}.safetensors"
        save_expert(network, recipe.kind, path, {"steps": 3, "command": command})
        return path

    monkeypatch.setattr(retraining, "train", train)
    return seen


def test_both_labels_of_a_file_train_and_the_result_is_published(
    tmp_path: Path, place: Place, seen: Seen
) -> None:
    labels = [final(tmp_path / "studies", f"case {n}") for n in range(6)]
    outcome = retrain("global", labels, place, Settings(minutes=1, steps=9), "test")
    assert (outcome.state, outcome.name) == (PUBLISHED, "global-learned-0001")
    ((recipe, sources),) = seen
    assert (recipe.steps, recipe.replay) == (9, Settings().replay)
    cases = sources[0].cases
    assert len(cases) == 4
    # The spelling is the server's.
    assert {tuple(case.names.values()) for case in cases} == {("spleen", "tail")}
    # The copies of the labels and the weights were cleared away with the end of the training.
    (run,) = (place.folder / TRAININGS).iterdir()
    assert {path.name for path in run.iterdir()} <= KEPT
    card = read_card(default_path("global", directory=place.model_dir))
    assert card["data"]["labels"] == ["spleen", "tail"]
    assert sorted(card["data"]["trained"] + card["data"]["held_out"]) == sorted(x.image for x in labels)
    assert len(card["data"]["held_out"]) == 2
    lesson = training_scope_of(default_path("global", directory=place.model_dir))
    # Every object that differs from the others, once.
    assert lesson is not None and {e.label for e in lesson.examples} == {"spleen", "tail"}
    assert len(Prior.load(place.folder).examples) == 6
    assert place.record.labels() == ["spleen", "tail"]
    assert place.record.trainings("global")[0].detail["weights"] == outcome.name
    assert progress_of(place.folder)["state"] == PUBLISHED

    # The next round holds out what no ancestor was trained on.
    labels += [final(tmp_path / "studies", f"new {n}") for n in range(2)]
    retrain("global", labels, place, Settings(minutes=1), "test")
    second = read_card(default_path("global", directory=place.model_dir))
    assert set(second["data"]["held_out"]).isdisjoint(card["data"]["trained"])


def test_wrong_labels_are_skipped_with_a_reason_and_the_rest_trains(
    tmp_path: Path, place: Place, seen: Seen, caplog: pytest.LogCaptureFixture
) -> None:
    studies = tmp_path / "studies"
    unknown = np.full(SHAPE, 9, dtype=np.uint8)
    bad = final(studies, "damaged")
    bad.label.write_bytes(b"\x1f\x8b")
    labels = [
        *(final(studies, f"good {n}") for n in range(4)),
        final(studies, "empty", np.zeros(SHAPE, dtype=np.uint8)),
        final(studies, "unknown", unknown, label_info=[{"name": "spleen"}]),
        bad,
    ]
    with caplog.at_level(logging.WARNING):
        outcome = retrain("global", labels, place, Settings(minutes=1))
    assert outcome.state == PUBLISHED
    assert outcome.skipped.keys() == {"empty", "unknown", "damaged"}
    assert "no label that can be used: all its values are 0" in outcome.skipped["empty"]
    assert all(f"The final label of {name} was skipped" in caplog.text for name in outcome.skipped)
    # Seen, so that they are not counted as waiting for ever.
    assert len(place.record.trainings("global")[0].versions) == 7


def test_worse_weights_are_refused_and_nothing_changes(
    tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    trains(monkeypatch, lambda network: network.prior_gain.fill_(-30.0))
    parent = default_path("global", directory=place.model_dir)
    before = parent.read_bytes()
    labels = [final(tmp_path / "studies", f"case {n}") for n in range(4)]
    outcome = retrain("global", labels, place, Settings(minutes=1))
    assert outcome.state == REFUSED
    assert outcome.reason is not None and "mean Dice on the labels fell" in outcome.reason
    assert default_path("global", directory=place.model_dir) == parent
    assert parent.read_bytes() == before
    assert place.record.trainings("global")[0].state == REFUSED


def test_few_images_all_train_and_the_card_says_how_they_were_checked(
    tmp_path: Path, place: Place, seen: Seen
) -> None:
    labels = [final(tmp_path / "studies", f"case {n}") for n in range(2)]
    assert retrain("global", labels, place, Settings(minutes=1)).state == PUBLISHED
    card = read_card(default_path("global", directory=place.model_dir))
    assert card["data"]["held_out"] == []
    assert "too few to hold out" in card["measured"]["protocol"]


def test_nothing_to_train_on(tmp_path: Path, place: Place, seen: Seen) -> None:
    with pytest.raises(UserError, match="no final label"):
        retrain("global", [], place)
    empty = final(tmp_path / "studies", "empty", np.zeros(SHAPE, dtype=np.uint8))
    with pytest.raises(UserError, match="1 final labels, but none can be used"):
        retrain("global", [empty], place)
    assert progress_of(place.folder)["state"] == FAILED
    assert seen == []


def test_one_at_a_time(tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [final(tmp_path / "studies", f"case {n}") for n in range(2)]
    running: list[bool] = []

    def second(*_: Any, **__: Any) -> Path:
        running.append(is_training(place.folder))
        with pytest.raises(UserError, match="running already"):
            retrain("local", labels, place)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(retraining, "train", second)
    with pytest.raises(OSError, match="No space"):
        retrain("global", labels, place)
    assert running == [True]
    # The full disk has ended the round, and nothing else.
    assert not is_training(place.folder)
    assert default_path("global", directory=place.model_dir).stem == "global-compact"
    assert place.record.trainings("global")[0].state == FAILED
    trains(monkeypatch, lambda network: network.prior_gain.add_(3.0))
    assert retrain("global", labels, place).state == PUBLISHED


def test_the_label_files_of_a_run_are_cases_that_training_can_read(tmp_path: Path) -> None:
    labels = [final(tmp_path / "studies", "case")]
    prepared = prepare(labels, tmp_path / "run", LabelMap(()), Prior())
    volume, values = load_case(prepared.cases["case"][0])
    truth = np.asarray(nib.load(labels[0].label).dataobj)
    np.testing.assert_array_equal(volume.to_raw_array(values), truth)


@pytest.mark.parametrize(("count", "held"), [(1, 0), (3, 0), (4, 2), (10, 2), (20, 4)])
def test_the_split_goes_by_ids_alone(count: int, held: int) -> None:
    images = [f"image {n}" for n in range(count)]
    training, out = gate.split(images, set())
    assert len(out) == held
    assert sorted(training + out) == sorted(images)
    assert gate.split(images[::-1], set()) == (training, out)
    if held:
        # Those that were trained on before are held out last.
        again = gate.split(images, set(images) - set(training[:2]))
        assert set(training[:2]) & set(again[1])


def test_gate_rules() -> None:
    def report(labels: float, generated: float) -> gate.Report:
        return gate.Report({"a": [labels, labels]}, [generated])

    assert gate.verdict(report(0.7, 0.6), report(0.7, 0.6)) is None
    assert "fell from 0.700 to 0.690" in str(gate.verdict(report(0.7, 0.6), report(0.69, 0.6)))
    assert "too much was forgotten" in str(gate.verdict(report(0.7, 0.6), report(0.8, 0.5)))
    assert gate.verdict(report(0.7, 0.6), report(0.7, 0.56)) is None
    assert gate.verdict(report(0.7, 0.6), gate.Report({}, [0.6])) is not None


def test_a_damaged_progress_file_says_nothing(place: Place) -> None:
    place.folder.mkdir(parents=True, exist_ok=True)
    (place.folder / "progress.json").write_text("{")
    assert progress_of(place.folder) == {}
    (place.folder / "progress.json").write_text(json.dumps([1]))
    assert progress_of(place.folder) == {}


@pytest.mark.parametrize(("rule", "voxels"), [("last", 150), ("majority", 100), ("staple", 100)])
def test_the_rule_says_which_annotators_label_trains(tmp_path: Path, rule: str, voxels: int) -> None:
    record = Record(tmp_path / "learning")
    for who, depth in (("ann", 4), ("bob", 4), ("cy", 6)):
        mask = np.zeros(SHAPE, dtype=np.uint8)
        mask[5 : 5 + depth, 6:11, 7:12] = 1
        label = final(tmp_path / who, "case", mask, label_info=[{"name": "Spleen"}])
        record.submit("case", label.label, {**label.info, "client_id": who})
    prepared = prepare([label], tmp_path / "run", LabelMap(("spleen",)), Prior(), record, rule)
    (case,) = prepared.cases["case"]
    assert dict(case.names) == {1: "spleen"}
    assert np.count_nonzero(load_case(case)[1]) == voxels

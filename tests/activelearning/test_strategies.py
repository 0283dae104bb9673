"""Which image comes next."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from dualclickmed.activelearning.scoring import ImageScores
from dualclickmed.activelearning.strategies import strategies
from dualclickmed.byte_cache import ByteCache
from dualclickmed.configs.options import ServerOptions
from dualclickmed.experts.loading import load_experts
from dualclickmed.experts.prediction import Prediction
from dualclickmed.experts.scope import Example
from dualclickmed.imaging.volume import Volume, from_array
from dualclickmed.learning.prior import Prior
from dualclickmed.learning.record import Record
from dualclickmed.learning.scoring import (
    GAIN,
    Score,
    expected_dice,
    gain_of,
    load_scores,
    score_image,
    score_images,
)
from dualclickmed.weights.files import default_path
from monailabel.datastore.local import LocalDatastore

from tests.support.live import make_weights


@pytest.fixture
def studies(tmp_path: Path) -> LocalDatastore:
    folder = tmp_path / "studies"
    folder.mkdir()
    for name in ("a", "b", "c"):
        nib.save(nib.Nifti1Image(an_array(), np.eye(4)), folder / f"{name}.nii.gz")
    return LocalDatastore(str(folder))


def an_array() -> np.ndarray:
    array = np.random.default_rng(3).integers(90, 110, (24, 24, 24)).astype(np.int16)
    array[8:16, 8:16, 8:16] += 100
    return array


@pytest.fixture
def record(tmp_path: Path) -> Record:
    return Record(tmp_path / "learning")


def keep(record: Record, **scores: tuple[float, float]) -> None:
    record.folder.mkdir(exist_ok=True)
    plain = {
        image: {"disagreement": d, "expected_clicks": c, "time": 1.0} for image, (d, c) in scores.items()
    }
    (record.folder / "scores.json").write_text(json.dumps(plain))


def ask(record: Record, studies: Any, strategy: str) -> Any:
    return strategies(record)[strategy]({"strategy": strategy}, studies)


def test_by_score_and_unscored_images_last(record: Record, studies: LocalDatastore) -> None:
    keep(record, b=(0.2, 9.0), c=(0.7, 3.0))
    assert ask(record, studies, "disagreement") == {"id": "c", "disagreement": 0.7}
    assert ask(record, studies, "expected_clicks") == {"id": "b", "expected_clicks": 9.0}
    assert ask(record, studies, "first") == {"id": "a"}
    assert ask(record, studies, "random")["id"] in ("a", "b", "c")


def test_without_scores_the_first(record: Record, studies: LocalDatastore) -> None:
    assert ask(record, studies, "disagreement") == {"id": "a", "disagreement": None}
    (record.folder).mkdir()
    (record.folder / "scores.json").write_text("{")
    assert ask(record, studies, "disagreement")["id"] == "a"


def test_an_image_whose_label_was_deleted_comes_first(
    record: Record, studies: LocalDatastore, tmp_path: Path
) -> None:
    label = tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), dtype=np.uint8), np.eye(4)), label)
    studies.save_label("c", str(label), "final", {})
    record.submit("c", label)
    assert ask(record, studies, "first") == {"id": "a"}
    studies.remove_label("c", "final")
    assert ask(record, studies, "first") == {"id": "c"}


def test_labelled_images_do_not_come_back(record: Record, studies: LocalDatastore, tmp_path: Path) -> None:
    """As the datastore says, whatever the record remembers."""
    keep(record, a=(0.9, 9.0), b=(0.8, 8.0), c=(0.1, 1.0))
    label = tmp_path / "label.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), dtype=np.uint8), np.eye(4)), label)
    record.submit("c", label)
    for image, after in (("a", "b"), ("b", "c")):
        studies.save_label(image, str(label), "final", {})
        assert ask(record, studies, "disagreement")["id"] == after
    studies.save_label("c", str(label), "final", {})
    assert ask(record, studies, "disagreement") is None
    studies.remove_label("b", "final")
    assert ask(record, studies, "disagreement")["id"] == "b"


def test_two_annotators_get_two_images(record: Record, studies: LocalDatastore) -> None:
    keep(record, a=(0.9, 9.0), b=(0.8, 8.0))
    studies.update_image_info("a", {"strategy": {"first": {"ts": int(time.time()), "client_id": "ann"}}})
    assert ask(record, studies, "disagreement")["id"] == "b"
    for image in ("b", "c"):
        studies.update_image_info(image, {"strategy": {"first": {"ts": int(time.time())}}})
    assert ask(record, studies, "disagreement")["id"] == "a"


def test_expected_dice_is_the_mean_over_what_the_probabilities_allow() -> None:
    whole = (slice(0, 2), slice(0, 2), slice(0, 2))
    sure = Prediction(whole, np.full((2, 2, 2), 20.0, dtype=np.float32))
    assert expected_dice([sure]) == pytest.approx(1.0)
    half = Prediction(whole, np.array([[[1e-9, 1e-9], [-9e9, -9e9]]] * 2, dtype=np.float32))
    # Four voxels of probability one half: 2 * 2 / (4 + 2).
    assert expected_dice([half]) == pytest.approx(2 / 3)
    assert expected_dice([]) == 0.0


def test_gain_is_what_the_gate_measured() -> None:
    card = {"measured": {"after": {"labels": {"a": [0.5, 0.6, 0.7], "b": [0.6, 0.6, 0.6]}}}}
    assert gain_of(card) == pytest.approx(0.05)
    assert gain_of({"measured": {}}) == GAIN


@pytest.fixture
def prior() -> Prior:
    example = Example("organ", "unknown", (0.5, 0.5, 0.5), (8.0,) * 3, (24.0,) * 3, 512.0)
    return Prior({"1": [example]})


def test_scores_of_images(tmp_path: Path, prior: Prior) -> None:
    make_weights(tmp_path / "model")
    box, click = (default_path(kind, directory=tmp_path / "model") for kind in ("global", "local"))
    expert = load_experts(box, click, "cpu", ByteCache(1 << 27))
    volume = from_array(an_array())
    score = score_image(volume, prior, expert)
    assert score is not None
    # The untrained local expert finds something else than the ellipsoid in the box.
    assert 0.3 < score.disagreement <= 1
    assert score.expected_clicks > 0
    assert score_image(volume, Prior(), expert) is None

    opened: list[str] = []

    def opens(name: str) -> Any:
        def load() -> Volume:
            opened.append(name)
            return volume

        return load

    made = score_images({n: opens(n) for n in "abc"}, tmp_path, prior, expert, most=2)
    assert opened == ["a", "b"]
    assert load_scores(tmp_path) == made
    # Those without a score first, then the oldest.
    score_images({n: opens(n) for n in "abc"}, tmp_path, prior, expert, most=2)
    assert opened == ["a", "b", "c", "a"]
    assert load_scores(tmp_path).keys() == {"a", "b", "c"}
    assert isinstance(load_scores(tmp_path)["a"], Score)


def test_scoring_starts_nothing_heavy_before_anything_was_learned(
    record: Record, studies: LocalDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: Any, **__: Any) -> Any:
        raise AssertionError("the networks were loaded")

    monkeypatch.setattr("dualclickmed.activelearning.scoring.Predictor.from_weights", loaded)
    method = ImageScores(record, ServerOptions())
    assert method({"method": "dualclickmed"}, studies) == {"scored": 0}


def test_the_scoring_method(tmp_path: Path, record: Record, studies: LocalDatastore, prior: Prior) -> None:
    make_weights(tmp_path / "model")
    prior.save(record.folder)
    method = ImageScores(record, ServerOptions(model_dir=tmp_path / "model"))
    answer = method({"method": "dualclickmed", "most": 1}, studies)
    assert answer["scored"] == 1
    assert load_scores(record.folder).keys() == {"a"}

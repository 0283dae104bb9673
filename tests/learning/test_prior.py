"""Where labels are expected, from where they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dualclickmed.byte_cache import ByteCache
from dualclickmed.experts.loading import load_experts
from dualclickmed.experts.scope import Example, TrainingScope, alike, patient_box
from dualclickmed.imaging.geometry import Box
from dualclickmed.imaging.label_files import NamedLabels
from dualclickmed.imaging.prompts import Prompts
from dualclickmed.imaging.volume import Volume, from_array
from dualclickmed.learning.prior import MARGIN, Prior, examples_of, propose
from dualclickmed.weights.files import default_path

from tests.support.live import make_weights

SPACING = (2.0, 1.0, 1.0)
LO, SIDES = np.array((6, 10, 8)), np.array((12, 30, 26))


def a_patient(shift: tuple[int, int, int] = (0, 0, 0), scale: float = 1.0) -> tuple[Volume, NamedLabels]:
    """A bright body on black, with two organs at fixed places in it."""
    array = np.zeros((30, 60, 56), dtype=np.uint8)
    labels = np.zeros(array.shape, dtype=np.uint16)
    lo, sides = LO + shift, np.round(SIDES * scale).astype(int)
    body = tuple(slice(a, a + n) for a, n in zip(lo, sides, strict=True))
    array[body] = np.random.default_rng(1).integers(90, 110, sides)
    for value, (centre, size) in enumerate((((0.3, 0.5, 0.25), 0.3), ((0.7, 0.4, 0.7), 0.2)), start=1):
        start = np.round(lo + np.array(centre) * sides - size / 2 * sides).astype(int)
        organ = tuple(slice(a, a + round(size * n)) for a, n in zip(start, sides.tolist(), strict=True))
        array[organ] = 100 + 60 * value
        labels[organ] = value
    volume = from_array(array, SPACING)
    return volume, NamedLabels([labels], [{1: "left", 2: "right"}])


def taught(count: int = 4) -> Prior:
    return Prior({str(n): examples_of(*a_patient((0, n, -n))) for n in range(count)})


def test_the_patient_is_found_to_a_voxel() -> None:
    volume, _ = a_patient((3, -4, 5))
    box = patient_box(volume)
    np.testing.assert_allclose(box.lo - LO, (3, -4, 5), atol=1)
    np.testing.assert_allclose(box.sides, SIDES, atol=1)


def test_an_even_image_is_all_patient() -> None:
    volume = from_array(np.full((10, 12, 14), 7, dtype=np.uint8))
    assert patient_box(volume) == Box((0, 0, 0), (10, 12, 14))


def test_examples_are_fractions_and_millimetres() -> None:
    volume, labels = a_patient()
    found = {e.label: e for e in examples_of(volume, labels)}
    left = Box.of_mask(labels.mask("left"))
    np.testing.assert_allclose(found["left"].sides, np.array(left.sides) * SPACING)
    np.testing.assert_allclose(found["left"].centre, (0.3, 0.5, 0.25), atol=0.05)
    np.testing.assert_allclose(found["left"].patient, SIDES * SPACING, atol=2)
    assert found["right"].volume == labels.voxels["right"] * 2.0


def test_labels_are_expected_where_they_were_in_other_patients() -> None:
    """The patient lies elsewhere in the image; the organs do not lie elsewhere in the patient."""
    volume, labels = a_patient((7, -6, 12))
    boxes = taught().boxes(volume)
    assert boxes.keys() == {"left", "right"}
    for name, box in boxes.items():
        true = Box.of_mask(labels.mask(name))
        np.testing.assert_allclose(box.centre, true.centre, atol=1.5)
        np.testing.assert_allclose(box.sides, np.array(true.sides) * MARGIN, atol=1.5)


def test_nothing_is_expected_in_another_part_of_the_body_or_another_modality() -> None:
    prior = taught()
    small = from_array(a_patient()[0].array[::4, ::4, ::4].copy(), SPACING)
    assert prior.boxes(small) == {}
    volume = a_patient()[0]
    volume.modality = "ct"
    assert prior.boxes(volume) == {}
    volume.modality = "mr"
    assert prior.boxes(volume).keys() == {"left", "right"}
    assert not alike("ct", "unknown")


def test_saved_and_loaded(tmp_path: Path) -> None:
    prior = taught()
    prior.save(tmp_path)
    assert Prior.load(tmp_path).examples == prior.examples
    assert prior.keep(["1", "9"]).examples.keys() == {"1"}
    (tmp_path / "prior.json").write_text('{"1": [{"label"')
    assert Prior.load(tmp_path).examples == {}


def test_proposals_follow_what_the_expert_finds(tmp_path: Path) -> None:
    """The untrained expert answers with the ellipsoid in the box, so that the box stays where it is."""
    make_weights(tmp_path)
    expert = load_experts(default_path("global", directory=tmp_path), None, "cpu", ByteCache(1 << 26))
    volume, _ = a_patient((2, 3, 1))
    prior = taught()
    found = propose(prior, volume, expert)
    assert found.keys() == {"left", "right"}
    for name, box in prior.boxes(volume).items():
        assert found[name].box is not None
        np.testing.assert_allclose(found[name].box.centre, box.centre, atol=1)
    assert propose(Prior(), volume, expert) == {}


def an_example(sides: tuple[float, float, float], patient: tuple[float, float, float]) -> Example:
    return Example("organ", "mr", (0.5, 0.5, 0.5), sides, patient, 1000.0)


def test_a_lesson_covers_what_is_like_its_examples() -> None:
    volume, labels = a_patient()
    lesson = TrainingScope(examples_of(volume, labels))
    left = Box.of_mask(labels.mask("left"))
    assert lesson.covers(volume, left)
    assert lesson.covers(volume, left.scaled(1.3))
    assert lesson.covers(volume, None)
    assert not lesson.covers(volume, left.scaled(3))
    assert not lesson.covers(volume, left.scaled(0.3))
    other = a_patient((1, 2, 3))[0]
    other.modality, other.key = "ct", "another"
    assert not lesson.covers(other, left)
    assert not TrainingScope([an_example(left.sides, (400.0, 400.0, 400.0))]).covers(volume, left)
    assert not TrainingScope([]).covers(volume, left)


def test_taught_weights_answer_what_they_were_taught_and_their_origin_the_rest(tmp_path: Path) -> None:
    import torch
    from dualclickmed.learning.publishing import publish
    from dualclickmed.weights.files import load_expert, save_expert

    make_weights(tmp_path)
    shipped = default_path("global", directory=tmp_path)
    network = load_expert("global", shipped)
    with torch.no_grad():
        # Another gain of the ellipsoid in the box and a shift: another mask for the same box.
        network.prior_gain.fill_(1.0)
        for parameter in network.mask_decoder.parameters():
            parameter.add_(0.02)
    save_expert(network, "global", tmp_path / "trained" / "global-compact.safetensors")
    volume, labels = a_patient()
    lesson = [e.to_dict() for e in examples_of(volume, labels)]
    name = publish(tmp_path / "trained" / "global-compact.safetensors", shipped, {"lesson": lesson}, tmp_path)

    def experts(path: Path, lesson: bool) -> np.ndarray:
        expert = load_experts(path, None, "cpu", ByteCache(1 << 26))
        box = Box.of_mask(labels.mask("left"))
        prompts = Prompts(box=box if lesson else box.scaled(2.9))
        given = prompts.checked(volume.shape)
        return expert.global_expert.expert_for(volume, given).predict(volume, given)[0].logits

    published = tmp_path / f"{name}.safetensors"
    assert not np.array_equal(experts(published, True), experts(shipped, True))
    np.testing.assert_array_equal(experts(published, False), experts(shipped, False))
    # Without its origin it answers everything, and says so.
    shipped.unlink()
    assert experts(published, False).size


def test_a_damaged_scope_is_refused(tmp_path: Path) -> None:
    import json

    from dualclickmed.errors import WeightsError
    from dualclickmed.weights.files import card_path

    make_weights(tmp_path)
    path = default_path("global", directory=tmp_path)
    card = json.loads(card_path(path).read_text())
    card_path(path).write_text(json.dumps({**card, "lesson": [{"label": "x"}]}))
    with pytest.raises(WeightsError, match="damaged scope"):
        load_experts(path, None, "cpu", ByteCache(0))

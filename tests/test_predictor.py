from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from dualclickmed.errors import PromptError, UserError, WeightsError
from dualclickmed.imaging.geometry import Box
from dualclickmed.imaging.prompts import Click, Prompts
from dualclickmed.imaging.volume import from_array, load_volume
from dualclickmed.networks.build import build_global, build_local
from dualclickmed.predictor import ObjectPrompts, Predictor
from dualclickmed.weights.files import save_expert

RAW_SHAPE = (30, 26, 22)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights of both experts."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    save_expert(build_global("transformer"), "global", folder / "global-compact.safetensors")
    save_expert(build_local("compact"), "local", folder / "local-compact.safetensors")
    return folder


@pytest.fixture(scope="module")
def predictor(model_dir: Path) -> Predictor:
    predictor = Predictor.from_weights(model_dir=model_dir, device="cpu")
    # The paper's window of 128 voxels would be mostly padding here.
    predictor.expert.local_expert.window = (32, 32, 32)
    return predictor


@pytest.fixture(scope="module")
def nifti(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image whose raw axes are permuted and flipped against the canonical ones."""
    array = np.random.default_rng(0).integers(0, 256, RAW_SHAPE).astype(np.uint8)
    affine = np.asarray([[0, 2.0, 0, 5], [0, 0, -3.0, 7], [1.5, 0, 0, 9], [0, 0, 0, 1]])
    path = tmp_path_factory.mktemp("image") / "image.nii.gz"
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def test_masks_of_files_are_in_the_files_order(predictor, nifti):
    predictor.set_image(nifti)
    volume = load_volume(nifti)
    points, background = [(20, 4, 5), (3, 25, 21)], [(21, 4, 5), (0, 0, 0)]
    mask = predictor.predict(points, background)
    assert mask.shape == RAW_SHAPE
    assert mask.dtype == np.bool_
    assert [bool(mask[p]) for p in points + background] == [True, True, False, False]

    clicks = [Click(tuple(p), True) for p in volume.to_canonical(points).tolist()]
    clicks += [Click(tuple(p), False) for p in volume.to_canonical(background).tolist()]
    direct = predictor.expert.segment(volume, {"object": Prompts(tuple(clicks))})
    np.testing.assert_array_equal(mask, volume.to_raw_array(direct.labels) > 0)
    np.testing.assert_array_equal(predictor.result.labels, direct.labels)
    assert predictor.result.strategies == {"object": "local"}


def test_boxes_and_masks_of_files_are_in_the_files_order(predictor, nifti):
    predictor.set_image(nifti)
    volume = load_volume(nifti)
    previous = np.zeros(RAW_SHAPE, np.uint8)
    previous[6:11, 3:9, 12:20] = 1
    mask = predictor.predict(box=(5, 12, 2, 10, 11, 22), mask=previous, strategy="paper", intensity="none")
    assert predictor.result.strategies == {"object": "global"}
    prompts = Prompts((), volume.box_to_canonical((5, 2, 11), (12, 10, 22)), volume.from_raw_array(previous))
    direct = predictor.expert.segment(volume, {"object": prompts}, "paper", "none")
    np.testing.assert_array_equal(mask, volume.to_raw_array(direct.labels) > 0)
    without = predictor.predict(box=(5, 12, 2, 10, 11, 22), strategy="paper", intensity="none")
    assert (without != mask).any()


def test_the_edges_of_a_box_may_come_in_either_order(predictor, nifti):
    predictor.set_image(nifti)
    forwards = predictor.predict(box=(5, 12, 2, 10, 11, 22), strategy="global")
    np.testing.assert_array_equal(predictor.predict(box=(12, 5, 2, 10, 22, 11), strategy="global"), forwards)


def test_arrays_keep_their_own_order(predictor):
    array = np.random.default_rng(1).integers(0, 256, (12, 30, 26)).astype(np.uint8)
    predictor.set_image(array)
    mask = predictor.predict([(3, 25, 20)], [(3, 25, 21)], (1, 9, 10, 28, 12, 26), np.ones(array.shape))
    assert mask.shape == array.shape
    assert mask[3, 25, 20]
    assert not mask[3, 25, 21]
    prompts = Prompts(
        (Click((3, 25, 20)), Click((3, 25, 21), False)),
        Box((1, 10, 12), (9, 28, 26)),
        np.ones(array.shape),
    )
    direct = predictor.expert.segment(from_array(array), {"object": prompts})
    np.testing.assert_array_equal(mask, direct.labels > 0)


def test_a_volume_counts_as_its_file_does(predictor, nifti):
    predictor.set_image(load_volume(nifti))
    from_volume = predictor.predict([(20, 4, 5)])
    predictor.set_image(str(nifti))
    np.testing.assert_array_equal(from_volume, predictor.predict([(20, 4, 5)]))


def test_several_labels_get_the_values_of_their_order(predictor, nifti):
    predictor.set_image(nifti)
    labels = predictor.predict_labels(
        {
            "spleen": ObjectPrompts(points=[(20, 4, 5)]),
            "liver": ObjectPrompts(points=np.asarray([(5, 20, 15)]), box=(2, 9, 14, 24, 10, 20)),
        }
    )
    assert (labels[20, 4, 5], labels[5, 20, 15]) == (1, 2)
    assert labels.dtype == np.uint8
    assert predictor.result.strategies == {"spleen": "local", "liver": "global"}


def test_predictions_do_not_depend_on_earlier_ones(model_dir, nifti, predictor):
    predictor.set_image(nifti)
    predictor.predict([(10, 10, 10)], [(5, 5, 5)])
    after = predictor.predict([(20, 4, 5)])
    fresh = Predictor.from_weights(
        model_dir / "global-compact.safetensors", model_dir / "local-compact.safetensors", "cpu"
    )
    fresh.expert.local_expert.window = (32, 32, 32)
    fresh.set_image(nifti)
    np.testing.assert_array_equal(after, fresh.predict([(20, 4, 5)]))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({}, "neither"),
        ({"points": [(1, 2)]}, "triples"),
        ({"points": (1, 2, 3)}, "triples"),
        ({"points": [(1, 2, 3), (4, 5)]}, "triples"),
        ({"points": [(1, 2, 0.5)]}, "whole numbers"),
        ({"points": [(30, 2, 3)]}, r"\(30, 26, 22\), but \(30, 2, 3\)"),
        ({"points": [(4, 5, 6)], "background": [(1, 2, -3)]}, r"but \(1, 2, -3\)"),
        ({"points": [(4, 5, 6), (29, 0, 1)], "background": [(29, 0, 1)]}, r"\(29, 0, 1\) was given as both"),
        ({"box": (1, 5, 2, 2, 3, 9)}, r"i0 < i1.*\(1, 5, 2, 2, 3, 9\)"),
        ({"box": (1, 5, 2, 4)}, "i0, i1, j0, j1, k0, k1"),
        ({"points": [(1, 2, 3)], "mask": np.ones((3, 4, 5))}, r"\(30, 26, 22\).*\(3, 4, 5\)"),
        ({"points": [(1, 2, 3)], "strategy": "global"}, "two foreground clicks"),
    ],
)
def test_prompts_that_cannot_be_used_are_explained(predictor, nifti, prompts, message):
    predictor.set_image(nifti)
    with pytest.raises(PromptError, match=message):
        predictor.predict(**prompts)


def test_an_image_comes_first(model_dir):
    with pytest.raises(PromptError, match="set_image"):
        Predictor.from_weights(model_dir=model_dir, device="cpu").predict([(1, 2, 3)])


def test_a_new_image_forgets_the_last_result(predictor, nifti):
    predictor.set_image(nifti)
    predictor.predict([(20, 4, 5)])
    predictor.set_image(nifti)
    assert predictor.result is None


def test_a_device_that_is_not_there_is_an_error(model_dir):
    with pytest.raises(UserError, match="'cuda:99' is not there"):
        Predictor.from_weights(model_dir=model_dir, device="cuda:99")


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(WeightsError, match=r"global-compact\.safetensors"):
        Predictor.from_weights(model_dir=tmp_path)


def test_the_order_of_clicks_is_known_when_it_is_told_or_when_there_is_one_kind(predictor):
    predictor.set_image(np.random.default_rng(1).integers(0, 256, (20, 22, 24)).astype(np.uint8))
    points, background = [(3, 4, 5), (9, 8, 7)], [(1, 1, 1)]
    canonical = predictor._canonical
    assert not canonical(ObjectPrompts(points, background)).ordered
    assert canonical(ObjectPrompts(points)).ordered and canonical(ObjectPrompts((), background)).ordered
    told = canonical(ObjectPrompts(points, background, order=("fg", "bg", "fg")))
    assert told.ordered
    assert [(c.index, c.positive) for c in told.clicks] == [
        ((3, 4, 5), True),
        ((1, 1, 1), False),
        ((9, 8, 7), True),
    ]
    assert told.checked((20, 22, 24)).ordered
    with pytest.raises(PromptError, match="name every click once as fg or bg, but it is fg, fg"):
        predictor.predict(points, background, order=("fg", "fg"))

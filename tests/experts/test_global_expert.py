from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from dualclickmed.byte_cache import ByteCache
from dualclickmed.errors import PromptError, UserError
from dualclickmed.experts import GlobalExpert, Prediction
from dualclickmed.experts.timing import StageTimer
from dualclickmed.imaging.geometry import Box, global_roi
from dualclickmed.imaging.prompts import Click, Prompts
from dualclickmed.imaging.volume import Volume, from_array

SHAPE = (24, 60, 40)
BOXES = [
    Box((8, 20, 10), (16, 40, 30)),
    Box((0, 0, 0), (3, 50, 7)),
    Box((20, 55, 2), (24, 60, 39)),
    Box((11, 30, 20), (12, 31, 21)),
    Box((0, 0, 0), SHAPE),
    Box((5.25, 20.5, 10.75), (16.5, 41, 30.25)),
]


@pytest.fixture
def volume() -> Volume:
    return from_array(np.random.default_rng(0).integers(1, 256, SHAPE, dtype=np.uint8))


def expert_of(network: torch.nn.Module, max_bytes: int = 1 << 30) -> GlobalExpert:
    return GlobalExpert(network, "cpu", ByteCache(max_bytes))


def mask_of(prediction: Prediction, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[prediction.region] = prediction.logits > 0
    return mask


def clicks(fg: list[tuple[int, int, int]], bg: Sequence[tuple[int, int, int]] = ()) -> tuple[Click, ...]:
    return tuple(Click(p, True) for p in fg) + tuple(Click(p, False) for p in bg)


@pytest.mark.parametrize("box", BOXES)
def test_coordinates_survive_the_way_to_the_network_and_back(volume, fakes, box):
    """The network answers a ramp that is zero at the click: at each voxel the logit tells its grid index."""
    click = tuple(int(p) for p in box.centre)
    expert = expert_of(fakes.Network(fakes.slope))
    (prediction,) = expert.predict(volume, Prompts(clicks([click]), box))  # type: ignore[list-item]

    voxels = np.argwhere(np.ones(SHAPE, bool))
    grid = global_roi(box).to_grid(voxels)
    ramp = (grid - global_roi(box).to_grid([click])) @ [1.0, 0.5, 0.25]
    known = ((grid >= 0) & (grid <= 63)).all(axis=1)
    found = prediction.at(voxels)
    positive = known & (ramp > 1e-3)
    assert positive.sum() > 0
    np.testing.assert_allclose(found[positive], ramp[positive], rtol=1e-4, atol=1e-3)
    assert (found[known & (ramp < -1e-3)] <= 0).all()
    outside = ~((grid >= -0.5) & (grid < 63.5)).all(axis=1)
    assert np.isneginf(found[outside]).all()


@pytest.mark.parametrize(
    ("lo", "hi"),
    [
        ((8, 20, 10), (16, 40, 30)),
        ((0, 0, 0), (4, 25, 9)),
        ((19, 40, 25), (24, 60, 40)),
        ((7, 8, 9), (8, 9, 10)),
    ],
)
def test_the_image_lies_where_the_mask_is_pasted(fakes, lo, hi):
    block = tuple(slice(a, b) for a, b in zip(lo, hi, strict=True))
    array = np.zeros(SHAPE, np.uint8)
    array[block] = 250
    network = fakes.Network(lambda image, points, labels: image - (image.min() + image.max()) / 2)
    (prediction,) = expert_of(network).predict(from_array(array), Prompts(box=Box(lo, hi)), "none")
    np.testing.assert_array_equal(mask_of(prediction), array == 250)


def test_without_clicks_the_box_alone_is_decoded_once(volume, fakes):
    network = fakes.Network(fakes.constant(1.0), box_label=2)
    expert_of(network).predict(volume, Prompts(box=BOXES[0]))
    ((points, labels, mask),) = network.decoded
    np.testing.assert_array_equal(points.numpy(), [[[31.5, 31.5, 31.5]]])
    assert labels.tolist() == [[2]]
    assert mask is None


def test_clicks_come_in_a_second_round_with_the_first_mask(volume, fakes):
    network = fakes.Network(lambda image, points, labels: torch.full(image.shape, float(len(labels))))
    prompts = Prompts(clicks([(12, 30, 20), (9, 21, 11)], [(10, 25, 15), (23, 59, 39)]), BOXES[0])
    (prediction,) = expert_of(network).predict(volume, prompts)
    (_, _, no_mask), (points, labels, mask) = network.decoded
    assert no_mask is None
    torch.testing.assert_close(mask, torch.full((1, 1, 64, 64, 64), 1.0))
    # Sorted; (23, 59, 39) lies outside the region.
    roi = global_roi(BOXES[0])
    expected = roi.to_grid([(9, 21, 11), (10, 25, 15), (12, 30, 20)])
    np.testing.assert_allclose(points[0, 1:].numpy(), expected, rtol=1e-6)
    np.testing.assert_array_equal(points[0, 0].numpy(), [31.5] * 3)
    assert labels.tolist() == [[2, 1, 0, 1]]
    assert (prediction.logits == 4).all()


def test_a_further_click_in_a_region_is_one_decoding(volume, fakes):
    network = fakes.Network(fakes.constant(1.0))
    expert = GlobalExpert(network, "cpu", ByteCache(1 << 26))
    box = Box((4.0, 4.0, 4.0), (12.0, 12.0, 12.0))
    clicks = (Click((6, 6, 6)), Click((7, 8, 9), False), Click((9, 5, 10)))
    for count in range(1, 4):
        expert.predict(volume, Prompts(clicks[:count], box))
    assert len(network.encoded) == 1
    # The box alone once, and then each request's clicks.
    assert [labels.shape[1] for _, labels, _ in network.decoded] == [1, 2, 3, 4]


def test_the_published_network_gets_the_centre_as_a_foreground_click(volume, fakes):
    network = fakes.Network(fakes.constant(1.0), box_label=1)
    expert_of(network).predict(volume, Prompts(box=BOXES[0]))
    assert network.decoded[0][1].tolist() == [[1]]


def test_a_given_mask_takes_the_place_of_the_first_round(volume, fakes):
    network = fakes.Network(fakes.constant(1.0))
    box = Box((4, 10, 10), (12, 30, 30))
    mask = np.zeros(SHAPE, bool)
    mask[4:12, 10:30, 10:30] = True
    for prompts in (Prompts((), box, mask), Prompts(clicks([(8, 20, 20)]), box, mask)):
        network.decoded.clear()
        expert_of(network).predict(volume, prompts)
        ((_, labels, given),) = network.decoded
        assert labels.shape[1] == 1 + len(prompts.clicks)
        assert given[0, 0, 32, 32, 32].item() == pytest.approx(4, abs=1e-4)
        assert given[0, 0, 0, 0, 0].item() == pytest.approx(-4, abs=1e-4)
        share = (given > 0).float().mean().item()
        assert share == pytest.approx(1 / 1.8**3, rel=0.05)


@pytest.mark.parametrize("filled", [None, (23, 59, 39)])
def test_a_mask_that_is_empty_in_the_region_is_no_mask(volume, fakes, filled):
    mask = np.zeros(SHAPE, bool)
    if filled:
        mask[filled] = True
    network = fakes.Network(fakes.constant(1.0))
    expert_of(network).predict(volume, Prompts(clicks([(12, 30, 20)]), BOXES[0], mask))
    assert len(network.decoded) == 2
    assert network.decoded[1][2].unique().tolist() == [1.0]


def test_a_foreground_click_enlarges_the_region_and_a_background_click_does_not(volume, fakes):
    network = fakes.Network(fakes.slope)
    expert = expert_of(network)
    expert.predict(volume, Prompts(box=BOXES[0]))
    expert.predict(volume, Prompts(clicks([(12, 30, 20)], [(23, 59, 39)]), BOXES[0]))
    assert len(network.encoded) == 1
    expert.predict(volume, Prompts(clicks([(2, 30, 20)]), BOXES[0]))
    assert len(network.encoded) == 2
    points = network.decoded[-1][0]
    expected = global_roi(Box((2, 20, 10), (16, 40, 30))).to_grid([(2, 30, 20)])
    np.testing.assert_allclose(points[0, 1:].numpy(), expected, rtol=1e-6)


def test_two_points_stand_for_a_box_and_further_ones_are_clicks(volume, fakes):
    network = fakes.Network(fakes.constant(1.0))
    corners = [(15, 20, 29), (8, 39, 10)]
    prompts = Prompts(clicks([*corners, (12, 30, 20)], [(13, 30, 20)]))
    (with_points,) = expert_of(network).predict(volume, prompts)
    np.testing.assert_allclose(
        network.decoded[-1][0][0, 1:].numpy(),
        global_roi(BOXES[0]).to_grid([(12, 30, 20), (13, 30, 20)]),
        rtol=1e-6,
    )
    (with_box,) = expert_of(network).predict(
        volume, Prompts(clicks([(12, 30, 20)], [(13, 30, 20)]), Box((8, 20, 10), (16, 40, 30)))
    )
    assert with_points.region == with_box.region
    assert torch.equal(network.encoded[0], network.encoded[1])


def test_a_masks_box_stands_for_one_and_clicks_stay_clicks(volume, fakes):
    mask = np.zeros(SHAPE, bool)
    mask[8:16, 20:40, 10:30] = True
    network = fakes.Network(fakes.constant(1.0))
    given_clicks = clicks([(12, 30, 20), (9, 25, 15)], [(13, 30, 20)])
    (found,) = expert_of(network).predict(volume, Prompts(given_clicks, mask=mask))
    points = network.decoded[-1][0]
    roi = global_roi(Box((8, 20, 10), (16, 40, 30)))
    expected = roi.to_grid([(9, 25, 15), (12, 30, 20), (13, 30, 20)])
    np.testing.assert_allclose(points[0, 1:].numpy(), expected, rtol=1e-6)
    (with_box,) = expert_of(network).predict(
        volume, Prompts(given_clicks, Box((8, 20, 10), (16, 40, 30)), mask)
    )
    assert found.region == with_box.region
    np.testing.assert_array_equal(found.logits, with_box.logits)
    # One click suffices then.
    expert_of(network).predict(volume, Prompts(given_clicks[:1], mask=mask))


@pytest.mark.parametrize(
    ("fg", "found"), [([], "no foreground clicks"), ([(3, 3, 3)], "1 foreground click;")]
)
def test_without_a_box_two_points_are_needed(volume, fakes, fg, found):
    with pytest.raises(PromptError, match=rf"box or two .*{found}"):
        expert_of(fakes.Network(fakes.slope)).predict(volume, Prompts(clicks(fg, [(4, 4, 4)])))


def test_an_embedding_serves_one_image_region_window_and_network(volume, fakes):
    network, other = fakes.Network(fakes.slope), fakes.Network(fakes.slope)
    cache = ByteCache(1 << 30)
    expert, rival = GlobalExpert(network, "cpu", cache), GlobalExpert(other, "cpu", cache)
    ct = from_array(np.random.default_rng(1).integers(-1000, 1000, SHAPE).astype(np.int16), modality="ct")
    prompts = Prompts(box=BOXES[0])
    for image, intensity, encoded in [
        (volume, "auto", 1),
        (volume, "auto", 1),
        (ct, "bone", 2),
        (ct, "lung", 3),
        (ct, "bone", 3),
        (volume, "auto", 3),
    ]:
        expert.predict(image, prompts, intensity)
        assert len(network.encoded) == encoded
    rival.predict(volume, prompts)
    assert len(other.encoded) == 1


def test_an_unknown_intensity_is_an_error(volume, fakes):
    with pytest.raises(UserError, match="'liver'"):
        expert_of(fakes.Network(fakes.slope)).predict(volume, Prompts(box=BOXES[0]), "liver")


def test_stages_tell_what_was_done(volume, fakes):
    expert = expert_of(fakes.Network(fakes.slope))
    cold, warm = StageTimer(), StageTimer()
    expert.predict(volume, Prompts(box=BOXES[0]), stages=cold)
    expert.predict(volume, Prompts(box=BOXES[0]), stages=warm)
    assert {"crop", "encode", "decode", "paste"} == set(cold)
    assert "encode" not in warm


def test_lower_precision_reaches_the_network_and_logits_stay_float32(volume, fakes):
    seen = []

    def watch(image: torch.Tensor, points: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return torch.ones(image.shape, dtype=torch.bfloat16)

    expert = GlobalExpert(fakes.Network(watch), "cpu", ByteCache(0), "bfloat16")
    (prediction,) = expert.predict(volume, Prompts(box=BOXES[0]))
    assert seen == [True]
    assert prediction.logits.dtype == np.float32

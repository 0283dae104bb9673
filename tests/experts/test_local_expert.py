from __future__ import annotations

import logging
import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from dualclickmed.byte_cache import ByteCache
from dualclickmed.errors import PromptError
from dualclickmed.experts import LocalExpert, Prediction
from dualclickmed.experts.inputs import MAX_CLICKS
from dualclickmed.experts.local_expert import (
    LOGIT_LIMIT,
    MAX_WINDOWS,
    View,
    click_windows,
    edge_strength,
    last_window,
    views,
    windows_in_order,
)
from dualclickmed.experts.timing import StageTimer
from dualclickmed.imaging.geometry import Box, Index, window_at
from dualclickmed.imaging.prompts import Click, Prompts
from dualclickmed.imaging.volume import Volume, from_array
from hypothesis import given
from hypothesis import strategies as st

SHAPE = (30, 40, 50)
WINDOW = (16, 16, 16)


@pytest.fixture
def volume() -> Volume:
    return from_array(np.random.default_rng(0).integers(1, 256, SHAPE, dtype=np.uint8))


def expert_of(network: torch.nn.Module, window: Index = WINDOW) -> LocalExpert:
    return LocalExpert(network, "cpu", ByteCache(1 << 30), window=window)


def clicks(fg: list[Index], bg: Sequence[Index] = ()) -> tuple[Click, ...]:
    return tuple(Click(p, True) for p in fg) + tuple(Click(p, False) for p in bg)


def covered(centre: Index) -> np.ndarray:
    inside = np.zeros(SHAPE, bool)
    inside[window_at(centre, WINDOW).box.voxels(SHAPE)] = True
    return inside


def full(predictions: list[Prediction]) -> np.ndarray:
    values = np.full(SHAPE, -np.inf, np.float32)
    for prediction in predictions:
        values[prediction.region] = np.maximum(values[prediction.region], prediction.logits)
    return values


@pytest.mark.parametrize("click", [(15, 20, 25), (0, 0, 0), (29, 39, 49), (3, 38, 10)])
def test_coordinates_survive_the_way_to_the_network_and_back(volume, fakes, click):
    """The network answers a ramp that is zero at the click: at each voxel the logit tells its distance."""
    prediction = expert_of(fakes.Network(fakes.slope)).predict(volume, Prompts(clicks([click])))
    ramp = np.tensordot([1.0, 0.5, 0.25], np.indices(SHAPE) - np.reshape(click, (3, 1, 1, 1)), axes=1)
    expected = np.where(covered(click), np.clip(ramp, -LOGIT_LIMIT, LOGIT_LIMIT), -1)
    found = full(prediction)
    np.testing.assert_array_equal(found[expected > 0], expected[expected > 0].astype(np.float32))
    assert (found[expected <= 0] <= 0).all()


def test_the_window_shows_the_voxels_themselves(fakes):
    array = np.zeros(SHAPE, np.uint8)
    array[10:14, 15, 20:30] = 200
    network = fakes.Network(lambda image, points, labels: image - 0.5)
    found = full(expert_of(network).predict(from_array(array), Prompts(clicks([(12, 15, 24)])), "none"))
    np.testing.assert_array_equal(found > 0, (array > 0) & covered((12, 15, 24)))


def test_a_window_sees_every_click_inside_it_whatever_their_order(volume, fakes):
    fg, bg = [(15, 20, 25), (15, 30, 25)], [(14, 24, 25), (1, 1, 1)]
    seen = []
    for prompts in (clicks(fg, bg), clicks(fg, bg)[::-1]):
        network = fakes.Network(fakes.constant(1.0))
        expert_of(network).predict(volume, Prompts(prompts))
        seen.append([(p[0].tolist(), label[0].tolist()) for p, label, _ in network.decoded])
    assert seen[0] == seen[1]
    # Windows about (14, 24, 25), (15, 20, 25) and (15, 30, 25); none about (1, 1, 1).
    assert [labels for _, labels in seen[0]] == [[0, 1, 1], [0, 1], [0, 1]]
    assert seen[0][0][0] == [[8, 8, 8], [9, 4, 8], [9, 14, 8]]


def test_the_last_click_opens_the_one_window_with_all_clicks_inside_it(volume, fakes):
    fg, bg = [(15, 20, 10), (15, 20, 30), (15, 22, 35)], [(15, 24, 33)]
    network = fakes.Network(fakes.constant(1.0))
    prompts = Prompts(clicks(fg, bg), ordered=True)
    found = full(expert_of(network).predict(volume, prompts, last=True))
    assert len(network.encoded) == 1
    np.testing.assert_array_equal(found > 0, covered((15, 24, 33)))
    assert sorted(network.decoded[0][1][0].tolist()) == [0, 1, 1]


def test_a_last_click_far_from_the_object_leaves_the_window_to_the_one_before():
    near, far = Click((15, 20, 10)), Click((15, 20, 45), False)
    assert last_window((near, far), WINDOW) == [window_at(near.index, WINDOW)]
    assert last_window((far, near), WINDOW) == [window_at(near.index, WINDOW)]
    assert last_window((far,), WINDOW) == []


def test_windows_are_averaged_where_they_overlap(volume, fakes):
    first, second = (15, 20, 20), (15, 20, 30)

    def left_or_right(image: torch.Tensor, points: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.full(image.shape, 6.0 if labels.shape[0] == 2 else -2.0)

    # The background click lies in the first window only.
    prompts = Prompts(clicks([first, second], [(15, 20, 14)]))
    network = fakes.Network(left_or_right)
    found = full(expert_of(network).predict(volume, prompts))
    # Windows at columns 20 (6), 30 (-2) and, about the background click, 14 (6).
    assert len(network.decoded) == 3
    assert found[15, 20, 28 - 1] == pytest.approx((6 - 2) / 2)
    assert found[15, 20, 14] == pytest.approx(6)
    assert found[15, 20, 30] <= 0


def test_a_window_without_evidence_of_the_object_is_not_computed(volume, fakes):
    network = fakes.Network(fakes.constant(1.0))
    found = full(expert_of(network).predict(volume, Prompts(clicks([(15, 20, 10)], [(15, 20, 40)]))))
    assert len(network.encoded) == 1
    np.testing.assert_array_equal(found > 0, covered((15, 20, 10)))


def test_outside_every_window_the_previous_mask_holds(volume, fakes):
    mask = np.zeros(SHAPE, bool)
    mask[10:20, 15:25, 2:45] = True
    prompts = Prompts(clicks([(15, 20, 10)], [(15, 20, 40)]), mask=mask)
    found = full(expert_of(fakes.Network(fakes.constant(-1.0))).predict(volume, prompts))
    np.testing.assert_array_equal(found > 0, mask & ~covered((15, 20, 10)))
    found = full(expert_of(fakes.Network(fakes.constant(1.0))).predict(volume, prompts))
    np.testing.assert_array_equal(found > 0, mask | covered((15, 20, 10)))


def test_no_window_outvotes_the_others_without_bound(volume, fakes):
    # The middle window sees all three clicks, the outer ones two each.
    prompts = Prompts(clicks([(15, 20, 20), (15, 20, 27), (15, 20, 34)]))
    network = fakes.Network(
        lambda image, points, labels: torch.full(image.shape, -9999.0 if len(labels) == 3 else 7.0)
    )
    found = full(expert_of(network).predict(volume, prompts))
    assert found[15, 20, 27] == pytest.approx((7 + 7 - LOGIT_LIMIT) / 3)


def test_a_box_alone_is_clicked_in_its_centre(volume, fakes):
    network = fakes.Network(fakes.slope)
    found = expert_of(network).predict(volume, Prompts(box=Box((10, 10, 10), (15, 20, 30))))
    expected = expert_of(fakes.Network(fakes.slope)).predict(volume, Prompts(clicks([(12, 15, 20)])))
    np.testing.assert_array_equal(full(found), full(expected))
    network.decoded.clear()
    # A real click makes the guess unnecessary.
    expert_of(network).predict(volume, Prompts(clicks([(11, 12, 13)]), Box((10, 10, 10), (15, 20, 30))))
    assert network.decoded[0][0].tolist() == [[[8, 8, 8]]]


def test_background_clicks_alone_are_an_error(volume, fakes):
    expert = expert_of(fakes.Network(fakes.slope))
    with pytest.raises(PromptError, match="foreground click, but there are only 2 background clicks"):
        expert.predict(volume, Prompts(clicks([], [(1, 2, 3), (4, 5, 6)])))
    with pytest.raises(PromptError, match=r"\(12, 15, 20\)"):
        expert.predict(volume, Prompts(clicks([], [(12, 15, 20)]), Box((10, 10, 10), (15, 20, 30))))


def test_windows_far_apart_take_no_memory_between_them(volume, fakes):
    expert = expert_of(fakes.Network(fakes.constant(1.0)))
    near = [(8, 10, 10), (8, 22, 22)]
    predictions = expert.predict(volume, Prompts(clicks([*near, (25, 35, 45), (15, 15, 16)])))
    # The window about (15, 15, 16) joins the two that do not touch each other.
    assert sorted(p.logits.shape for p in predictions) == [(13, 13, 13), (23, 28, 28)]
    found = full(predictions) > 0
    np.testing.assert_array_equal(
        found, np.any([covered(p) for p in [*near, (25, 35, 45), (15, 15, 16)]], axis=0)
    )


def test_features_and_what_one_click_finds_are_kept_by_window(volume, fakes):
    network = fakes.Network(fakes.slope)
    expert = expert_of(network)
    expert.predict(volume, Prompts(clicks([(15, 20, 10)])))
    expert.predict(volume, Prompts(clicks([(15, 20, 10), (15, 20, 30)])))
    expert.predict(volume, Prompts(clicks([(15, 20, 10), (15, 20, 30)], [(15, 21, 30)])))
    assert len(network.encoded) == 2
    first, both = StageTimer(), StageTimer()
    expert.predict(volume, Prompts(clicks([(15, 20, 10)])), stages=first)
    expert.predict(volume, Prompts(clicks([(15, 20, 10), (15, 20, 30)])), stages=both)
    assert (set(first), set(both)) == ({"paste"}, {"decode", "paste"})


INDICES = st.tuples(st.integers(0, 400), st.integers(0, 400), st.integers(0, 400))


@given(st.lists(INDICES, min_size=1, max_size=60, unique=True), st.lists(INDICES, max_size=20), st.randoms())
def test_windows_are_few_hold_foreground_and_do_not_depend_on_the_order(fg, bg, random):
    windows = click_windows(fg, bg, (128, 128, 128))
    assert 1 <= len(windows) <= MAX_WINDOWS
    assert all(any(w.box.contains(p) for p in fg) for w in windows)
    shuffled = list(fg)
    random.shuffle(shuffled)
    assert click_windows(shuffled, bg[::-1], (128, 128, 128)) == windows


@given(st.lists(st.tuples(INDICES, st.booleans()), min_size=1, max_size=20, unique_by=lambda click: click[0]))
def test_windows_of_clicks_in_order_stay_where_they_are(given_clicks):
    came = [Click(index, positive) for index, positive in given_clicks]
    size = (128, 128, 128)
    windows = windows_in_order(came, size)
    assert len(windows) <= MAX_WINDOWS
    for click in came:
        if click.positive:
            assert any(w.box.contains(click.index) for w in windows)
    later = windows_in_order([*came, Click((200, 200, 200), True)], size)
    if len(later) < MAX_WINDOWS:
        assert set(windows) <= set(later)


@pytest.mark.parametrize(
    ("second", "centres"),
    [
        (Click((97, 60, 70), True), [(50, 60, 70)]),
        (Click((98, 60, 70), True), [(50, 60, 70), (98, 60, 70)]),
        (Click((2, 60, 70), True), [(50, 60, 70), (2, 60, 70)]),
        (Click((98, 60, 70), False), [(50, 60, 70), (98, 60, 70)]),
        (Click((150, 60, 70), False), [(50, 60, 70)]),
    ],
    ids=[
        "shares",
        "opens",
        "opens, and the first stays",
        "background sees foreground",
        "background does not",
    ],
)
def test_a_further_click_opens_a_window_where_it_is_near_the_edge_of_each(second, centres):
    first = Click((50, 60, 70), True)
    expected = [window_at(centre) for centre in centres]
    assert windows_in_order([first, second], (128, 128, 128)) == expected


def test_a_scribble_has_the_same_windows_in_any_order():
    scribble = [(100 + n // 10, 100 + n % 10, 100) for n in range(100)]
    came = [Click(index, True) for index in scribble[::-1]]
    assert windows_in_order(came, (128, 128, 128)) == click_windows(scribble, [], (128, 128, 128))


def test_one_click_is_the_papers_window():
    assert click_windows([(50, 60, 70)], [], (128, 128, 128)) == [window_at((50, 60, 70))]


def test_clicks_of_a_scribble_share_windows_and_are_all_covered():
    scribble = [(100, 100 + i // 3, 100 + i) for i in range(300)]
    windows = click_windows(scribble, [], (128, 128, 128))
    assert len(windows) <= MAX_WINDOWS
    assert all(any(w.box.contains(p) for w in windows) for p in scribble)


def spiral(count: int, radius: float = 45.0, pitch: float = 60.0) -> list[Index]:
    """So many voxels on a helix about (100, 150, 150)."""
    found: dict[Index, None] = {}
    step = 0
    while len(found) < count:
        turn = step / 60
        height = pitch * (step / (40 * count) % 1 - 0.5)
        found[
            (round(100 + height), round(150 + radius * np.sin(turn)), round(150 + radius * np.cos(turn)))
        ] = None
        step += 1
    return list(found)


def test_a_scribble_that_fits_into_one_window_opens_one_in_its_middle():
    scribble = spiral(3455)
    windows = click_windows(scribble, [(100, 150, 230)] * 3, (128, 128, 128))
    assert len(windows) == 1
    middle = np.mean([windows[0].box.lo, windows[0].box.hi], axis=0)
    assert np.abs(np.asarray(scribble) - middle).max() < 64 - 128 // 8
    assert click_windows(scribble[::-1], [(100, 150, 230)], (128, 128, 128)) == windows


def test_background_opens_no_window_of_a_scribble():
    background = [(100, 90, x) for x in range(50, 250)]
    assert click_windows([(100, 150, 150)], background, (128, 128, 128)) == [window_at((100, 150, 150))]


@pytest.mark.parametrize("seed", range(20))
def test_windows_of_a_scribble_are_few_and_do_not_depend_on_the_order(seed):
    rng = np.random.default_rng(seed)

    def scattered(corner: Index, side: int, count: int) -> list[Index]:
        return [(z, y, x) for z, y, x in (corner + rng.integers(0, side, (count, 3))).tolist()]

    near, far = scattered((50, 10, 200), 95, 100), scattered((0, 0, 0), 400, 30)
    assert len(click_windows(near, far, (128, 128, 128))) == 1
    scribble = [*near, *far]
    windows = click_windows(scribble, [], (128, 128, 128))
    assert len(windows) <= MAX_WINDOWS
    assert sum(any(w.box.contains(p) for w in windows) for p in scribble) >= len(near)
    random.Random(seed).shuffle(scribble)
    assert click_windows(scribble, [], (128, 128, 128)) == windows


def test_a_scribble_costs_what_a_few_clicks_cost(fakes):
    volume = from_array(np.random.default_rng(0).integers(1, 256, (160, 300, 300), dtype=np.uint8))
    network = fakes.Network(fakes.constant(1.0))
    scribble = spiral(3455)
    background = [(100, 90, x) for x in range(50, 250)]
    found = expert_of(network, (128, 128, 128)).predict(volume, Prompts(clicks(scribble, background)))
    assert len(network.encoded) == len(network.decoded) == 1
    points, labels, _ = network.decoded[0]
    assert points.shape[1] <= MAX_CLICKS
    assert set(labels[0].tolist()) == {0, 1}
    assert (found[0].at(np.asarray(scribble)) > 0).all()


def test_a_scribble_wider_than_all_windows_says_what_is_left(caplog):
    scattered = [
        (z, y, x) for z in range(0, 800, 160) for y in range(0, 800, 160) for x in range(0, 800, 160)
    ]
    with caplog.at_level(logging.WARNING):
        windows = click_windows(scattered, [], (128, 128, 128))
    assert len(windows) == MAX_WINDOWS
    assert "113 clicks of a scribble are outside the 12 windows" in caplog.text


def test_too_many_windows_keep_the_most_clicks_and_say_so(caplog):
    crowd = [(0, 0, x) for x in range(0, 40, 8)]
    spread = [(z, y, 200) for z in range(0, 800, 160) for y in range(0, 800, 160)]
    with caplog.at_level(logging.WARNING):
        windows = click_windows(crowd + spread, [], (128, 128, 128))
    assert len(windows) == MAX_WINDOWS
    assert any(all(w.box.contains(p) for p in crowd) for w in windows)
    assert "26 windows" in caplog.text


def test_views_of_uneven_voxels_have_cells_that_are_cubes():
    assert views((1.0, 1.2, 1.4))[0] == View((1.0, 1.0, 1.0), "mirror")
    narrow, wide = views((6.0, 0.375, 0.375))
    assert narrow == View((0.25, 4.0, 4.0), "mirror")  # 1.5 mm along each axis
    assert wide == View((0.5, 8.0, 8.0), "mirror")


def test_a_view_s_window_is_the_same_number_of_cells_about_the_click():
    (window,) = View((0.25, 4.0, 4.0), "mirror").windows_in_order([Click((10, 100, 41))], (16, 16, 16))
    # Voxel 10's centre, 10.5, lies in cell 42; voxel 100's in cell 25; voxel 41's in cell 10.
    assert window.grid == (16, 16, 16)
    assert window.box == Box(((42 - 8) * 0.25, (25 - 8) * 4.0, (10 - 8) * 4.0), (12.5, 132.0, 72.0))


def test_the_clearest_edges_are_those_of_the_object():
    away = np.linalg.norm(np.stack(np.mgrid[:32, :32, :32], axis=-1) - 16, axis=-1)
    image = (away <= 8).astype(np.float32)
    strengths = {radius: edge_strength(image, away <= radius) for radius in (3, 5, 8, 11)}
    assert max(strengths, key=strengths.__getitem__) == 8
    assert edge_strength(image, np.zeros(image.shape, bool)) == 0

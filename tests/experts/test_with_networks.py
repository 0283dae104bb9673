"""The experts with the real, untrained networks: the answer is a function of the request alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from dualclickmed.byte_cache import ByteCache
from dualclickmed.experts import DualExpert, GlobalExpert, LocalExpert
from dualclickmed.experts.fused.window_search import windows
from dualclickmed.experts.timing import StageTimer
from dualclickmed.imaging.geometry import Box
from dualclickmed.imaging.prompts import Click, Prompts
from dualclickmed.imaging.volume import Volume, from_array
from dualclickmed.networks.build import build_global, build_local
from dualclickmed.networks.configs import LocalConfig

SHAPE = (40, 48, 56)
WINDOW = (32, 32, 32)
PROMPTS = {
    "boxed": Prompts((Click((12, 14, 14)), Click((4, 4, 4), False)), Box((6, 6, 6), (18, 22, 20))),
    "clicked": Prompts((Click((28, 30, 40)), Click((30, 34, 44)), Click((20, 30, 40), False))),
}


@pytest.fixture(scope="module")
def networks() -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    whole = build_global("compact")
    # A new one answers with the ellipsoid, whatever else it sees.
    torch.nn.init.normal_(whole.get_parameter("out.weight"), std=0.1)
    return whole, build_local("compact")


@pytest.fixture(scope="module")
def volume() -> Volume:
    rng = np.random.default_rng(0)
    array = rng.normal(100, 20, SHAPE)
    array[8:16, 8:20, 8:18] += 80
    array[24:34, 24:38, 34:50] -= 60
    return from_array(np.clip(array, 0, 255).astype(np.uint8), (3.0, 1.0, 1.0))


def dual_of(networks: tuple[torch.nn.Module, torch.nn.Module], max_bytes: int = 1 << 30) -> DualExpert:
    cache = ByteCache(max_bytes)
    return DualExpert(
        GlobalExpert(networks[0], "cpu", cache),
        LocalExpert(networks[1], "cpu", cache, window=WINDOW),
        cache,
    )


@pytest.mark.parametrize(("card", "side"), [({"window": 64}, 64), ({}, 128)])
def test_windows_are_those_of_the_network_or_of_the_paper_where_a_card_has_none(card, side):
    small = {"init_filters": 8, "blocks_down": [1, 1], "out_channels": 8, "feature_size": 8}
    network = build_local(LocalConfig.from_dict(small | card))
    assert LocalExpert(network, "cpu", ByteCache(0)).window == (side, side, side)


@pytest.mark.parametrize("label", PROMPTS)
def test_cold_and_warm_caches_and_none_give_the_same_bytes(networks, volume, label):
    dual = dual_of(networks)
    cold = dual.segment(volume, {label: PROMPTS[label]})
    warm = dual.segment(volume, {label: PROMPTS[label]})
    uncached = dual_of(networks, 0).segment(volume, {label: PROMPTS[label]})
    assert "encode" in cold.stages
    assert "encode" not in warm.stages
    assert cold.labels.any()
    assert cold.labels.tobytes() == warm.labels.tobytes() == uncached.labels.tobytes()


def test_what_was_asked_before_plays_no_part(networks, volume):
    label = "clicked"
    clicks = PROMPTS[label].clicks
    dual = dual_of(networks)
    for count in range(1, len(clicks) + 1):
        stepwise = dual.segment(volume, {label: Prompts(clicks[:count])}, "paper")
    at_once = dual_of(networks).segment(volume, {label: Prompts(clicks[::-1])}, "paper")
    assert stepwise.labels.tobytes() == at_once.labels.tobytes()
    # Undo is sending fewer clicks.
    undone = dual.segment(volume, {label: Prompts(clicks[:1])}, "paper")
    alone = dual_of(networks).segment(volume, {label: Prompts(clicks[:1])}, "paper")
    assert undone.labels.tobytes() == alone.labels.tobytes()


def test_a_label_is_predicted_alike_alone_and_among_others(networks, volume):
    dual = dual_of(networks)
    for prompts in PROMPTS.values():
        expert = dual.global_expert if prompts.box else dual.local_expert
        checked = prompts.checked(SHAPE)
        alone = expert.predict(volume, checked)
        dual.segment(volume, PROMPTS)
        again = expert.predict(volume, checked)
        assert [p.region for p in alone] == [p.region for p in again]
        assert [p.logits.tobytes() for p in alone] == [p.logits.tobytes() for p in again]


def test_regions_of_one_batch_are_answered_as_each_alone(networks, volume):
    expert = GlobalExpert(networks[0], "cpu", ByteCache(0))
    click = Click((12, 14, 14))
    looked = windows(click.index, volume, 32)
    together = expert.window_logits(volume, looked, click, "auto", StageTimer())
    alone = [expert.window_logits(volume, [window], click, "auto", StageTimer())[0] for window in looked]
    assert len(looked) > 2 and float(together.std()) > 0.05
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-5)

    boxes = [Box((6, 6, 6), (18, 22, 20)), Box((20, 20, 30), (38, 44, 54))]
    together = expert.boxes_logits(volume, boxes, "auto", StageTimer())
    alone = [expert.logits(volume, Prompts(box=box), "auto", StageTimer())[1] for box in boxes]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-5)


def test_threads_get_the_same_answer(networks, volume):
    dual = dual_of(networks)
    expected = dual_of(networks).segment(volume, PROMPTS).labels.tobytes()
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(dual.segment, volume, PROMPTS) for _ in range(3)]
    assert all(answer.result().labels.tobytes() == expected for answer in answers)


def test_in_lower_precision_every_click_holds_too(networks, volume):
    cache = ByteCache(1 << 30)
    dual = DualExpert(
        GlobalExpert(networks[0], "cpu", cache, "bfloat16"),
        LocalExpert(networks[1], "cpu", cache, "bfloat16", WINDOW),
        cache,
    )
    result = dual.segment(volume, PROMPTS)
    for label, prompts in PROMPTS.items():
        assert all(result.mask(label)[c.index] == c.positive for c in prompts.clicks)

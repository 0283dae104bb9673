"""When bfloat16 is chosen: a rule that gives the same answer every time."""

from __future__ import annotations

import time

import pytest
import torch
from dualclickmed.configs.options import ServerOptions
from dualclickmed.errors import UserError
from dualclickmed.experts import precision
from dualclickmed.experts.precision import (
    MOST_DIFFERENT,
    chosen_precision,
    mask_difference,
    training_precision,
)
from dualclickmed.networks.build import build_global, build_local
from dualclickmed.networks.configs import GlobalConfig, LocalConfig

GLOBAL = GlobalConfig(
    image_size=32, patch=8, embed_dim=24, depth=1, heads=2, window=6, prompt_dim=24, decoder_heads=2,
    decoder_mlp=16, mask_size=16,
)  # fmt: skip
LOCAL = LocalConfig(init_filters=8, blocks_down=(1, 1), out_channels=8, feature_size=8)
CPU = torch.device("cpu")


@pytest.fixture(params=["global", "local"])
def network(request: pytest.FixtureRequest):
    torch.manual_seed(0)
    return (build_global(GLOBAL) if request.param == "global" else build_local(LOCAL)).eval()


def test_names_mean_what_they_say(network) -> None:
    assert chosen_precision(network, "cpu", "float32") is None
    assert chosen_precision(network, "cpu", "bfloat16") is torch.bfloat16
    with pytest.raises(UserError, match="auto, float32, bfloat16, but it is 'half'"):
        chosen_precision(network, "cpu", "half")


def test_the_difference_is_that_of_the_masks_and_repeats(network) -> None:
    assert (
        mask_difference(network, CPU, torch.bfloat16) == mask_difference(network, CPU, torch.bfloat16) < 0.2
    )
    with torch.inference_mode():
        expected = precision._mask(network, CPU)
        with torch.autocast("cpu", torch.bfloat16):
            changed = (precision._mask(network, CPU) != expected).float().mean()
    assert mask_difference(network, CPU, torch.bfloat16) == float(changed)


@pytest.mark.parametrize(
    ("able", "pays", "different", "chosen"),
    [
        (True, True, MOST_DIFFERENT, torch.bfloat16),
        (True, True, MOST_DIFFERENT + 1e-6, None),
        (False, True, 0.0, None),
        (True, False, 0.0, None),
    ],
)
def test_auto_asks_the_processor_its_clock_and_the_masks(
    network, monkeypatch, able, pays, different, chosen
) -> None:
    monkeypatch.setattr(precision, "processor_has_bfloat16", lambda: able)
    monkeypatch.setattr(precision, "bfloat16_pays", lambda: pays)
    monkeypatch.setattr(precision, "mask_difference", lambda *_: different)
    assert chosen_precision(network, "cpu") is chosen


def test_products_are_timed_once_and_leave_the_random_state_alone(monkeypatch) -> None:
    precision.seconds_of_products.cache_clear()
    before = torch.get_rng_state()
    first = precision.seconds_of_products()
    assert min(first) > 0 and precision.seconds_of_products() == first
    assert precision.seconds_of_products.cache_info().misses == 1
    assert torch.equal(torch.get_rng_state(), before)


def test_products_are_timed_on_one_thread(monkeypatch) -> None:
    precision.seconds_of_products.cache_clear()
    threads = []
    clock = time.thread_time

    def thread_time() -> float:
        threads.append(torch.get_num_threads())
        return clock()

    monkeypatch.setattr(time, "thread_time", thread_time)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        precision.seconds_of_products()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert threads and set(threads) == {1}


@pytest.mark.parametrize(("bf16", "chosen"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_trains_in_the_type_that_it_computes_in(monkeypatch, bf16, chosen) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    assert training_precision("cuda") is chosen


def test_the_server_can_be_told() -> None:
    assert ServerOptions.from_conf({}).precision == "auto"
    assert ServerOptions.from_conf({"precision": "float32"}).precision == "float32"
    with pytest.raises(UserError, match="precision must be one of auto, float32, bfloat16"):
        ServerOptions.from_conf({"precision": "int8"})

"""Server settings: label names, colours, and what --conf accepts."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from dualclickmed.configs.options import ServerOptions
from dualclickmed.configs.wire import RESERVED
from dualclickmed.errors import UserError
from dualclickmed.experts.devices import resolved_device
from dualclickmed.imaging.label_map import BACKGROUND, DEFAULT_NAMES, MAX_LABELS, LabelMap, colour_of

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def test_labels_count_from_one_in_the_order_given() -> None:
    labels = LabelMap.parse(" liver, Spleen ,my tumor", RESERVED)
    assert labels.values == {"background": 0, "liver": 1, "Spleen": 2, "my tumor": 3}
    assert list(labels.values) == ["background", "liver", "Spleen", "my tumor"]


@pytest.mark.parametrize("name", ["spleen", "SPLEEN", " Spleen "])
def test_a_label_is_found_whatever_its_case(name: str) -> None:
    assert LabelMap(("liver", "Spleen")).find(name) == "Spleen"


def test_an_unknown_label_is_not_found() -> None:
    assert LabelMap(("liver",)).find("live") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "number 1 of the labels '' is empty"),
        ("liver,,spleen", "number 2 of the labels"),
        ("liver,spleen,", "number 3 of the labels"),
        ("liver,spleen,Liver", "'liver' comes twice"),
        ("liver,background", "always there with the value 0"),
        ("liver,Roi", "can't be called 'Roi'"),
        ("liver,foreground", "can't be called 'foreground'"),
        ("liver,result_extension", "can't be called"),
        ("a\nb", "printable"),
        ("x" * 65, "at most 64"),
        (",".join(f"l{n}" for n in range(MAX_LABELS + 1)), "At most 254 labels"),
    ],
)
def test_bad_label_lists_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LabelMap.parse(text, RESERVED)


def test_the_default_labels_pass_their_own_check() -> None:
    assert LabelMap.parse(",".join(DEFAULT_NAMES), RESERVED).names == DEFAULT_NAMES


def test_colours_are_slicers_or_follow_from_the_name() -> None:
    assert colour_of("Liver") == (221, 130, 101)
    assert colour_of("my organ") == colour_of("My organ") != colour_of("my other organ")
    assert all(0 <= level <= 255 for level in colour_of("my organ"))


def test_defaults_of_the_options() -> None:
    options = ServerOptions.from_conf({"auto_update_scoring": "false"})
    assert options.labels.names == DEFAULT_NAMES
    assert options.strategies() == ["fused", "paper", "global", "local"]
    assert options.cache_bytes == 2 << 30
    assert options.model_dir is None


def test_options_from_the_command_line() -> None:
    options = ServerOptions.from_conf(
        {
            "labels": "liver,tumor",
            "strategy": "global",
            "device": "cpu",
            "cache_gb": "0.5",
            "model_dir": "/weights",
        }
    )
    assert options.labels.names == ("liver", "tumor")
    assert options.strategies() == ["global", "paper", "local", "fused"]
    assert options.device == "cpu"
    assert options.devices()[0] == "cpu"
    assert options.cache_bytes == 1 << 29
    assert options.model_dir == Path("/weights")


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"strategy": "best"}, "strategy must be one of paper, global, local, fused, but it is 'best'"),
        ({"cache_gb": "much"}, "cache_gb must be a number"),
        ({"cache_gb": "-1"}, "cache_gb must be a number"),
        ({"cache_gb": "nan"}, "cache_gb must be a number"),
        ({"preset": "huge"}, "preset must be one of"),
        ({"device": "gpu"}, "device must be auto, cpu, cuda or cuda:N, but it is 'gpu'"),
        ({"device": "cuda:99"}, "'cuda:99' is not there"),
    ],
)
def test_bad_options_are_refused(conf: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ServerOptions.from_conf(conf)


@WITHOUT_GPU
def test_without_a_gpu_auto_is_the_cpu_and_requests_for_cuda_get_it_too() -> None:
    assert resolved_device("auto") == "cpu"
    assert ServerOptions().device_for("cuda") == "cpu"
    assert ServerOptions().device_for("cuda:3") == "cpu"
    with pytest.raises(UserError, match="'tpu'"):
        ServerOptions().device_for("tpu")


def test_a_gpu_is_named_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolved_device("auto") == resolved_device("cuda") == "cuda:0"
    assert ServerOptions(device="cuda:0").devices() == ["cuda:0", "cuda:1", "cpu"]
    assert ServerOptions(device="cuda:0").device_for("cuda:1") == "cuda:1"
    with pytest.raises(UserError, match="cuda:0, cuda:1"):
        ServerOptions().device_for("cuda:2")


def shown_by_ohif(labels: Mapping[str, int], clicked: Sequence[str]) -> dict[int, str]:
    """As which label the bundled OHIF shows each value of an answer (its `updateView`).

    A value of 0 counts as none, and the label's position among those that were clicked takes its place.
    """
    return {labels[label] or position: label for position, label in enumerate(clicked, start=1)}


def test_ohif_shows_every_label_as_itself_whatever_else_was_clicked() -> None:
    labels = LabelMap(("liver", "spleen", "tumor"))
    for count in (1, 2, 3, 4):
        for clicked in itertools.permutations((BACKGROUND, *labels.names), count):
            shown = shown_by_ohif(labels.announced, clicked)
            for label in set(clicked) - {BACKGROUND}:
                assert shown[labels.values[label]] == label
    # With background's real value the second of two labels would be taken for background.
    assert shown_by_ohif(labels.values, ("spleen", BACKGROUND)) == {2: BACKGROUND}

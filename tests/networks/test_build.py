"""Presets and configurations."""

from __future__ import annotations

import json

import pytest
import torch
from dualclickmed.networks.build import build_global, build_local
from dualclickmed.networks.configs import PRESETS, GlobalConfig, LocalConfig


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_configs_survive_a_model_card(preset: str) -> None:
    for config in PRESETS[preset]:
        assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("config", [GlobalConfig, LocalConfig])
def test_unknown_settings_are_named(config: type[GlobalConfig] | type[LocalConfig]) -> None:
    with pytest.raises(
        ValueError, match=r"has no colour; it has .*\bdetail_channels|has no colour; it has .*\bdepth"
    ):
        config.from_dict({"colour": 3})


@pytest.mark.parametrize("build", [build_global, build_local])
def test_unknown_presets_are_named(build: object) -> None:
    assert callable(build)
    with pytest.raises(ValueError, match="no preset 'huge'; choose one of paper, compact"):
        build("huge")


def test_a_network_built_from_a_card_has_the_same_weights() -> None:
    for build, config in ((build_global, PRESETS["compact"][0]), (build_local, PRESETS["compact"][1])):
        network = build(config)
        again = build(type(config).from_dict(json.loads(json.dumps(network.config.to_dict()))))
        again.load_state_dict(network.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))


def test_presets_differ_in_the_label_of_the_box_centre_and_the_mask_side() -> None:
    sizes = {
        name: (config.box_label, config.mask_size, config.mask_prompt_size)
        for name, (config, _) in PRESETS.items()
    }
    assert sizes == {"paper": (1, 32, 32), "transformer": (2, 64, 32), "compact": (2, 32, 32)}

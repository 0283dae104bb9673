"""The compact global network: every prompt is a channel beside the image."""

from __future__ import annotations

import pytest
import torch
from dualclickmed.networks.build import build_global
from dualclickmed.networks.configs import GlobalConfig
from dualclickmed.networks.early_fusion import PRIOR_GAIN, EarlyFusionNetwork
from dualclickmed.networks.evidence import BOX_SCALE

SIDE = 16
CONFIG = GlobalConfig(
    image_size=SIDE, mask_size=SIDE, box_label=2, unet_channels=(16, 32), unet_blocks=(1, 1), hold_edges=True
)
CENTRE = torch.full((1, 1, 3), (SIDE - 1) / 2)
BOX = torch.tensor([[2]])


@pytest.fixture
def network() -> EarlyFusionNetwork:
    torch.manual_seed(0)
    built = build_global(CONFIG).eval()
    assert isinstance(built, EarlyFusionNetwork)
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return built


def image(count: int = 1) -> torch.Tensor:
    return torch.randn(count, 1, SIDE, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def test_a_new_network_answers_with_the_ellipsoid_in_the_box() -> None:
    network = build_global(CONFIG).eval()
    with torch.inference_mode():
        logits = network.decode(network.encode(image()), CENTRE, BOX)
    at = (torch.arange(SIDE) + 0.5) * (2 / SIDE) - 1
    radius = (at[:, None, None] ** 2 + at[:, None] ** 2 + at**2).sqrt()
    expected = PRIOR_GAIN * (1 - BOX_SCALE * radius).clamp(-2, 1)
    torch.testing.assert_close(logits[0, 0], expected, atol=1e-5, rtol=1e-5)


def test_without_a_box_neither_ellipsoid_nor_evidence_counts(network: EarlyFusionNetwork) -> None:
    features = network.encode(image())
    changed = type(features)(features.embedding.clone(), features.skips)
    changed.embedding[:, 1:] += 1
    click, kind = torch.tensor([[[4.0, 5.0, 6.0]]]), torch.tensor([[1]])
    with torch.inference_mode():
        alone = network.decode(features, click, kind)
        torch.testing.assert_close(network.decode(changed, click, kind), alone)
        boxed = [
            network.decode(f, torch.cat([CENTRE, click], 1), torch.cat([BOX, kind], 1))
            for f in (features, changed)
        ]
    assert (boxed[0] - boxed[1]).abs().max() > 1e-3
    assert (boxed[0] - alone).abs().max() > 1e-3


def test_padding_has_no_effect_and_the_kind_of_a_click_has(network: EarlyFusionNetwork) -> None:
    features = network.encode(image())
    click = torch.tensor([[[4.0, 5.0, 6.0]]])
    with torch.inference_mode():
        box = network.decode(features, CENTRE, BOX)
        padded = network.decode(features, torch.cat([CENTRE, click], 1), torch.tensor([[2, -1]]))
        fore, back = (
            network.decode(features, torch.cat([CENTRE, click], 1), torch.tensor([[2, kind]]))
            for kind in (1, 0)
        )
    torch.testing.assert_close(padded, box)
    assert (fore - back).abs().max() > 1e-3
    assert (fore - box).abs().max() > 1e-3


def test_the_order_of_clicks_plays_no_part(network: EarlyFusionNetwork) -> None:
    features = network.encode(image())
    points = torch.tensor([[[7.5, 7.5, 7.5], [2.0, 3.0, 4.0], [9.0, 8.0, 12.0]]])
    labels = torch.tensor([[2, 1, 0]])
    turned = torch.tensor([2, 0, 1])
    with torch.inference_mode():
        torch.testing.assert_close(
            network.decode(features, points[:, turned], labels[:, turned]),
            network.decode(features, points, labels),
        )


def test_a_batch_is_its_images_one_by_one(network: EarlyFusionNetwork) -> None:
    images = image(3)
    points = torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(2)) * (SIDE - 1)
    labels = torch.tensor([[2, 1], [1, 0], [2, -1]])
    mask = torch.randn(3, 1, SIDE, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        features = network.encode(images)
        together = network.decode(features, points, labels, network.to_mask_prompt(mask))
        for i in range(3):
            alone = network.decode(
                network.encode(images[i : i + 1]), points[i : i + 1], labels[i : i + 1], mask[i : i + 1]
            )
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-4, rtol=1e-4)


def test_wrong_shapes_name_what_came(network: EarlyFusionNetwork) -> None:
    with pytest.raises(ValueError, match=r"16, 16, 16.*got \(1, 1, 8, 8, 8\)"):
        network.encode(torch.zeros(1, 1, 8, 8, 8))
    features = network.encode(image())
    with pytest.raises(ValueError, match="B = 1"):
        network.decode(features, torch.zeros(2, 1, 3), torch.zeros(2, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="can't be halved"):
        build_global(
            GlobalConfig(image_size=12, mask_size=12, unet_channels=(8, 8, 8), unet_blocks=(1, 1, 1))
        )


def test_configurations_from_before_are_still_read() -> None:
    stored = {k: v for k, v in GlobalConfig().to_dict().items() if not k.startswith(("unet", "hold"))}
    assert GlobalConfig.from_dict(stored) == GlobalConfig()
    assert GlobalConfig.from_dict(CONFIG.to_dict()) == CONFIG

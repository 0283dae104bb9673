"""The local network: MONAI's results without MONAI's waste, and what the compact head does with clicks."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from dualclickmed.networks.build import build_global, build_local
from dualclickmed.networks.configs import PRESETS, LocalConfig
from dualclickmed.networks.local_network import ClickHead, LocalFeatures, LocalNetwork, PointHead
from monai.networks.nets.segresnet_ds import SegResNetDS2
from monai.networks.nets.vista3d import PointMappingSAM, vista3d132
from torch import Tensor, nn

COMPACT = PRESETS["compact"][1]
SMALL_PAPER = LocalConfig(init_filters=8, blocks_down=(1, 1, 1), out_channels=8, feature_size=8)
SMALL_COMPACT = dataclasses.replace(
    COMPACT, init_filters=8, blocks_down=(1, 1), out_channels=8, feature_size=16
)
CONFIGS = pytest.mark.parametrize("config", [SMALL_PAPER, SMALL_COMPACT], ids=["paper", "compact"])


def small(config: LocalConfig) -> LocalNetwork:
    torch.manual_seed(0)
    return build_local(config).eval()


def request(batch: int, side: int, labels: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(batch, 1, side, side, side, generator=generator)
    points = torch.rand(batch, len(labels), 3, generator=generator) * (side - 1)
    return image, points, torch.tensor([labels] * batch)


def test_paper_preset_has_the_published_names_and_number_of_parameters() -> None:
    with torch.device("meta"):
        network, published = build_local("paper"), vista3d132()
    assert sum(p.numel() for p in network.parameters()) == 196_530_918
    expected = {
        name: tensor.shape
        for name, tensor in published.state_dict().items()
        if not name.startswith(("image_encoder.up_layers_auto", "class_head"))
    }
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == expected
    assert network.config.multiple == 16


def test_both_compact_experts_ship_in_32_megabytes() -> None:
    total = sum(p.numel() for n in (build_global("compact"), build_local("compact")) for p in n.parameters())
    assert 2 * total < 32e6


def test_point_head_is_monais() -> None:
    torch.manual_seed(2)
    published, ours = PointMappingSAM(8).eval(), PointHead(8).eval()
    for parameter in published.parameters():
        nn.init.normal_(parameter, std=0.3)
    ours.load_state_dict(published.state_dict())
    features = torch.randn(1, 8, 12, 8, 16)
    points = torch.tensor([[[3.0, 0.0, 15.0], [11.0, 7.0, 2.0], [0.0, 0.0, 0.0]]])
    labels = torch.tensor([[1, 0, 1]])
    with torch.inference_mode():
        expected = published(features, points, labels)
        got = ours(ours.embed(features[:, :1], features), points, labels)
    assert got.shape == (1, 1, 12, 8, 16)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_encoder_runs_the_point_branch_of_monais() -> None:
    network = small(SMALL_PAPER)
    torch.manual_seed(3)
    published = SegResNetDS2(
        in_channels=1, out_channels=8, init_filters=8, blocks_down=(1, 1, 1), norm="instance", dsdepth=1
    ).eval()
    network.image_encoder.load_state_dict(
        {k: v for k, v in published.state_dict().items() if not k.startswith("up_layers_auto")}
    )
    image, _, _ = request(1, 16, [])
    with torch.inference_mode():
        expected = network.point_head.embed(image, published(image, with_label=False)[0]).embedding
        torch.testing.assert_close(network.encode(image).embedding, expected)


@CONFIGS
def test_batch_is_one_at_a_time(config: LocalConfig) -> None:
    network = small(config)
    image, points, labels = request(3, 16, [1, 0])
    labels[1, 1] = -1
    with torch.inference_mode():
        features = network.encode(image)
        together = network.decode(features, points, labels)
        assert together.shape == image.shape
        for i in range(3):
            s = slice(i, i + 1)
            alone = network.decode(network.encode(image[s]), points[s], labels[s])
            torch.testing.assert_close(together[s], alone, rtol=1e-3, atol=1e-4)


@CONFIGS
def test_padding_points_have_no_effect(config: LocalConfig) -> None:
    network = small(config)
    image, points, labels = request(1, 16, [-1, 1, -1, 0])
    points[0, 0] = -1000.0
    with torch.inference_mode():
        features = network.encode(image)
        padded = network.decode(features, points, labels)
        assert torch.equal(padded, network.decode(features, points[:, [1, 3]], labels[:, [1, 3]]))
        nothing = network.decode(features, points[:, :0], labels[:, :0])
        assert torch.equal(network.decode(features, points[:, [0, 2]], labels[:, [0, 2]]), nothing)
        assert nothing.isfinite().all()


@CONFIGS
def test_click_at_index_zero_counts(config: LocalConfig) -> None:
    """MONAI's inference helper drops such a click."""
    network = small(config)
    image, _, _ = request(1, 16, [])
    with torch.inference_mode():
        features = network.encode(image)
        zero = network.decode(features, torch.zeros(1, 1, 3), torch.tensor([[1]]))
        none = network.decode(features, torch.zeros(1, 0, 3), torch.zeros(1, 0, dtype=torch.long))
        assert (zero - none).abs().max() > 1e-4


@CONFIGS
def test_answers_repeat_to_the_bit(config: LocalConfig) -> None:
    network = small(config)
    image, points, labels = request(1, 16, [1, 0])
    with torch.inference_mode():
        features = network.encode(image)
        first = network.decode(features, points, labels)
        network.decode(features, points, 1 - labels)
        assert torch.equal(network.decode(features, points, labels), first)


@CONFIGS
def test_gradients_reach_every_used_parameter(config: LocalConfig) -> None:
    network = small(config).train()
    image, points, labels = request(2, 16, [1, 0])
    # A plain mean would hide the norms' inputs.
    direction = torch.randn(image.shape)
    (network.decode(network.encode(image), points, labels) * direction).sum().backward()
    unreached = {
        name.removeprefix("point_head.").split(".")[0]
        for name, p in network.named_parameters()
        if p.grad is None
    }
    published_but_unused = {
        "mask_downsample", "class_embeddings", "not_a_point_embed", "special_class_embed", "zeroshot_embed",
    }  # fmt: skip
    assert unreached == (published_but_unused if config is SMALL_PAPER else set())


@pytest.mark.parametrize("bad", [(1, 1, 16, 16, 20), (1, 2, 16, 16, 16), (1, 16, 16, 16), (1, 1, 0, 16, 16)])
def test_wrong_windows_are_named(bad: tuple[int, ...]) -> None:
    network = small(dataclasses.replace(COMPACT, blocks_down=(1, 1, 1)))
    assert network.config.multiple == 8
    with pytest.raises(ValueError, match="multiples of 8"):
        network.encode(torch.zeros(bad))


def test_wrong_points_are_named() -> None:
    network = small(SMALL_COMPACT)
    features = network.encode(torch.zeros(1, 1, 16, 16, 16))
    with pytest.raises(ValueError, match=r"B = 1, got \(1, 2, 3\) and \(1, 1\)"):
        network.decode(features, torch.zeros(1, 2, 3), torch.zeros(1, 1, dtype=torch.long))


def blank_features(side: int) -> LocalFeatures:
    """Of an empty window of SMALL_COMPACT."""
    n = side // 2
    finer = [torch.zeros(1, channels, n, n, n) for channels in (8, 32, 1)]
    return LocalFeatures(torch.zeros(1, 16, n // 2, n // 2, n // 2), tuple(finer))


def transformer_inputs(head: ClickHead, features: LocalFeatures, point: Tensor) -> tuple[Tensor, Tensor]:
    """The transformer's positions of the grid (1, S, C) and tokens (1, T, C) for one foreground click."""
    seen: list[tuple[Tensor, Tensor]] = []
    hook = head.transformer.register_forward_pre_hook(lambda _, args: seen.append((args[1], args[2])))
    head(features, point, torch.tensor([[1]]))
    hook.remove()
    return seen[0]


def test_compact_positions_count_voxels_from_the_centre_whatever_the_crop() -> None:
    head = small(SMALL_COMPACT).point_head
    assert isinstance(head, ClickHead)
    offset = torch.tensor([[[2.0, -3.0, 5.5]]])
    grid, tokens = transformer_inputs(head, blank_features(16), offset + 7.5)
    larger_grid, larger_tokens = transformer_inputs(head, blank_features(32), offset + 15.5)
    torch.testing.assert_close(tokens, larger_tokens)
    middle = larger_grid.view(8, 8, 8, 16)[2:6, 2:6, 2:6]
    torch.testing.assert_close(middle, grid.view(4, 4, 4, 16))


def test_compact_grid_and_click_positions_agree() -> None:
    head = small(SMALL_COMPACT).point_head
    assert isinstance(head, ClickHead)
    nn.init.zeros_(head.point_projection.weight)
    nn.init.zeros_(head.point_projection.bias)
    # The centre of low-resolution voxel (1, 0, 3) is voxel coordinate 4 * i + 1.5 of the window.
    grid, tokens = transformer_inputs(head, blank_features(16), torch.tensor([[[5.5, 1.5, 13.5]]]))
    expected = grid.view(4, 4, 4, 16)[1, 0, 3] + head.point_embeddings[1].weight[0]
    torch.testing.assert_close(tokens[0, 1], expected)


def test_click_maps_act_where_the_click_is_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    network = small(COMPACT)
    head = network.point_head
    image, points, labels = request(1, 64, [1])
    maps = torch.zeros(1, 4, 32, 32, 32)
    monkeypatch.setattr(head, "_maps", lambda *_: maps)
    with torch.inference_mode():
        features = network.encode(image)
        base = network.decode(features, points, labels)
        for kind in range(4):
            maps[0, kind, 10, 20, 16] = 1.0  # voxels 20..21, 40..41, 32..33 of the window
            change = (network.decode(features, points, labels) - base).abs()[0, 0]
            maps.zero_()
            assert change[20:22, 40:42, 32:34].min() > 0
            # Two 3^3 convolutions reach two voxels of the folded grid.
            torch.testing.assert_close(change.sum(), change[16:26, 36:46, 28:38].sum())


def test_compact_maps_show_foreground_and_background_sharp_and_wide() -> None:
    head = small(SMALL_COMPACT).point_head
    assert isinstance(head, ClickHead)
    # Window voxels 8.5 and 22.5 of 32 are the centres of voxels 4 and 11 of 16.
    unit = (torch.tensor([[[8.5, 8.5, 8.5], [22.5, 22.5, 22.5]]]) + 0.5) / 32
    maps = head._maps(unit, torch.tensor([[1, 0]]), torch.zeros(1, 8, 16, 16, 16))[0]
    assert [m.item() for m in maps[:, 4, 4, 4]] == pytest.approx([1, 0, 1, math.exp(-3 * 49 / 72)], abs=1e-4)
    assert [m.item() for m in maps[:, 11, 11, 11]] == pytest.approx(
        [0, 1, math.exp(-3 * 49 / 72), 1], abs=1e-4
    )
    assert maps[0, 4, 4, 7].item() == pytest.approx(math.exp(-9 / (2 * 1.5**2)), abs=1e-4)


def test_compact_preset_is_finite_in_bfloat16_forward_and_backward() -> None:
    torch.manual_seed(0)
    network = build_local("compact")
    # oneDNN's bfloat16 weight gradient of a convolution over 2 voxels reads memory that nobody wrote; the
    # deepest level of a window of 64 has 4.
    image, points, labels = request(1, 64, [1, 0, -1])
    with torch.autocast("cpu", torch.bfloat16):
        logits = network.decode(network.encode(image), points, labels)
    assert logits.isfinite().all()
    logits.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())

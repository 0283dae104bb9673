"""The shared layers against the standard operations that they replace."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from dualclickmed.networks.layers import (
    Conv3d,
    Doubling,
    Halving,
    LayerNorm,
    LayerNorm3d,
    ResidualConv,
    centre_coordinates,
    click_maps,
    depth_to_space,
    sample_at,
    space_to_depth,
    with_fast_convolutions,
)
from torch import nn


def test_layer_norm_3d_is_the_published_formula() -> None:
    torch.manual_seed(0)
    norm = LayerNorm3d(6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(2, 6, 3, 4, 5) * 3 + 1
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).square().mean(1, keepdim=True)
    expected = (x - mean) / torch.sqrt(variance + 1e-6)
    expected = expected * norm.weight.view(1, 6, 1, 1, 1) + norm.bias.view(1, 6, 1, 1, 1)
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("rows", [300, 30000])
def test_layer_norm_keeps_its_gradients_in_bfloat16(rows: int) -> None:
    """PyTorch's own kernel loses most of the bias gradient at thousands of rows."""
    torch.manual_seed(0)
    norm = LayerNorm(8)
    x, direction = torch.randn(rows, 8), torch.rand(rows, 8)
    expected = torch.autograd.grad((norm(x) * direction).sum(), [norm.weight, norm.bias])
    y = norm(x.bfloat16())
    assert y.dtype == torch.bfloat16
    got = torch.autograd.grad((y * direction).sum(), [norm.weight, norm.bias])
    for one, other in zip(got, expected, strict=True):
        assert (one - other).norm() < 0.01 * other.norm() + 0.01 * rows**0.5


def test_space_to_depth_order_and_inverse() -> None:
    x = torch.arange(2 * 3 * 4 * 6 * 8, dtype=torch.float32).view(2, 3, 4, 6, 8)
    folded = space_to_depth(x, 2)
    assert folded.shape == (2, 24, 2, 3, 4)
    for dz, dy, dx, c in [(0, 0, 0, 0), (1, 0, 1, 2), (1, 1, 0, 1)]:
        channel = ((dz * 2 + dy) * 2 + dx) * 3 + c
        assert torch.equal(folded[:, channel], x[:, c, dz::2, dy::2, dx::2])
    assert torch.equal(depth_to_space(folded, 2), x)


def test_doubling_is_a_transposed_convolution() -> None:
    torch.manual_seed(1)
    layer = Doubling(5, 3)
    reference = torch.nn.ConvTranspose3d(5, 3, 2, stride=2)
    with torch.no_grad():
        # (8 * out, in), sub-voxel first -> (in, out, 2, 2, 2)
        weight = layer.proj.weight.view(2, 2, 2, 3, 5).permute(4, 3, 0, 1, 2)
        reference.weight.copy_(weight)
        layer.proj.bias.copy_(reference.bias.repeat(8))  # type: ignore[union-attr]
    x = torch.randn(2, 5, 3, 4, 2)
    torch.testing.assert_close(layer(x), reference(x))


def test_halving_is_a_strided_convolution() -> None:
    torch.manual_seed(2)
    layer = Halving(3, 4)
    weight = layer.proj.weight.view(4, 2, 2, 2, 3).permute(0, 4, 1, 2, 3)
    x = torch.randn(2, 3, 4, 6, 8)
    torch.testing.assert_close(layer(x), F.conv3d(x, weight, layer.proj.bias, stride=2))


def test_new_residual_block_is_the_identity() -> None:
    x = torch.randn(1, 4, 5, 5, 5)
    assert torch.equal(ResidualConv(4)(x), x)


def test_centre_coordinates() -> None:
    zyx_r = centre_coordinates((2, 4, 1))
    assert zyx_r[0, :, 0, 0].tolist() == [-0.5, 0.5]
    assert zyx_r[1, 0, :, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert zyx_r[2].abs().max() == 0
    torch.testing.assert_close(zyx_r[3, 0, 0, 0], torch.tensor(math.hypot(0.5, 0.75)))


def test_click_maps_are_maxima_of_gaussians() -> None:
    points = torch.tensor([[[1.3, 2.0, 3.7], [4.0, 0.2, 1.0], [2.0, 2.0, 2.0]]])
    weights = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]])
    sigmas = [1.0, 2.5, 1.0]
    maps = click_maps(points, weights, (6, 5, 7), sigmas)
    expected = torch.zeros(1, 3, 6, 5, 7)
    for m, sigma in enumerate(sigmas):
        for n in range(3):
            if weights[0, m, n] == 0:
                continue
            for z in range(6):
                for y in range(5):
                    for x in range(7):
                        squares = (torch.tensor([z, y, x]) - points[0, n]).square().sum().item()
                        value = math.exp(-squares / (2 * sigma**2))
                        expected[0, m, z, y, x] = max(expected[0, m, z, y, x].item(), value)
    torch.testing.assert_close(maps, expected)


def test_click_maps_without_points_are_zero() -> None:
    assert click_maps(torch.zeros(2, 0, 3), torch.zeros(2, 1, 0), (3, 3, 3), 1.0).abs().sum() == 0


@pytest.mark.parametrize("channels_last", [False, True])
def test_sample_at_is_grid_sample(channels_last: bool) -> None:
    torch.manual_seed(3)
    features = torch.randn(2, 5, 4, 6, 3)
    if channels_last:
        features = features.to(memory_format=torch.channels_last_3d)
    unit = torch.rand(2, 20, 3) * 1.4 - 0.2  # also outside
    where = (2 * unit - 1).flip(-1).view(2, 20, 1, 1, 3)
    expected = F.grid_sample(features, where, padding_mode="border", align_corners=False)
    torch.testing.assert_close(sample_at(features, unit), expected[..., 0, 0].transpose(1, 2))


def test_sample_at_a_voxel_centre_is_its_value() -> None:
    features = torch.randn(1, 2, 4, 4, 4)
    unit = (torch.tensor([[[2.0, 0.0, 3.0]]]) + 0.5) / 4
    torch.testing.assert_close(sample_at(features, unit)[0, 0], features[0, :, 2, 0, 3])


@pytest.mark.parametrize(
    "options", [{"padding": 1}, {"stride": 2, "padding": 1, "bias": False}, {"groups": 2}]
)
def test_fast_convolution_is_pytorchs(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv3d(4, 6, 3, **options)
    fast = with_fast_convolutions(nn.Sequential(copy.deepcopy(conv)))[0]
    assert type(fast) is Conv3d and type(conv) is nn.Conv3d
    for x in (torch.randn(1, 4, 6, 5, 7), torch.randn(2, 6, 5, 7, 4).permute(0, 4, 1, 2, 3)):
        with torch.inference_mode():
            torch.testing.assert_close(fast(x), conv(x))
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(fast(x), conv(x))
        assert torch.equal(fast(x), conv(x))  # with gradients it is PyTorch's own

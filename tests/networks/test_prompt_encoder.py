"""Prompt encoding against the published formulas, spelled out."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from dualclickmed.networks.prompt_encoder import FourierPositions, GridSizes, PromptEncoder


def encoder(**changes: object) -> PromptEncoder:
    torch.manual_seed(0)
    options: dict[str, object] = {
        "dim": 12,
        "sizes": GridSizes((32, 32, 32), (4, 4, 4), (16, 16, 16)),
        "mask_in_channels": 8,
        "published_positions": True,
        "point_kinds": 2,
        "dense_clicks": False,
        "point_features": (),
    }
    return PromptEncoder(**{**options, **changes})


def test_published_encoding_is_sin_cos_sin_of_scaled_positions() -> None:
    pe = FourierPositions(12, published=True)
    unit = torch.rand(5, 3)
    matrix = pe.positional_encoding_gaussian_matrix
    assert matrix.shape == (3, 4)
    angle = 2 * math.pi * (2 * unit - 1) @ matrix
    expected = torch.cat([angle.sin(), angle.cos(), angle.sin()], dim=-1)
    torch.testing.assert_close(pe(unit), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("published", [True, False])
def test_published_grid_swaps_the_first_two_axes(published: bool) -> None:
    pe = FourierPositions(12, published)
    grid = pe.grid((4, 4, 4))[0]
    for d, h, w in [(0, 1, 2), (3, 0, 1), (2, 2, 3)]:
        point = pe((torch.tensor([d, h, w]) + 0.5) / 4)
        at = (h, d, w) if published else (d, h, w)
        torch.testing.assert_close(grid[:, at[0], at[1], at[2]], point)


def test_positions_keep_their_precision_under_autocast() -> None:
    pe = FourierPositions(12, published=True)
    unit = torch.rand(5, 3)
    expected = pe(unit)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pe(unit), expected)


def test_tokens_of_points() -> None:
    net = encoder()
    points = torch.tensor([[[3.0, 4.5, 20.0], [31.0, 0.0, 7.25]]])
    out = net(points, torch.tensor([[1, 0]]), None, ())
    # A voxel's centre lies half a voxel from its edge.
    unit = (points + 0.5) / 32
    kinds = torch.stack([net.point_embeddings[1].weight[0], net.point_embeddings[0].weight[0]])
    torch.testing.assert_close(out.tokens[:, :2], net.pe_layer(unit) + kinds)
    # SAM closes the list with "not a point".
    torch.testing.assert_close(out.tokens[:, 2], net.not_a_point_embed.weight)
    assert out.tokens.shape == (1, 3, 12)
    assert out.padding is None
    assert out.maps is None


def test_padding_is_marked() -> None:
    out = encoder()(torch.zeros(2, 2, 3), torch.tensor([[1, -1], [0, 1]]), None, ())
    assert out.padding is not None
    assert out.padding.tolist() == [[False, True, False], [False, False, False]]


def test_no_points_leave_the_closing_token() -> None:
    net = encoder()
    out = net(torch.zeros(2, 0, 3), torch.zeros(2, 0, dtype=torch.long), None, ())
    torch.testing.assert_close(out.tokens, net.not_a_point_embed.weight.expand(2, 1, -1))


def test_dense_embedding_without_and_with_a_mask() -> None:
    net = encoder()
    none = torch.zeros(1, 0, 3), torch.zeros(1, 0, dtype=torch.long)
    torch.testing.assert_close(net(*none, None, ()).dense.flatten(), net.no_mask_embed.weight.flatten())
    mask = torch.randn(1, 1, 16, 16, 16)
    conv = net.mask_downscaling

    def normalised(x: torch.Tensor, norm: torch.nn.Module) -> torch.Tensor:
        mean, var = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
        shape = (1, -1, 1, 1, 1)
        return (x - mean) / (var + 1e-6).sqrt() * norm.weight.view(shape) + norm.bias.view(shape)  # type: ignore[operator]

    x = F.conv3d(mask, conv[0].weight, conv[0].bias, stride=2)
    x = F.gelu(normalised(x, conv[1]))
    x = F.conv3d(x, conv[3].weight, conv[3].bias, stride=2)
    x = F.gelu(normalised(x, conv[4]))
    x = F.conv3d(x, conv[6].weight, conv[6].bias)
    torch.testing.assert_close(net(*none, mask, ()).dense, x)


def test_box_centre_has_its_own_embedding() -> None:
    net = encoder(point_kinds=3)
    points = torch.full((1, 1, 3), 15.5)
    tokens = [net(points, torch.tensor([[label]]), None, ()).tokens[0, 0] for label in (1, 2)]
    expected = net.point_embeddings[2].weight[0] - net.point_embeddings[1].weight[0]
    torch.testing.assert_close(tokens[1] - tokens[0], expected)


def test_maps_show_mask_and_clicks_at_their_place() -> None:
    net = encoder(dense_clicks=True, point_kinds=3)
    # Image voxel p lies at (p + 0.5) / 2 - 0.5 of the map: 9 -> 4.25, 20 -> 9.75, 1 -> 0.25.
    points = torch.tensor([[[9.0, 20.0, 1.0], [3.0, 3.0, 3.0], [16.0, 16.0, 16.0], [25.0, 25.0, 25.0]]])
    labels = torch.tensor([[1, 0, 2, -1]])
    mask = torch.randn(1, 1, 16, 16, 16)
    maps = net(points, labels, mask, ()).maps
    assert maps is not None
    torch.testing.assert_close(maps[:, 0], torch.tanh(mask[:, 0] / 4))
    value = math.exp(-(0.25**2 * 3) / 2)
    assert maps[0, 1, 4, 10, 0].item() == pytest.approx(value, rel=1e-4)
    assert maps[0, 2, 1, 1, 1].item() == pytest.approx(value, rel=1e-4)
    assert maps[0, 1:, 8, 8, 8].max() < 1e-3  # the box centre is no click
    assert maps[0, 1:, 12, 12, 12].max() < 1e-3  # padding is nothing
    without = net(points, labels, None, ()).maps
    assert without is not None
    assert without[:, 0].abs().max() == 0


def test_point_features_are_sampled_at_the_point() -> None:
    net = encoder(point_features=(2, 3))
    assert net.point_projection is not None
    fine, coarse = torch.randn(1, 2, 8, 8, 8), torch.randn(1, 3, 4, 4, 4)
    # Voxel 13.5 of 32 is the centre of voxel 3 of 8: (13.5 + 0.5) / 4 - 0.5 = 3.
    points = torch.tensor([[[13.5, 1.5, 29.5]]])
    labels = torch.tensor([[1]])
    got = net(points, labels, None, (fine, coarse)).tokens[0, 0]
    blank = net(points, labels, None, (0 * fine, 0 * coarse)).tokens[0, 0]
    sampled = net.point_projection.weight[:, :2] @ fine[0, :, 3, 0, 7]
    only_fine = net(points, labels, None, (fine, 0 * coarse)).tokens[0, 0]
    torch.testing.assert_close(only_fine - blank, sampled, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(got, only_fine)

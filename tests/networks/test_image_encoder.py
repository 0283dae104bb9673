"""The padding-free attention against the published formula, spelled out; the stem against convolutions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from dualclickmed.networks.evidence import box_evidence
from dualclickmed.networks.image_encoder import Attention, ConvStem, RelativeAttention
from dualclickmed.networks.layers import centre_coordinates, space_to_depth
from dualclickmed.networks.reference import published_attention
from torch import Tensor


def randomised(attention: RelativeAttention, spread: float) -> RelativeAttention:
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    for table in (attention.rel_pos_d, attention.rel_pos_h, attention.rel_pos_w):
        torch.nn.init.normal_(table, std=spread)
    return attention


def published(attention: RelativeAttention, x: Tensor) -> Tensor:
    return published_attention(x, dict(attention.named_parameters()), attention.heads, attention.window)


@pytest.mark.parametrize(
    ("grid", "window", "heads", "dim", "batch", "spread"),
    [
        (8, 14, 2, 8, 1, 1.0),
        (8, 8, 2, 8, 1, 1.0),
        (3, 5, 3, 12, 2, 2.0),
        (4, 5, 1, 6, 2, 4.0),
        (2, 7, 4, 8, 3, 0.0),
    ],
)
def test_padding_free_attention_is_the_published_one(
    grid: int, window: int, heads: int, dim: int, batch: int, spread: float
) -> None:
    torch.manual_seed(grid * 100 + window)
    attention = randomised(RelativeAttention(dim, heads, grid, window), spread)
    x = torch.randn(batch, grid, grid, grid, dim)
    with torch.no_grad():
        expected = published(attention.double(), x.double())
        got = attention.float()(x)
    assert (got - expected).norm() / expected.norm() < 1e-5


def test_axes_are_not_exchangeable() -> None:
    """The test above would miss a symmetric mistake if the terms did not tell the axes apart."""
    torch.manual_seed(0)
    attention = randomised(RelativeAttention(8, 2, 3, 5), 2.0)
    x = torch.randn(1, 3, 3, 3, 8)
    with torch.no_grad():
        turned = attention(x.transpose(1, 3)).transpose(1, 3)
        assert (turned - attention(x)).norm() / turned.norm() > 0.05


def test_padding_free_attention_has_the_published_gradients() -> None:
    torch.manual_seed(7)
    attention = randomised(RelativeAttention(6, 2, 3, 5), 1.0).double()
    x = torch.randn(1, 3, 3, 3, 6, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(1, 3, 3, 3, 6, dtype=torch.float64)
    inputs = [x, *attention.parameters()]
    expected = torch.autograd.grad((published(attention, x) * direction).sum(), inputs)
    got = torch.autograd.grad((attention(x) * direction).sum(), inputs)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_loaded_weights_take_effect_at_once() -> None:
    torch.manual_seed(8)
    one, other = (randomised(RelativeAttention(8, 2, 3, 5), 1.0).eval() for _ in range(2))
    x = torch.randn(1, 3, 3, 3, 8)
    with torch.inference_mode():
        before = one(x)
        one.load_state_dict(other.state_dict())
        assert torch.equal(one(x), other(x))
        assert not torch.equal(one(x), before)


def test_window_smaller_than_the_grid_is_refused() -> None:
    with pytest.raises(ValueError, match="must hold the grid of 8 tokens"):
        RelativeAttention(8, 2, grid=8, window=7)


def test_plain_attention_is_softmax_attention() -> None:
    torch.manual_seed(9)
    attention = Attention(12, 3)
    x = torch.randn(2, 2, 3, 2, 12)
    q, k, v = attention.qkv(x).view(2, 12, 3, 3, 4).permute(2, 0, 3, 1, 4)
    weights = ((q @ k.transpose(2, 3)) / 2).softmax(-1)
    expected = attention.proj((weights @ v).transpose(1, 2).reshape(x.shape))
    torch.testing.assert_close(attention(x), expected)


def test_stem_sees_image_evidence_and_coordinates() -> None:
    torch.manual_seed(10)
    stem = ConvStem(1, (4, 6, 8), 10, (16, 16, 16))
    image = torch.randn(2, 1, 16, 16, 16)
    tokens, (full, half, quarter) = stem(image)
    assert tokens.shape == (2, 2, 2, 2, 10)
    assert half.shape == (2, 6, 8, 8, 8)
    assert quarter.shape == (2, 8, 4, 4, 4)
    coordinates = centre_coordinates((16, 16, 16))
    evidence = box_evidence(image, coordinates[3])
    stacked = torch.cat([image, evidence, coordinates.expand(2, -1, -1, -1, -1)], dim=1)
    expected = F.gelu(F.conv3d(stacked, stem.first.weight, stem.first.bias, padding=1))
    torch.testing.assert_close(full, space_to_depth(expected, 2))
    # New residual blocks are the identity.
    expected = F.gelu(F.group_norm(stem.down[0](full), 1))
    torch.testing.assert_close(half, expected)

"""The padding-free attention against the published formula, spelled out; the stem against convolutions."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from dualclickmed.networks.evidence import box_evidence
from dualclickmed.networks.image_encoder import Attention, ConvStem, RelativeAttention
from dualclickmed.networks.layers import centre_coordinates, space_to_depth
from torch import Tensor


def randomised(attention: RelativeAttention, spread: float) -> RelativeAttention:
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    for table in (attention.rel_pos_d, attention.rel_pos_h, attention.rel_pos_w):
        torch.nn.init.normal_(table, std=spread)
    return attention


def published_attention(attention: RelativeAttention, x: Tensor) -> Tensor:
    """The published block's attention: pad to the window, no mask, every key on its own.

    The bias of query (d, h, w) and key (kd, kh, kw) is
    q(d, h, w) . R_d[d, kw] + q(d, h, kd) . R_h[h, kw] + q(d, h, kh) . R_w[kh, kw]
    with R[i, k] = row i - k + n - 1.
    """
    b, g, _, _, dim = x.shape
    n, heads = attention.window, attention.heads
    c = dim // heads
    padded = F.pad(x, (0, 0, 0, n - g, 0, n - g, 0, n - g))
    q, k, v = F.linear(padded, attention.qkv.weight, attention.qkv.bias).split(dim, dim=-1)
    row = torch.arange(n)[:, None] - torch.arange(n)[None, :] + n - 1
    tables = (attention.rel_pos_d, attention.rel_pos_h, attention.rel_pos_w)
    table_d, table_h, table_w = (table[row] for table in tables)
    kd, kh, kw = torch.meshgrid(*[torch.arange(n)] * 3, indexing="ij")
    out = torch.zeros(b, g, g, g, dim, dtype=x.dtype)
    for i, head in itertools.product(range(b), range(heads)):
        part = slice(head * c, (head + 1) * c)
        q_, k_, v_ = q[i, ..., part], k[i, ..., part], v[i, ..., part]
        for d, h, w in itertools.product(range(g), repeat=3):
            logits = (k_ @ q_[d, h, w]) * c**-0.5
            logits = logits + (table_d[d] @ q_[d, h, w])[kw]
            logits = logits + (q_[d, h] @ table_h[h].T)[kd, kw]
            logits = logits + torch.einsum("xc,xkc->xk", q_[d, h], table_w)[kh, kw]
            weights = logits.flatten().softmax(0)
            out[i, d, h, w, part] = weights @ v_.reshape(-1, c)
    return F.linear(out, attention.proj.weight, attention.proj.bias)


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
        expected = published_attention(attention.double(), x.double())
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
    expected = torch.autograd.grad((published_attention(attention, x) * direction).sum(), inputs)
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

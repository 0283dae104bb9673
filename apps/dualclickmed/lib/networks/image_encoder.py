"""The image encoder of the global expert: a vision transformer on an 8^3 grid of tokens [paper 2.1]."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .evidence import box_evidence
from .layers import (
    LAYER_NORM_EPS,
    Conv3d,
    Halving,
    LayerNorm,
    LayerNorm3d,
    MLPBlock,
    Pointwise,
    ResidualConv,
    centre_coordinates,
    space_to_depth,
)


class PatchEmbedding(nn.Module):
    """One convolution with stride equal to its kernel: (B, C, D, H, W) -> (B, D/p, H/p, W/p, dim)."""

    def __init__(self, in_channels: int, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_channels, dim, patch, stride=patch)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.proj(x).permute(0, 2, 3, 4, 1), ()


class ConvStem(nn.Module):
    """Patch embedding in steps of two, which keeps the finer feature maps for the decoder.

    Constant coordinate channels give every convolution its place in the RoI, of which the box fills a known
    part. Two more say how much more common a voxel's intensity is inside the box than around it
    (`box_evidence`).

    Args:
        in_channels: channels of the image.
        channels: of the feature maps at full, half, quarter... resolution; each step halves the resolution.
        dim: token dimension.
        size: (D, H, W) of the image.

    forward returns the tokens and the feature maps, finest first: the full resolution map folded to half
    resolution (`space_to_depth`, 8 * channels[0] channels), then half, quarter...
    """

    def __init__(
        self, in_channels: int, channels: Sequence[int], dim: int, size: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.register_buffer("coordinates", centre_coordinates(size)[None], persistent=False)
        self.first = Conv3d(in_channels + 6, channels[0], 3, padding=1)
        self.down = nn.ModuleList(Pointwise(8 * a, b) for a, b in itertools.pairwise(channels))
        self.refine = nn.ModuleList(ResidualConv(c) for c in channels[1:])
        self.norms = nn.ModuleList(nn.GroupNorm(1, c) for c in channels[1:])
        self.proj = Halving(channels[-1], dim)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        assert isinstance(self.coordinates, Tensor)
        evidence = box_evidence(x, self.coordinates[0, 3]).to(x.dtype)
        x = torch.cat([x, evidence, self.coordinates.to(x.dtype).expand(x.shape[0], -1, -1, -1, -1)], dim=1)
        # Convolutions with few channels run several times faster on a CPU when the channels are innermost.
        x = F.gelu(self.first(x.contiguous(memory_format=torch.channels_last_3d)))
        skips = []
        for i, (down, refine, norm) in enumerate(zip(self.down, self.refine, self.norms, strict=True)):
            folded = space_to_depth(x, 2)
            # The decoder uses the finest map in its folded form only.
            skips.append(folded if i == 0 else x)
            x = F.gelu(norm(refine(down(folded))))
        return self.proj(x).permute(0, 2, 3, 4, 1), (*skips, x)


class Attention(nn.Module):
    """Multi-head self-attention over the tokens of a grid: (B, D, H, W, dim) -> the same shape."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, d, h, w, dim = x.shape
        qkv = self.qkv(x).reshape(b, d * h * w, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, tokens, c)
        out = self._attend(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, d, h, w, dim))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class RelativeAttention(Attention):
    """The published attention with relative positions, without computing its padding.

    Two peculiarities of the published code, with which its weights were trained, are kept:

    1. A windowed block pads the grid with zeros to the window, after the normalisation and without a mask. So
       every padded token is a key and a value that equal the bias of `qkv`.
    2. The relative terms fall on unintended axes. With R_x[i, k] = row i - k + n - 1 of a table (n the padded
       side) and q unscaled, the bias of query (d, h, w) and key (kd, kh, kw) is
       q(d, h, w) . R_d[d, kw] + q(d, h, kd) . R_h[h, kw] + q(d, h, kh) . R_w[kh, kw].

    All padded keys share one k and one v. So they act as one more key whose logit is
    scale * q . k + log(sum of exp(bias) over the padded positions), and that sum is a product over kd and kh.

    Args:
        dim, heads: as in `Attention`.
        grid: tokens along each axis.
        window: side that the published block pads the grid to; `grid` where it does not pad.
    """

    def __init__(self, dim: int, heads: int, grid: int, window: int) -> None:
        if window < grid:
            raise ValueError(f"The window must hold the grid of {grid} tokens along an axis, got {window}.")
        super().__init__(dim, heads)
        self.grid = grid
        self.window = window
        c = dim // heads
        self.rel_pos_d = nn.Parameter(torch.zeros(2 * window - 1, c))
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * window - 1, c))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * window - 1, c))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, heads, tokens, c = q.shape
        g, n = self.grid, self.window
        step = torch.arange(n, device=q.device)
        rows = step[:, None] - step + n - 1
        tables = (self.rel_pos_d, self.rel_pos_h, self.rel_pos_w)
        table_d, table_h, table_w = (table[rows].to(q.dtype) for table in tables)

        grid_q = q.reshape(b, heads, g, g, g, c)
        # Each (B, heads, d, h, x, kw): x is w in the first term, kd in the second and kh in the third.
        along_w = torch.einsum("bndhwc,dkc->bndhwk", grid_q, table_d[:g]).contiguous()
        along_d = torch.einsum("bndhxc,hkc->bndhxk", grid_q, table_h[:g]).contiguous()
        along_h = torch.einsum("bndhxc,xkc->bndhxk", grid_q, table_w[:g]).contiguous()
        # (B, heads, d, h, kd, kh, kw), then with w before kd
        pairs = along_d[..., :g].unsqueeze(5) + along_h[..., :g].unsqueeze(4)
        bias = pairs.unsqueeze(4) + along_w[..., :g].unsqueeze(5).unsqueeze(6)
        bias = bias.reshape(b, heads, tokens, tokens)
        if n > g:
            assert self.qkv.bias is not None
            pad_q, pad_k, pad_v = self.qkv.bias.to(q.dtype).view(3, heads, 1, c)
            logit = (q * c**-0.5) @ pad_k.transpose(1, 2)  # (B, heads, tokens, 1)
            mass = self._padded_mass(along_w, along_d, along_h, pad_q, table_h, table_w)
            bias = torch.cat([bias, logit + mass.reshape(b, heads, tokens, 1)], dim=3)
            # The extra key is zero, because its whole logit is in the bias.
            k = torch.cat([k, torch.zeros_like(k[:, :, :1])], dim=2)
            v = torch.cat([v, pad_v.expand(b, -1, -1, -1)], dim=2)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))

    def _padded_mass(
        self,
        along_w: Tensor,
        along_d: Tensor,
        along_h: Tensor,
        pad_q: Tensor,
        table_h: Tensor,
        table_w: Tensor,
    ) -> Tensor:
        """(B, heads, d, h, w): log of the sum over the padded keys of exp(relative terms)."""
        g, n = self.grid, self.window
        # At padded places of the row the query is the bias of qkv.
        pad_d = torch.einsum("nc,hkc->nhk", pad_q[:, 0], table_h[:g]) + math.log(n - g)  # (heads, h, kw)
        pad_h = torch.einsum("nc,xkc->nxk", pad_q[:, 0], table_w[g:]).logsumexp(1)  # (heads, kw)
        real_d, real_h = along_d.logsumexp(4), along_h.logsumexp(4)  # (B, heads, d, h, kw)
        pad_d, pad_h = pad_d[:, None], pad_h[:, None, None]
        all_d, all_h = torch.logaddexp(real_d, pad_d), torch.logaddexp(real_h, pad_h)
        some_padded = torch.logaddexp(all_d + pad_h, pad_d + real_h)
        last_padded = torch.arange(n, device=along_w.device) >= g
        rest = torch.where(last_padded, all_d + all_h, some_padded)
        return (along_w + rest.unsqueeze(4)).logsumexp(5)


class Block(nn.Module):
    """Transformer block on (B, D, H, W, dim), normalisation first."""

    def __init__(self, attention: nn.Module, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = attention
        self.norm2 = LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = MLPBlock(dim, hidden, nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ImageEncoder(nn.Module):
    """Image to embedding: (B, C, S, S, S) -> (B, out_dim, G, G, G) and the stem's feature maps.

    Args:
        patch_embed: maps the image to tokens (B, G, G, G, dim) and a tuple of finer feature maps.
        blocks: transformer blocks on (B, G, G, G, dim).
        grid: G, tokens along each axis.
        dim: token dimension.
        out_dim: dimension of the embedding, which is that of the prompts.
    """

    def __init__(
        self, patch_embed: nn.Module, blocks: Sequence[nn.Module], grid: int, dim: int, out_dim: int
    ) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, grid, dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.blocks = nn.ModuleList(blocks)
        self.neck = nn.Sequential(
            Conv3d(dim, out_dim, 1, bias=False),
            LayerNorm3d(out_dim),
            Conv3d(out_dim, out_dim, 3, padding=1, bias=False),
            LayerNorm3d(out_dim),
        )

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        x, skips = self.patch_embed(image)
        x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 4, 1, 2, 3)), skips

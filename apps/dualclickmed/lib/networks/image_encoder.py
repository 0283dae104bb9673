"""The image encoder of the global expert: a vision transformer on an 8^3 grid of tokens [paper 2.1]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import (
    LAYER_NORM_EPS,
    Halving,
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

    Constant coordinate channels tell every convolution where in the RoI it looks: the box fills a known part of it.

    Args:
        in_channels: channels of the image.
        channels: of the feature maps at full, half, quarter... resolution; each step halves the resolution.
        dim: token dimension.
        size: (D, H, W) of the image.

    forward returns the tokens and the feature maps, finest first: the full resolution map folded to half resolution
    (`space_to_depth`, 8 * channels[0] channels), then half, quarter...
    """

    def __init__(
        self, in_channels: int, channels: Sequence[int], dim: int, size: tuple[int, int, int]
    ) -> None:
        super().__init__()
        self.register_buffer("coordinates", centre_coordinates(size)[None], persistent=False)
        self.first = nn.Conv3d(in_channels + 4, channels[0], 3, padding=1)
        self.down = nn.ModuleList(
            Pointwise(8 * a, b) for a, b in zip(channels[:-1], channels[1:], strict=True)
        )
        self.refine = nn.ModuleList(ResidualConv(c) for c in channels[1:])
        self.norms = nn.ModuleList(nn.GroupNorm(1, c) for c in channels[1:])
        self.proj = Halving(channels[-1], dim)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        assert isinstance(self.coordinates, Tensor)
        x = torch.cat([x, self.coordinates.to(x.dtype).expand(x.shape[0], -1, -1, -1, -1)], dim=1)
        # Convolutions with few channels run several times faster on a CPU when the channels are innermost.
        x = F.gelu(self.first(x.contiguous(memory_format=torch.channels_last_3d)))
        skips = []
        for i, (down, refine, norm) in enumerate(zip(self.down, self.refine, self.norms, strict=True)):
            folded = space_to_depth(x, 2)
            # The decoder works on the finest map in its folded form; nobody needs the other.
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
        b, *grid, dim = x.shape
        qkv = self.qkv(x).reshape(b, -1, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).reshape(b, *grid, dim))


class Block(nn.Module):
    """Transformer block on (B, D, H, W, dim), normalisation first."""

    def __init__(self, attention: nn.Module, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = MLPBlock(dim, hidden, nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ImageEncoder(nn.Module):
    """Image to embedding: (B, C, S, S, S) -> (B, out_dim, G, G, G) and the stem's feature maps.

    Args:
        patch_embed: maps the image to tokens (B, G, G, G, dim) and a tuple of finer feature maps (may be empty).
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
            nn.Conv3d(dim, out_dim, 1, bias=False),
            LayerNorm3d(out_dim),
            nn.Conv3d(out_dim, out_dim, 3, padding=1, bias=False),
            LayerNorm3d(out_dim),
        )

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        x, skips = self.patch_embed(image)
        x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.neck(x.permute(0, 4, 1, 2, 3)), skips

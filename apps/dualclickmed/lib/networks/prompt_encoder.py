"""Prompts (clicks, box centre, previous mask) to tokens and maps for the mask decoder [paper 2.1, 2.2]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .influence import click_influence
from .layers import LayerNorm3d, click_maps, sample_at, without_autocast

BACKGROUND = 0
FOREGROUND = 1

# The prototype's clicks at 32^3 were about as sharp as the voxels themselves.
CLICK_SIGMA = 1.0
# A previous mask's logits are squeezed to (-1, 1); beyond a few units they are equally certain.
MASK_LOGIT_SCALE = 4.0


@dataclass
class EncodedPrompts:
    """The prompts as the mask decoder takes them.

    Attributes:
        tokens: (B, T, dim).
        padding: (B, T) bool, True where a token is to be ignored, or None where all count.
        dense: (B or 1, dim, G, G, G), added to the image embedding.
        maps: (B, 3, M, M, M) previous mask, foreground clicks and background clicks, or None where the
            decoder takes none.
        influence: (B, 2, M, M, M) of `click_influence`, or None where the decoder takes none.
    """

    tokens: Tensor
    padding: Tensor | None
    dense: Tensor
    maps: Tensor | None
    influence: Tensor | None = None


class FourierPositions(nn.Module):
    """Random Fourier features of positions, the frequencies drawn once and kept with the weights.

    Args:
        dim: of the encoding.
        published: SAM-Med3D's form, with which its weights were trained: the terms are [sin, cos, sin], and
            the dense grid has its first two axes swapped against the points. Otherwise [sin, cos], no swap.
    """

    def __init__(self, dim: int, published: bool) -> None:
        super().__init__()
        self.published = published
        self.register_buffer(
            "positional_encoding_gaussian_matrix", torch.randn(3, dim // (3 if published else 2))
        )

    def forward(self, unit: Tensor) -> Tensor:
        """(..., 3) positions (z, y, x) in [0, 1] of the grid's edges -> (..., dim) float32."""
        matrix = self.positional_encoding_gaussian_matrix
        assert isinstance(matrix, Tensor)
        with without_autocast(unit):
            angle = 2.0 * math.pi * ((2.0 * unit.float() - 1.0) @ matrix.float())
            sin, cos = angle.sin(), angle.cos()
        return torch.cat([sin, cos, sin] if self.published else [sin, cos], dim=-1)

    def grid(self, size: tuple[int, int, int]) -> Tensor:
        """(1, dim, D, H, W): the encoding of the voxel centres of a grid."""
        matrix = self.positional_encoding_gaussian_matrix
        assert isinstance(matrix, Tensor)
        axes = [(torch.arange(n, dtype=torch.float32, device=matrix.device) + 0.5) / n for n in size]
        z, y, x = torch.meshgrid(*axes, indexing="ij")
        unit = torch.stack([y, z, x] if self.published else [z, y, x], dim=-1)
        return self.forward(unit).permute(3, 0, 1, 2)[None]


class GridSizes(NamedTuple):
    """(D, H, W) of the grids that a prompt encoder knows.

    Attributes:
        image: that the points refer to.
        embedding: of the image embedding.
        mask: of the previous mask.
    """

    image: tuple[int, int, int]
    embedding: tuple[int, int, int]
    mask: tuple[int, int, int]


class PromptEncoder(nn.Module):
    """Clicks and a previous mask to tokens, a dense embedding and, optionally, maps.

    Args:
        dim: of the tokens.
        sizes: of the grids.
        mask_in_channels: hidden channels of the mask's two strided convolutions.
        published_positions: see `FourierPositions`.
        point_kinds: number of learned point embeddings: labels 0, 1 and further ones.
        dense_clicks: whether to make the maps.
        point_features: channels of the image features that are sampled at every point, () for none.
    """

    def __init__(
        self,
        dim: int,
        sizes: GridSizes,
        mask_in_channels: int,
        published_positions: bool,
        point_kinds: int,
        dense_clicks: bool,
        point_features: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.sizes = sizes
        self.dense_clicks = dense_clicks
        self.pe_layer = FourierPositions(dim, published_positions)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, dim) for _ in range(point_kinds))
        self.not_a_point_embed = nn.Embedding(1, dim)
        half = mask_in_channels // 4
        self.mask_downscaling = nn.Sequential(
            nn.Conv3d(1, half, 2, stride=2),
            LayerNorm3d(half),
            nn.GELU(),
            nn.Conv3d(half, mask_in_channels, 2, stride=2),
            LayerNorm3d(mask_in_channels),
            nn.GELU(),
            nn.Conv3d(mask_in_channels, dim, 1),
        )
        self.no_mask_embed = nn.Embedding(1, dim)
        self.point_projection = nn.Linear(sum(point_features), dim) if point_features else None

    def dense_positions(self) -> Tensor:
        """(1, dim, *sizes.embedding): the position encoding of the image embedding."""
        return self.pe_layer.grid(self.sizes.embedding)

    def forward(
        self,
        points: Tensor,
        labels: Tensor,
        mask: Tensor | None,
        features: tuple[Tensor, ...],
        image: Tensor | None = None,
    ) -> EncodedPrompts:
        """Encode the prompts of a batch.

        Args:
            points: (B, N, 3) voxel coordinates (z, y, x) of the image grid; a voxel's centre is an integer.
            labels: (B, N) 0 background, 1 foreground, 2 box centre where learned, -1 padding.
            mask: (B, 1, *sizes.mask) logits of a previous mask, or None.
            features: feature maps (B, C, ...) of the whole RoI to sample at the points, as many as
                `point_features` has channels; ignored without them.
            image: (B, 1, *sizes.mask) smoothed image for the clicks' influence, None where it is not wanted.
        """
        unit = (points.float() + 0.5) / points.new_tensor(self.sizes.image, dtype=torch.float32)
        kinds = torch.cat([*self.point_embeddings.parameters()])
        real = labels >= 0
        tokens = self.pe_layer(unit) + kinds[labels.clamp(min=0)]
        if self.point_projection is not None:
            sampled = torch.cat([sample_at(f, unit) for f in features], dim=-1)
            tokens = tokens + self.point_projection(sampled)
        # Where a caller pads, the token is kept out of all attention (`padding`): its value does not matter.
        tokens = torch.where(real[..., None], tokens, self.not_a_point_embed.weight)
        # SAM ends every list of points without box corners with one token "not a point".
        end = self.not_a_point_embed.weight[None].expand(tokens.shape[0], -1, -1)
        tokens = torch.cat([tokens, end.to(tokens.dtype)], dim=1)
        padding = None
        if not bool(real.all()):
            padding = torch.cat([~real, torch.zeros_like(real[:, :1])], dim=1)

        if mask is None:
            dense = self.no_mask_embed.weight.view(1, -1, 1, 1, 1)
        else:
            dense = self.mask_downscaling(mask)
        maps = self._maps(unit, labels, mask) if self.dense_clicks else None
        influence = None
        if image is not None:
            influence = click_influence(unit, labels == FOREGROUND, labels == BACKGROUND, image)
        return EncodedPrompts(tokens, padding, dense, maps, influence)

    def _maps(self, unit: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        at = unit * unit.new_tensor(self.sizes.mask) - 0.5
        weights = torch.stack([labels == FOREGROUND, labels == BACKGROUND], dim=1).float()
        clicks = click_maps(at, weights, self.sizes.mask, CLICK_SIGMA)
        if mask is None:
            previous = clicks.new_zeros(clicks.shape[0], 1, *self.sizes.mask)
        else:
            previous = torch.tanh(mask.float() / MASK_LOGIT_SCALE)
        return torch.cat([previous, clicks], dim=1)

"""Prompt tokens and image embedding to mask logits: a two-way transformer and an upscaling [paper 2.1]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import MLP, Conv3d, Doubling, LayerNorm, LayerNorm3d, MLPBlock, Pointwise, depth_to_space
from .prompt_encoder import EncodedPrompts


class TokenAttention(nn.Module):
    """Attention between two token lists, inside of which the dimension is divided by `downsample`."""

    def __init__(self, dim: int, heads: int, downsample: int = 1) -> None:
        super().__init__()
        inner = dim // downsample
        self.heads = heads
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, ignore: Tensor | None = None) -> Tensor:
        """q (B, N, dim), k and v (B, M, dim), ignore (B, M) bool, True: leave the key out -> (B, N, dim)."""
        q, k, v = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for proj, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        keep = None if ignore is None else ~ignore[:, None, None, :]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=keep)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves and to the image, then the image attends to the tokens."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, downsample: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = TokenAttention(dim, heads)
        self.norm1 = LayerNorm(dim)
        self.cross_attn_token_to_image = TokenAttention(dim, heads, downsample)
        self.norm2 = LayerNorm(dim)
        self.mlp = MLPBlock(dim, mlp_dim, nn.ReLU)
        self.norm3 = LayerNorm(dim)
        self.norm4 = LayerNorm(dim)
        self.cross_attn_image_to_token = TokenAttention(dim, heads, downsample)

    def forward(
        self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor, ignore: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self.first:  # the queries are still their own position encoding
            queries = self.self_attn(queries, queries, queries, ignore)
        else:
            q = queries + query_pe
            queries = queries + self.self_attn(q, q, queries, ignore)
        queries = self.norm1(queries)
        k = keys + key_pe
        queries = self.norm2(queries + self.cross_attn_token_to_image(queries + query_pe, k, keys))
        queries = self.norm3(queries + self.mlp(queries))
        keys = self.norm4(keys + self.cross_attn_image_to_token(k, queries + query_pe, queries, ignore))
        return queries, keys


class TwoWayTransformer(nn.Module):
    """Transformer between prompt tokens and image tokens.

    forward takes image (B, M, dim), its positions (1, M, dim), tokens (B, N, dim) and ignore (B, N) bool or
    None, and returns tokens (B, N, dim) and image (B, M, dim).
    """

    def __init__(self, depth: int, dim: int, heads: int, mlp_dim: int, downsample: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(dim, heads, mlp_dim, downsample, first=i == 0) for i in range(depth)
        )
        self.final_attn_token_to_image = TokenAttention(dim, heads, downsample)
        self.norm_final_attn = LayerNorm(dim)

    def forward(
        self, image: Tensor, positions: Tensor, tokens: Tensor, ignore: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        queries, keys = tokens, image
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, positions, ignore)
        out = self.final_attn_token_to_image(queries + tokens, keys + positions, keys)
        return self.norm_final_attn(queries + out), keys


class PlainUpscaling(nn.Sequential):
    """The published upscaling: (B, C, G, G, G) -> one map (B, C/8, 4G, 4G, 4G)."""

    def __init__(self, dim: int) -> None:
        super().__init__(
            nn.ConvTranspose3d(dim, dim // 4, 2, stride=2),
            LayerNorm3d(dim // 4),
            nn.GELU(),
            nn.ConvTranspose3d(dim // 4, dim // 8, 2, stride=2),
            nn.GELU(),
        )
        self.channels = dim // 8
        self.fine_channels = 0

    def forward(  # type: ignore[override]
        self, x: Tensor, skips: tuple[Tensor, ...], maps: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return super().forward(x), None


class SkipUpscaling(nn.Module):
    """Upscaling that adds the encoder's finer feature maps and sees the prompts as maps.

    Args:
        dim: of the image embedding.
        skip_channels: of the encoder's maps at full, half and quarter resolution.
        channels: at quarter and half resolution here.
        maps: number of prompt maps at half resolution.
    """

    def __init__(self, dim: int, skip_channels: Sequence[int], channels: tuple[int, int], maps: int) -> None:
        super().__init__()
        full, half, quarter = skip_channels
        c4, c2 = channels
        self.channels = c2
        self.fine_channels = full
        self.up_quarter = Doubling(dim, c4)
        self.skip_quarter = Pointwise(quarter, c4)
        self.norm_quarter = LayerNorm3d(c4)
        self.up_half = Doubling(c4, c2)
        self.skip_half = Pointwise(half, c2)
        self.add_maps = Pointwise(maps, c2)
        self.merge = Conv3d(c2, c2, 3, padding=1)
        self.refine = Conv3d(c2, c2, 3, padding=1)
        # At full resolution everything is a matrix product over the 2^3 sub-voxels of a half resolution
        # voxel, kept as 8 * full channels: 3^3 convolutions there cost more than all the rest.
        self.up_full = Pointwise(c2, 8 * full)
        self.mix_full = Pointwise(8 * full, 8 * full)

    def forward(
        self, x: Tensor, skips: tuple[Tensor, ...], maps: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """(B, dim, G, G, G) -> (B, c2, 4G, 4G, 4G) and (B, 8 * full, 4G, 4G, 4G), sub-voxels as channels."""
        full, half, quarter = skips[:3]
        assert maps is not None
        x = F.gelu(self.norm_quarter(self.up_quarter(x) + self.skip_quarter(quarter)))
        x = F.gelu(self.up_half(x) + self.skip_half(half) + self.add_maps(maps))
        x = x + F.gelu(self.refine(F.gelu(self.merge(x))))
        fine = F.relu(self.up_full(x) + full)
        return x, F.relu(self.mix_full(fine))


class MaskDecoder(nn.Module):
    """Prompt tokens and image embedding to mask logits.

    Args:
        transformer: two-way transformer of the same dimension.
        dim: of tokens and embedding.
        mask_tokens: number of masks; the first is the one that a single-mask request gets.
        iou_head: hidden width of the mask-quality head, 0 for none.
        upscaling: embedding to feature maps at mask resolution.
    """

    def __init__(
        self,
        transformer: TwoWayTransformer,
        dim: int,
        mask_tokens: int,
        iou_head: int,
        upscaling: PlainUpscaling | SkipUpscaling,
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(mask_tokens, dim)
        self.output_upscaling = upscaling
        self.output_hypernetworks_mlps = nn.ModuleList(
            MLP(dim, dim, upscaling.channels, 3) for _ in range(mask_tokens)
        )
        self.fine_hypernetwork = (
            MLP(dim, dim, upscaling.fine_channels, 3) if upscaling.fine_channels else None
        )
        self.iou_prediction_head = MLP(dim, iou_head, mask_tokens, 3) if iou_head else None

    def forward(
        self, embedding: Tensor, positions: Tensor, prompts: EncodedPrompts, skips: tuple[Tensor, ...]
    ) -> Tensor:
        """Logits of the first mask.

        Args:
            embedding: (B, dim, G, G, G) of the image.
            positions: (1, dim, G, G, G) its position encoding.
            prompts: of B requests.
            skips: finer feature maps of the image, () for the published upscaling.

        Returns:
            (B, 1, M, M, M) logits, M = 4G, or 8G where the upscaling has a fine level.
        """
        tokens, coarse, fine = self._attend(embedding, positions, prompts, skips)
        mask_token = tokens[:, 1]
        logits = _weighted_sum(coarse, self.output_hypernetworks_mlps[0](mask_token), parts=1)
        if self.fine_hypernetwork is not None:
            assert fine is not None
            parts = fine.shape[1] // self.output_upscaling.fine_channels
            detail = depth_to_space(_weighted_sum(fine, self.fine_hypernetwork(mask_token), parts), 2)
            size = detail.shape[2:]
            logits = detail + F.interpolate(logits, size=size, mode="trilinear", align_corners=False)
        return logits

    def every_mask(
        self, embedding: Tensor, positions: Tensor, prompts: EncodedPrompts
    ) -> tuple[Tensor, Tensor | None]:
        """All masks and qualities that published checkpoints with several mask tokens predict.

        Args:
            embedding, positions, prompts: as for `forward`.

        Returns:
            logits (B, T, M, M, M) of all T mask tokens, and their predicted quality (B, T) or None.

        Raises:
            ValueError: for an upscaling with a fine level, which has one mask alone.
        """
        if self.fine_hypernetwork is not None:
            raise ValueError("A decoder with a fine level predicts one mask; call it instead.")
        tokens, coarse, _ = self._attend(embedding, positions, prompts, ())
        masks = [
            _weighted_sum(coarse, hypernetwork(tokens[:, 1 + i]), parts=1)
            for i, hypernetwork in enumerate(self.output_hypernetworks_mlps)
        ]
        quality = None if self.iou_prediction_head is None else self.iou_prediction_head(tokens[:, 0])
        return torch.cat(masks, dim=1), quality

    def _attend(
        self, embedding: Tensor, positions: Tensor, prompts: EncodedPrompts, skips: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens (B, 1 + T + prompts, dim), quality first, then masks; the upscaled image."""
        b = embedding.shape[0]
        source = (embedding + prompts.dense).flatten(2).transpose(1, 2)
        output = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        count = len(output)
        tokens = torch.cat([output.expand(b, -1, -1), prompts.tokens.to(output.dtype)], dim=1)
        ignore = None if prompts.padding is None else F.pad(prompts.padding, (count, 0), value=False)
        tokens, source = self.transformer(source, positions.flatten(2).transpose(1, 2), tokens, ignore)
        image = source.transpose(1, 2).reshape(embedding.shape)
        maps = prompts.maps
        if maps is not None and prompts.influence is not None:
            maps = torch.cat([maps, prompts.influence], dim=1)
        return tokens, *self.output_upscaling(image, skips, maps)


def _weighted_sum(maps: Tensor, weights: Tensor, parts: int) -> Tensor:
    """maps (B, parts * C, D, H, W), weights (B, C) -> (B, parts, D, H, W): the product for each part."""
    b, _, d, h, w = maps.shape
    # One block-diagonal matrix for all parts: a product with a single column is slow.
    eye = torch.eye(parts, device=weights.device, dtype=weights.dtype)
    matrix = torch.einsum("bc,pq->bpcq", weights, eye).reshape(b, -1, parts)
    out = torch.bmm(maps.permute(0, 2, 3, 4, 1).reshape(b, d * h * w, -1), matrix)
    return out.view(b, d, h, w, parts).permute(0, 4, 1, 2, 3)

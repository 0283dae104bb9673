"""The network of the local expert: VISTA3D's image encoder and point head [paper 2.1]."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from monai.networks.nets.segresnet_ds import SegResNetDS2
from monai.networks.nets.vista3d import MLP as MonaiMLP
from monai.networks.nets.vista3d import PointMappingSAM
from torch import Tensor, nn

from .features import Features
from .layers import Doubling, Pointwise, click_maps, depth_to_space, sample_at, space_to_depth
from .prompt_encoder import BACKGROUND, FOREGROUND

if TYPE_CHECKING:
    from .build import LocalConfig

# A click's sharp and wide bump, in voxels of the head's finer grid (two image voxels): the place and its surroundings.
CLICK_SIGMAS = (1.5, 6.0)
# The compact head's positions are offsets from the crop's centre in units of the inference window.
REFERENCE_SIDE = 128.0


class LocalFeatures(Features):
    """Encoded windows: the point head's low-resolution features; finer maps in `skips` in the compact network."""


class PointHead(PointMappingSAM):
    """VISTA3D's point head, split into what depends on the image alone (`embed`) and on the clicks (`forward`).

    State-dict names are the published ones; two of them, `mask_downsample` and `class_embeddings`, are never used.

    Args:
        feature_size: channels of the encoder's features.
    """

    def __init__(self, feature_size: int) -> None:
        super().__init__(feature_size=feature_size)

    def embed(self, image: Tensor, features: Tensor) -> LocalFeatures:
        """Window (B, 1, D, H, W) and its features (B, C, D, H, W) -> features at half resolution."""
        return LocalFeatures(self.feat_downsample(features))

    def forward(self, features: LocalFeatures, points: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        """Logits (1, 1, D, H, W) of one window.

        Args:
            features: of one window.
            points: (1, N, 3) window voxel coordinates (z, y, x), no padding; N may be 0.
            labels: (1, N) 0 or 1.
        """
        low = features.embedding
        size = (2 * low.shape[2], 2 * low.shape[3], 2 * low.shape[4])
        with torch.autocast(low.device.type, enabled=False):
            positions = self.pe_layer(low.shape[2:])[None]
            tokens = self.pe_layer.forward_with_coords(points.float() + 0.5, size)
        mask_token, image = self._transform(low, positions, tokens, labels)
        weights = self.output_hypernetworks_mlps(mask_token)
        up, norm, act, last = self.output_upscaling
        x = act(norm(up(image)))
        # The last convolution and the product with the mask's vector are both linear: one kernel with a single
        # output channel does the work of the published 48, exactly.
        assert isinstance(last, nn.Conv3d) and last.bias is not None
        kernel = torch.einsum("ic,cdzyx->idzyx", weights, last.weight.to(weights.dtype))
        return F.conv3d(x, kernel, weights @ last.bias.to(weights.dtype), padding=last.padding)

    def _transform(
        self, low: Tensor, positions: Tensor, tokens: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens (1, N, C) of clicks -> the mask's token (1, C) and the image (1, C, d, h, w) after the transformer."""
        kinds = torch.cat([embedding.weight for embedding in self.point_embeddings])
        tokens = tokens + kinds[labels]
        tokens = torch.cat([self.mask_tokens.weight[None], tokens, self.supported_embed.weight[None]], dim=1)
        tokens, image = self.transformer(low, positions, tokens)
        return tokens[:, 0], image.transpose(1, 2).reshape(low.shape)


class ClickHead(PointHead):
    """The compact point head: the published transformer between clicks and image, and a finer mask.

    It differs from `PointHead` in that clicks carry the image features at their place, the clicks are also seen as
    maps, the mask is made from finer features of the window, and positions count in voxels from the window's centre,
    so that crops of other sizes train the same encoding.

    Args:
        feature_size: channels of the transformer; encoder_channels: of the encoder's features.
        detail_channels: of the features at full resolution.
        fold: side of the voxel cubes that the encoder sees as channels.
    """

    def __init__(self, feature_size: int, encoder_channels: int, detail_channels: int, fold: int) -> None:
        super().__init__(feature_size)
        # Parts of the published head that play no role here.
        for name in ("mask_downsample", "class_embeddings", "zeroshot_embed", "special_class_embed"):
            delattr(self, name)
        del self.not_a_point_embed
        channels, parts = encoder_channels, fold**3
        self.fold = fold
        self.parts = parts
        self.feat_downsample = nn.Sequential(
            nn.Conv3d(channels, feature_size, 3, stride=2, padding=1),
            nn.GroupNorm(1, feature_size),
            nn.GELU(),
            nn.Conv3d(feature_size, feature_size, 3, padding=1),
            nn.GroupNorm(1, feature_size),
        )
        self.detail = nn.Conv3d(1, detail_channels, 3, padding=1)
        self.point_projection = nn.Linear(feature_size + channels, feature_size)
        self.output_upscaling = Doubling(feature_size, channels)  # type: ignore[assignment]
        self.add_skip = Pointwise(channels, channels)
        self.add_clicks = Pointwise(2 * len(CLICK_SIGMAS), channels)
        self.merge = nn.Conv3d(channels, channels, 3, padding=1)
        self.refine = nn.Conv3d(channels, channels, 3, padding=1)
        self.up_full = Pointwise(channels, parts * detail_channels)
        self.mix_full = Pointwise(parts * detail_channels, parts * detail_channels)
        self.output_hypernetworks_mlps = MonaiMLP(feature_size, feature_size, parts * channels, 3)
        self.fine_hypernetwork = MonaiMLP(feature_size, feature_size, detail_channels, 3)

    def embed(self, image: Tensor, features: Tensor) -> LocalFeatures:
        detail = space_to_depth(F.gelu(self.detail(image)), self.fold)
        return LocalFeatures(self.feat_downsample(features), (features, detail))

    def forward(self, features: LocalFeatures, points: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        low, (half, detail) = features.embedding, features.skips
        side = low.new_tensor(half.shape[2:], dtype=torch.float32) * self.fold
        unit = (points.float() + 0.5) / side
        tokens = self._positions(points.float() + 0.5 - side / 2)
        sampled = torch.cat([sample_at(low, unit), sample_at(half, unit)], dim=-1)
        tokens = tokens + self.point_projection(sampled)
        stride = 2 * self.fold
        axes = [stride * (torch.arange(n, device=low.device) + 0.5 - n / 2) for n in low.shape[2:]]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        positions = self._positions(grid.reshape(1, -1, 3)).transpose(1, 2).reshape(1, -1, *low.shape[2:])
        mask_token, image = self._transform(low, positions, tokens, labels)

        x = (
            self.output_upscaling(image)
            + self.add_skip(half)
            + self.add_clicks(self._maps(unit, labels, half))
        )
        x = F.gelu(x)
        x = x + F.gelu(self.refine(F.gelu(self.merge(x))))
        fine = F.relu(self.mix_full(F.relu(self.up_full(x) + detail)))
        coarse_weights = self.output_hypernetworks_mlps(mask_token).view(1, self.parts, -1)
        fine_weights = self.fine_hypernetwork(mask_token)
        eye = torch.eye(self.parts, device=fine.device, dtype=fine_weights.dtype)
        fine_weights = torch.einsum("bc,pq->bpqc", fine_weights, eye).reshape(1, self.parts, -1)
        logits = _product(x, coarse_weights) + _product(fine, fine_weights)
        return depth_to_space(logits, self.fold)

    def _positions(self, offsets: Tensor) -> Tensor:
        """(1, N, 3) offsets from the window's centre in voxels -> (1, N, C) float32."""
        with torch.autocast(offsets.device.type, enabled=False):
            return self.pe_layer.forward_with_coords(offsets + REFERENCE_SIDE / 2, (REFERENCE_SIDE,) * 3)

    def _maps(self, unit: Tensor, labels: Tensor, half: Tensor) -> Tensor:
        size = (half.shape[2], half.shape[3], half.shape[4])
        at = unit * unit.new_tensor(size) - 0.5
        kinds = torch.stack([labels == FOREGROUND, labels == BACKGROUND], dim=1).float()
        sigmas = [sigma for sigma in CLICK_SIGMAS for _ in range(2)]
        return click_maps(at, kinds.repeat(1, len(CLICK_SIGMAS), 1), size, sigmas)


def _product(maps: Tensor, weights: Tensor) -> Tensor:
    """maps (1, C, D, H, W), weights (1, P, C) -> (1, P, D, H, W)."""
    rows = maps.permute(0, 2, 3, 4, 1)
    return F.linear(rows, weights[0].to(rows.dtype)).permute(0, 4, 1, 2, 3)


class LocalNetwork(nn.Module):
    """Image encoder and point head; `state_dict` has the published names.

    Args:
        image_encoder: with or without its branch for automatic segmentation, which is never run and is dropped.
        point_head: of matching sizes.
        config: what they were built from.
    """

    def __init__(self, image_encoder: SegResNetDS2, point_head: PointHead, config: LocalConfig) -> None:
        super().__init__()
        if hasattr(image_encoder, "up_layers_auto"):
            del image_encoder.up_layers_auto
        self.image_encoder = image_encoder
        self.point_head = point_head
        self.config = config

    def encode(self, image: Tensor) -> LocalFeatures:
        """Encode windows (B, 1, D, H, W) with values in [0, 1]; sides are multiples of config.multiple."""
        multiple = self.config.multiple
        if image.ndim != 5 or image.shape[1] != 1 or any(n % multiple or n == 0 for n in image.shape[2:]):
            raise ValueError(
                f"Expected windows of shape (B, 1, D, H, W) with sides that are multiples of {multiple}, "
                f"got {tuple(image.shape)}."
            )
        # Convolutions with few channels run several times faster on a CPU when the channels are innermost.
        x = space_to_depth(image, self.config.space_to_depth) if self.config.space_to_depth > 1 else image
        features, _ = self.image_encoder(x, with_point=True, with_label=False)
        return self.point_head.embed(image, features)

    def decode(self, features: LocalFeatures, points: Tensor, labels: Tensor) -> Tensor:
        """Segment encoded windows from clicks.

        Args:
            features: of B windows.
            points: (B, N, 3) window voxel coordinates (z, y, x); a voxel's centre is an integer.
            labels: (B, N) 1 foreground, 0 background, -1 padding (has no effect).

        Returns:
            (B, 1, D, H, W) logits.
        """
        b = len(features)
        if points.shape[0] != b or labels.shape != points.shape[:2] or points.shape[2:] != (3,):
            raise ValueError(
                f"Expected points (B, N, 3) and labels (B, N) with B = {b}, "
                f"got {tuple(points.shape)} and {tuple(labels.shape)}."
            )
        # One window at a time: windows have different numbers of clicks, the published transformer knows no mask,
        # and its memory grows with the batch.
        out = []
        for i in range(b):
            real = labels[i] >= 0
            out.append(self.point_head(features.index(i), points[i : i + 1, real], labels[i : i + 1, real]))
        return torch.cat(out)

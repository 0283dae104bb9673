"""The network of the local expert: VISTA3D's image encoder and point head [paper 2.1]."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from monai.networks.nets.segresnet_ds import SegResNetDS2
from monai.networks.nets.vista3d import PointMappingSAM, PositionEmbeddingRandom
from torch import Tensor, nn

from .features import Features
from .layers import (
    MLP,
    Conv3d,
    Doubling,
    Pointwise,
    click_maps,
    depth_to_space,
    sample_at,
    space_to_depth,
    without_autocast,
)
from .mask_decoder import TwoWayTransformer
from .prompt_encoder import BACKGROUND, FOREGROUND
from .segresnet import convolved, doubled, normalised, point_features, runs_lean

if TYPE_CHECKING:
    from .configs import LocalConfig

# A click's sharp and wide bump, in voxels of the head's finer grid: the place and its surroundings.
CLICK_SIGMAS = (1.5, 6.0)
# How far intensities in [0, 1] may differ from those at a click and count as alike.
INTENSITY_WIDTHS = (0.04, 0.12)
# The mask that training starts from: reach in voxels, width in intensity, and weight of its logit. Of the
# values tried on generated objects these gave the best mask from one click (mean Dice 0.30).
PRIOR_REACH, PRIOR_WIDTH, PRIOR_GAIN = 10.0, 0.12, 3.0
# The compact head's positions are offsets from the crop's centre in units of the inference window.
REFERENCE_SIDE = 128
# What MONAI's point head has built in.
PUBLISHED_DEPTH = 2
PUBLISHED_HEADS = 4
PUBLISHED_MLP = 512


class LocalFeatures(Features):
    """Encoded windows: the point head's low-resolution features, in the compact network finer maps too."""


class PointHead(PointMappingSAM):
    """VISTA3D's point head, split into what depends on the image alone (`embed`) and on clicks (`forward`).

    State-dict names are the published ones; `mask_downsample` and `class_embeddings` are never used.

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
        with without_autocast(low):
            positions = self.pe_layer(low.shape[2:])[None]
            tokens = self.pe_layer.forward_with_coords(points.float() + 0.5, size)
        tokens, image = self.transformer(low, positions, _all_tokens(self, tokens, labels))
        image = image.transpose(1, 2).reshape(low.shape)
        weights = self.output_hypernetworks_mlps(tokens[:, 0])
        up, norm, act, last = self.output_upscaling
        # The last convolution and the product with the mask's vector are both linear: one kernel with one
        # output channel is the same function as the published 48.
        assert isinstance(last, nn.Conv3d) and last.bias is not None
        kernel = torch.einsum("ic,cdzyx->idzyx", weights, last.weight.to(weights.dtype))
        bias = weights @ last.bias.to(weights.dtype)
        if low.device.type == "cpu" and not torch.is_grad_enabled():
            x = doubled(image, up)
            normed = normalised(norm, x)
            return convolved(x, kernel, bias, lambda part: act(normed(part)))
        return F.conv3d(act(norm(up(image))), kernel, bias, padding=last.padding)


class ClickHead(nn.Module):
    """The compact point head: the published transformer between clicks and image, and a finer mask.

    It differs from `PointHead` in that clicks carry the image features at their place, clicks are also seen
    as maps, the mask is made from finer features of the window, and positions count in voxels from the
    window's centre, so that crops of other sizes train the same encoding.

    Args:
        feature_size: channels of the transformer.
        encoder_channels: of the encoder's features.
        detail_channels: of the features at full resolution.
        fold: side of the voxel cubes that the encoder sees as channels.
    """

    def __init__(self, feature_size: int, encoder_channels: int, detail_channels: int, fold: int) -> None:
        super().__init__()
        channels, parts = encoder_channels, fold**3
        self.fold = fold
        self.parts = parts
        self.feat_downsample = nn.Sequential(
            Conv3d(channels, feature_size, 3, stride=2, padding=1),
            nn.GroupNorm(1, feature_size),
            nn.GELU(),
            Conv3d(feature_size, feature_size, 3, padding=1),
            nn.GroupNorm(1, feature_size),
        )
        self.detail = Conv3d(1, detail_channels, 3, padding=1)
        self.transformer = TwoWayTransformer(PUBLISHED_DEPTH, feature_size, PUBLISHED_HEADS, PUBLISHED_MLP)
        self.pe_layer = PositionEmbeddingRandom(feature_size // 2)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, feature_size) for _ in range(2))
        self.supported_embed = nn.Embedding(1, feature_size)
        self.mask_tokens = nn.Embedding(1, feature_size)
        self.point_projection = nn.Linear(feature_size + channels, feature_size)
        self.output_upscaling = Doubling(feature_size, channels)
        self.add_skip = Pointwise(channels, channels)
        self.add_clicks = Pointwise(2 * len(CLICK_SIGMAS) + 4 * len(INTENSITY_WIDTHS), channels)
        self.merge = Conv3d(channels, channels, 3, padding=1)
        self.refine = Conv3d(channels, channels, 3, padding=1)
        self.up_full = Pointwise(channels, parts * detail_channels)
        self.mix_full = Pointwise(parts * detail_channels, parts * detail_channels)
        self.output_hypernetworks_mlps = MLP(feature_size, feature_size, parts * channels, 3)
        self.fine_hypernetwork = MLP(feature_size, feature_size, detail_channels, 3)
        self.prior_gain = nn.Parameter(torch.tensor(PRIOR_GAIN))

    def embed(self, image: Tensor, features: Tensor) -> LocalFeatures:
        """As `PointHead.embed`, with finer maps: features, folded full resolution, smoothed intensities."""
        detail = space_to_depth(F.gelu(self.detail(image)), self.fold)
        means = F.avg_pool3d(image, self.fold)
        means = F.avg_pool3d(means, 3, stride=1, padding=1, count_include_pad=False)
        return LocalFeatures(self.feat_downsample(features), (features, detail, means))

    def forward(self, features: LocalFeatures, points: Tensor, labels: Tensor) -> Tensor:
        """As `PointHead.forward`."""
        low, (half, detail, means) = features.embedding, features.skips
        side = self.fold * torch.tensor(half.shape[2:], dtype=torch.float32, device=low.device)
        unit = (points.float() + 0.5) / side
        tokens = self._positions(points.float() + 0.5 - side / 2)
        sampled = torch.cat([sample_at(low, unit), sample_at(half, unit)], dim=-1)
        tokens = tokens + self.point_projection(sampled)
        stride = 2 * self.fold
        axes = [stride * (torch.arange(n, device=low.device) + 0.5 - n / 2) for n in low.shape[2:]]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
        positions = self._positions(grid.reshape(1, -1, 3))
        image = low.flatten(2).transpose(1, 2)
        tokens, image = self.transformer(image, positions, _all_tokens(self, tokens, labels), None)
        image = image.transpose(1, 2).reshape(low.shape)
        mask_token = tokens[:, 0]

        alike = _alike(unit, labels, means)
        connected = _connected(unit, labels, means)
        maps = torch.cat([self._maps(unit, labels, half), alike, connected], dim=1)
        clicks = self.add_clicks(maps)
        x = F.gelu(self.output_upscaling(image) + self.add_skip(half) + clicks)
        x = x + F.gelu(self.refine(F.gelu(self.merge(x))))
        fine = F.relu(self.mix_full(F.relu(self.up_full(x) + detail)))
        coarse_weights = self.output_hypernetworks_mlps(mask_token).view(1, self.parts, -1)
        fine_weights = self.fine_hypernetwork(mask_token)
        eye = torch.eye(self.parts, device=fine.device, dtype=fine_weights.dtype)
        fine_weights = torch.einsum("bc,pq->bpqc", fine_weights, eye).reshape(1, self.parts, -1)
        logits = _product(x, coarse_weights) + _product(fine, fine_weights)
        logits = logits + self.prior_gain * (2 * _nearby(unit, labels, means, self.fold) - 1)
        return depth_to_space(logits, self.fold)

    def _positions(self, offsets: Tensor) -> Tensor:
        """(1, N, 3) offsets from the window's centre in voxels -> (1, N, C) float32."""
        with without_autocast(offsets):
            return self.pe_layer.forward_with_coords(offsets + REFERENCE_SIDE / 2, (REFERENCE_SIDE,) * 3)

    def _maps(self, unit: Tensor, labels: Tensor, half: Tensor) -> Tensor:
        size = (half.shape[2], half.shape[3], half.shape[4])
        at = unit * unit.new_tensor(size) - 0.5
        kinds = torch.stack([labels == FOREGROUND, labels == BACKGROUND], dim=1).float()
        sigmas = [sigma for sigma in CLICK_SIGMAS for _ in range(2)]
        return click_maps(at, kinds.repeat(1, len(CLICK_SIGMAS), 1), size, sigmas)


def _alike(unit: Tensor, labels: Tensor, means: Tensor) -> Tensor:
    """How much each voxel's intensity is like that at the clicks: foreground then background, by width.

    Args:
        unit, labels: (1, N, 3) clicks and (1, N) their labels.
        means: (1, 1, D, H, W) smoothed intensities in [0, 1].

    Returns:
        (1, 2 * len(INTENSITY_WIDTHS), D, H, W) in [0, 1], 0 where a kind has no click.
    """
    clicked = sample_at(means.float(), unit)[0, :, 0]
    nearest = [_nearest(means.float(), clicked[labels[0] == kind]) for kind in (FOREGROUND, BACKGROUND)]
    maps = []
    for width in INTENSITY_WIDTHS:
        for away in nearest:
            empty = torch.zeros_like(means, dtype=torch.float32)
            maps.append(empty if away is None else torch.exp(-0.5 * (away / width) ** 2))
    return torch.cat(maps, dim=1)


def _nearest(means: Tensor, values: Tensor) -> Tensor | None:
    """How far each of `means` is from the nearest of `values` (N,); None without any."""
    if len(values) == 0:
        return None
    found = (means - values[0]).abs()
    for value in values[1:]:
        torch.minimum(found, (means - value).abs_(), out=found)
    return found


def _connected(unit: Tensor, labels: Tensor, means: Tensor) -> Tensor:
    """Fuzzy connectedness to the clicks: how alike the least like voxel on the best path from a click is.

    Convolutions see a fixed distance; this follows an even organ to its end and stops at its edge. It is
    computed on cells of twice the size (the path may be as long as one and a half times the window).

    Args:
        unit, labels, means: as in `_alike`.

    Returns:
        (1, 2 * len(INTENSITY_WIDTHS), D, H, W) in [0, 1], foreground then background by width.
    """
    coarse = F.avg_pool3d(means.float(), 2, ceil_mode=True, count_include_pad=False)
    size = coarse.shape[2:]
    like = _alike(unit, labels, coarse)[0][:, None]
    cells = (unit[0] * unit.new_tensor(size)).long()
    reached = torch.zeros_like(like)
    for channel in range(len(like)):
        kind = (FOREGROUND, BACKGROUND)[channel % 2]
        if bool((labels[0] == kind).any()):
            z, y, x = cells[labels[0] == kind].unbind(dim=1)
            reached[channel, 0, z, y, x] = like[channel, 0, z, y, x]
            reached[channel, 0] = _grown(reached[channel, 0], like[channel, 0], 3 * max(size) // 2)
    grown = F.interpolate(reached, size=means.shape[2:], mode="trilinear", align_corners=False)
    return grown[:, 0][None]


def _grown(reached: Tensor, like: Tensor, steps: int) -> Tensor:
    """Spread values over 26-connected steps, nowhere above `like`; both (D, H, W), reached <= like.

    One map at a time and one axis after the other: such operations are too small to be worth threads, and a
    pooling of all maps waits for its threads a hundred times, which takes seconds when a core is busy
    elsewhere.
    """
    for _ in range(steps):
        wide = reached
        for axis in range(3):
            inner, n = wide, wide.shape[axis]
            wide = inner.clone()
            for to, source in ((0, 1), (1, 0)):
                target = wide.narrow(axis, to, n - 1)
                torch.maximum(target, inner.narrow(axis, source, n - 1), out=target)
        wide = torch.minimum(wide, like)
        if torch.equal(wide, reached):
            break
        reached = wide
    return reached


def _nearby(unit: Tensor, labels: Tensor, means: Tensor, fold: int) -> Tensor:
    """A first guess of the object from a foreground click: what is near it and of similar intensity.

    Training starts from here. From a mask of nothing, where an object is a hundredth of the window, it takes
    thousands of steps before the first voxel is found.

    Args:
        unit, labels: (1, N, 3) clicks and (1, N) their labels.
        means: (1, 1, D, H, W) smoothed intensities in [0, 1].
        fold: voxels along a side of one cell of `means`.

    Returns:
        (1, 1, D, H, W) in [0, 1], the largest over the foreground clicks; 0 without one.
    """
    inside = labels[0] == FOREGROUND
    if not bool(inside.any()):
        return torch.zeros_like(means, dtype=torch.float32)
    means = means.float()
    size = means.shape[2:]
    values = sample_at(means, unit)[0, :, 0]
    at = unit[0] * unit.new_tensor(size) - 0.5
    # The largest of many exponentials is the exponential of the least exponent.
    least = torch.full_like(means, torch.inf)
    for point, value in zip(at[inside], values[inside], strict=True):
        z, y, x = (
            ((torch.arange(n, device=unit.device) - c) * (fold / PRIOR_REACH)).square_()
            for n, c in zip(size, point, strict=True)
        )
        unlike = ((means - value) / PRIOR_WIDTH).square_()
        torch.minimum(least, unlike.add_(z[:, None, None] + y[:, None]).add_(x), out=least)
    return torch.exp(-0.5 * least)


def _all_tokens(head: PointHead | ClickHead, clicks: Tensor, labels: Tensor) -> Tensor:
    """Encoded positions of clicks (1, N, C) -> the mask's token, the labelled clicks, the closing token."""
    kinds = torch.cat(list(head.point_embeddings.parameters()))
    mask, closing = head.mask_tokens.weight[None], head.supported_embed.weight[None]
    return torch.cat([mask, clicks + kinds[labels], closing], dim=1)


def _product(maps: Tensor, weights: Tensor) -> Tensor:
    """maps (1, C, D, H, W), weights (1, P, C) -> (1, P, D, H, W)."""
    rows = maps.permute(0, 2, 3, 4, 1)
    return F.linear(rows, weights[0].to(rows.dtype)).permute(0, 4, 1, 2, 3)


class LocalNetwork(nn.Module):
    """Image encoder and point head; `state_dict` has the published names.

    Args:
        image_encoder: with or without its branch for automatic segmentation, which is dropped.
        point_head: of matching sizes.
        config: what they were built from.
    """

    def __init__(
        self, image_encoder: SegResNetDS2, point_head: PointHead | ClickHead, config: LocalConfig
    ) -> None:
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
        x = space_to_depth(image, self.config.space_to_depth) if self.config.space_to_depth > 1 else image
        if runs_lean(self.image_encoder, x):
            features = point_features(self.image_encoder, x)
        else:
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
        # One window at a time: windows have different numbers of clicks, and the published transformer knows
        # no mask. Its memory grows with the batch, too.
        out = []
        for image, at, kinds in zip(features.split(), points.split(1), labels.split(1), strict=True):
            real = kinds[0] >= 0
            out.append(self.point_head(image, at[:, real], kinds[:, real]))
        return torch.cat(out)

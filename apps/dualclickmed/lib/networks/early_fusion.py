"""The compact global expert: image, box, clicks and previous mask enter one U-Net together.

The published network encodes the image once because its encoder costs a hundred times what its decoder does.
A small U-Net on the RoI takes some ten milliseconds on two processor cores, so no encoding needs to be kept:
every prompt is a channel beside the image, and each convolution sees both (nnInteractive works this way at a
larger size).
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .evidence import BOX_SCALE, box_evidence
from .global_network import PRIOR_GAIN, PRIOR_RANGE, GlobalFeatures, RegionNetwork
from .influence import MAPS, click_influence
from .layers import (
    Conv3d,
    Halving,
    Pointwise,
    ResidualConv,
    centre_coordinates,
    click_maps,
    depth_to_space,
    space_to_depth,
    without_autocast,
)
from .prompt_encoder import BACKGROUND, CLICK_SIGMA, FOREGROUND, MASK_LOGIT_SCALE
from .walks import random_walks

if TYPE_CHECKING:
    from .configs import GlobalConfig

# Channels that the image alone decides: itself and two of `box_evidence`.
IMAGE_CHANNELS = 3
# The ellipsoid in the box, foreground and background clicks, and the previous mask.
PROMPT_CHANNELS = 4 + MAPS
# Random walks from box, clicks and previous mask, and from box and clicks alone (`walks`): how much they
# trust what they start from.
WALK_TRUST = (0.1, 0.03)
# What a walk starts from, in logits: evidence and ellipsoid of the box; without a box, what is not clicked.
WALK_EVIDENCE, WALK_ELLIPSOID, WALK_UNKNOWN = 1.5, 3.0, -1.0
# ... the nearness of clicks; the previous mask, and how much the box still counts beside it.
WALK_CLICK, WALK_MASK, WALK_BESIDE_MASK = 2.0, 4.0, 0.5
# Logits of a walk that become 1 in its channel.
WALK_LIMIT = 5.0
# Channels of a group that are normalised together.
GROUP = 16


class EarlyFusionNetwork(RegionNetwork):
    """A U-Net over the RoI whose input channels are the image and the prompts.

    The grid's finest level is seen as cubes of 2 x 2 x 2 cells: all convolutions run at half its resolution
    and below, and what is finer is a product over the cells of a cube.

    Args:
        config: `unet_channels` gives the channels at 1/2, 1/4, 1/8 ... of the grid, `unet_blocks` the
            residual blocks of each level on the way down; on the way up each level has one.
    """

    answers_clicks_alone = True

    def __init__(self, config: GlobalConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.unet_channels
        side = config.image_size
        if side % 2 ** len(channels):
            raise ValueError(f"A grid of {side} can't be halved {len(channels)} times.")
        # Training may treat the image encoder's parameters apart; this network has none.
        self.image_encoder = nn.Identity()
        seen = 8 * channels_seen(config)
        self.stem = Conv3d(seen, channels[0], 3, padding=1)
        pairs = list(itertools.pairwise(channels))
        self.down = nn.ModuleList(Halving(a, b) for a, b in pairs)
        self.up = nn.ModuleList(Pointwise(b, a) for a, b in pairs)
        self.before = nn.ModuleList(
            nn.Sequential(*(_block(c) for _ in range(n)))
            for c, n in zip(channels, config.unet_blocks, strict=True)
        )
        self.after = nn.ModuleList(_block(c) for c in channels[:-1])
        self.fine = Pointwise(channels[0] + seen, 2 * channels[0])
        self.out = Pointwise(2 * channels[0], 8)
        # A new network answers with the ellipsoid.
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        radius = centre_coordinates((side, side, side))[3]
        ramp = (1.0 - BOX_SCALE * radius).clamp(*PRIOR_RANGE)
        self.register_buffer("prior", ramp[None, None], persistent=False)
        self.register_buffer("radius", radius, persistent=False)
        self.prior_gain = nn.Parameter(torch.tensor(PRIOR_GAIN))

    def encode(self, image: Tensor) -> GlobalFeatures:
        """The features that depend on the image alone, of normalised RoIs (B, 1, S, S, S): evidence and a
        smoothed copy.
        """
        self.require_image(image)
        assert isinstance(self.radius, Tensor)
        with torch.no_grad(), without_autocast(image):
            image = image.float()
            smooth = F.avg_pool3d(image, 3, stride=1, padding=1, count_include_pad=False)
            return GlobalFeatures(torch.cat([image, box_evidence(image, self.radius)], dim=1), (smooth,))

    def decode(
        self, features: GlobalFeatures, points: Tensor, labels: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Segment encoded images from prompts.

        Args:
            features: of B images.
            points: (B, N, 3) voxel coordinates (z, y, x) of the grid, as `Roi.to_grid` gives; N may be 0.
            labels: (B, N) 1 foreground, 0 background, config.box_label for the centre of the box, -1 padding
                (no effect). Where there is no box centre the grid is a window about a click, and the object
                may have any size in it.
            mask: (B, 1, S, S, S) logits of a previous mask, or None.

        Returns:
            (B, 1, S, S, S) logits; float32 unless autocast is on.
        """
        b = len(features)
        if points.shape[0] != b or labels.shape != points.shape[:2] or points.shape[2:] != (3,):
            raise ValueError(
                f"Expected points (B, N, 3) and labels (B, N) with B = {b}, "
                f"got {tuple(points.shape)} and {tuple(labels.shape)}."
            )
        assert isinstance(self.prior, Tensor)
        boxed = (labels == self.config.box_label).any(dim=1).view(-1, 1, 1, 1, 1).float()
        image, evidence = features.embedding[:, :1], features.embedding[:, 1:]
        prompts = self._prompt_maps(features, points, labels, mask, boxed)
        seen = space_to_depth(torch.cat([image, evidence * boxed, prompts], dim=1), 2)
        x = self.stem(seen)
        skips = []
        for level, blocks in enumerate(self.before):
            x = blocks(x)
            if level < len(self.down):
                skips.append(x)
                x = self.down[level](x)
        for level in reversed(range(len(self.up))):
            x = F.interpolate(self.up[level](x), scale_factor=2.0, mode="nearest") + skips[level]
            x = self.after[level](x)
        x = F.gelu(self.fine(torch.cat([x, seen.to(x.dtype)], dim=1)))
        return depth_to_space(self.out(x), 2) + boxed * self.prior_gain * self.prior

    def _prompt_maps(
        self, features: GlobalFeatures, points: Tensor, labels: Tensor, mask: Tensor | None, boxed: Tensor
    ) -> Tensor:
        """(B, PROMPT_CHANNELS, S, S, S) float32, all about in [-1, 1]."""
        assert isinstance(self.prior, Tensor)
        side = self.config.image_size
        positive, negative = labels == FOREGROUND, labels == BACKGROUND
        smooth = features.skips[0]
        b = len(features)
        with torch.no_grad(), without_autocast(smooth):
            previous = smooth.new_zeros(b, 1, side, side, side, dtype=torch.float32)
            clicks = previous.expand(-1, 2, -1, -1, -1)
            influence = previous.expand(-1, MAPS, -1, -1, -1)
            # Without a click these maps are zero: the first mask from the box needs none of the work.
            if bool((positive | negative).any()):
                weights = torch.stack([positive, negative], dim=1).float()
                clicks = click_maps(points.float(), weights, (side, side, side), CLICK_SIGMA)
                unit = (points.float() + 0.5) / side
                influence = click_influence(unit, positive, negative, smooth.float())
            if mask is not None:
                previous = torch.tanh(mask.float() / MASK_LOGIT_SCALE)
            prior = self.prior * boxed
            maps = [prior, previous, clicks, influence]
            if self.config.walks:
                maps.append(self._walks(features, points, labels, mask, boxed, influence[:, 1]))
            return torch.cat(maps, dim=1)

    def _walks(
        self,
        features: GlobalFeatures,
        points: Tensor,
        labels: Tensor,
        mask: Tensor | None,
        boxed: Tensor,
        near: Tensor,
    ) -> Tensor:
        """(B, 2, S, S, S) float32 in [-1, 1]: where walks end, see `WALK_TRUST`."""
        assert isinstance(self.prior, Tensor)
        image, evidence = features.embedding[:, 0], features.embedding[:, 1:].float().mean(dim=1)
        inside = boxed[:, 0] * (WALK_EVIDENCE * evidence + WALK_ELLIPSOID * self.prior[0])
        alone = inside + WALK_UNKNOWN * (1 - boxed[:, 0]) + WALK_CLICK * near
        corrected = alone
        if mask is not None:
            before = mask[:, 0].float().clamp(-WALK_MASK, WALK_MASK)
            corrected = WALK_BESIDE_MASK * inside + before + WALK_CLICK * near
        found = random_walks(image, (corrected, alone), WALK_TRUST, points.float(), labels)
        least = 1 / (1 + math.exp(WALK_LIMIT))
        return torch.logit(found, eps=least) / WALK_LIMIT


def channels_seen(config: GlobalConfig) -> int:
    """Maps at the grid's own resolution that the network sees."""
    return IMAGE_CHANNELS + PROMPT_CHANNELS + (len(WALK_TRUST) if config.walks else 0)


def _block(channels: int) -> ResidualConv:
    return ResidualConv(channels, max(1, channels // GROUP))

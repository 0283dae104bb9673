"""The network of the global expert: encode a RoI once, decode any number of prompts from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .evidence import BOX_SCALE
from .features import Features
from .image_encoder import ImageEncoder
from .influence import MAPS
from .layers import centre_coordinates
from .mask_decoder import MaskDecoder
from .prompt_encoder import EncodedPrompts, PromptEncoder

if TYPE_CHECKING:
    from .configs import GlobalConfig

# Logits of the ellipsoid in the box: 1 in its middle, 0 on its surface, times a learned gain.
PRIOR_GAIN = 3.0
PRIOR_RANGE = (-2.0, 1.0)


class GlobalFeatures(Features):
    """An encoded RoI: embedding (B, C, 8, 8, 8) and finer maps, the finest first and folded (`ConvStem`);
    where clicks have influence maps, last the smoothed image (B, 1, 32, 32, 32)."""


class RegionNetwork(nn.Module):
    """What every network of the global expert offers: encode a RoI once, decode prompts from it.

    Attributes:
        config: its sizes.
        answers_clicks_alone: whether it also answers clicks without a box, in windows of any size about them.
    """

    config: GlobalConfig
    answers_clicks_alone = False

    def encode(self, image: Tensor) -> GlobalFeatures:
        """What prompts are decoded from, of normalised images (B, 1, S, S, S); S is config.image_size."""
        raise NotImplementedError

    def decode(
        self, features: GlobalFeatures, points: Tensor, labels: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """(B, 1, M, M, M) logits of encoded images, M = config.mask_size.

        Args:
            features: of B images (`GlobalFeatures.expand` for several requests of one image).
            points: (B, N, 3) voxel coordinates (z, y, x) of the image grid, as `Roi.to_grid` gives; N may
                be 0.
            labels: (B, N) 1 foreground, 0 background, -1 padding (no effect), config.box_label box centre.
            mask: (B, 1, P, P, P) logits of a previous mask (see `to_mask_prompt`), or None.
        """
        raise NotImplementedError

    def require_image(self, image: Tensor) -> None:
        """ValueError for images of another shape than (B, 1, S, S, S), S = config.image_size."""
        side = self.config.image_size
        if image.ndim != 5 or tuple(image.shape[2:]) != (side, side, side):
            raise ValueError(
                f"Expected images of shape (B, 1, {side}, {side}, {side}), got {tuple(image.shape)}."
            )

    def to_mask_prompt(self, logits: Tensor) -> Tensor:
        """(B, 1, M, M, M) logits of `decode` -> the mask prompt for the next round."""
        return to_mask_prompt(logits, self.config.mask_prompt_size)


class GlobalNetwork(RegionNetwork):
    """Image encoder, prompt encoder and mask decoder; `state_dict` has the published names.

    Args:
        image_encoder, prompt_encoder, mask_decoder: parts of matching sizes.
        config: what they were built from.
    """

    def __init__(
        self,
        image_encoder: ImageEncoder,
        prompt_encoder: PromptEncoder,
        mask_decoder: MaskDecoder,
        config: GlobalConfig,
    ) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.prompt_encoder = prompt_encoder
        self.mask_decoder = mask_decoder
        self.config = config
        if config.ellipsoid_prior:
            radius = centre_coordinates((config.mask_size,) * 3)[3]
            ramp = (1.0 - BOX_SCALE * radius).clamp(*PRIOR_RANGE)
            self.register_buffer("prior", ramp[None, None], persistent=False)
            self.prior_gain = nn.Parameter(torch.tensor(PRIOR_GAIN))
        if config.click_influence:
            self.influence_gain = nn.Parameter(torch.zeros(MAPS))

    def encode(self, image: Tensor) -> GlobalFeatures:
        """Encode normalised images (B, 1, S, S, S); S is config.image_size."""
        self.require_image(image)
        side = self.config.image_size
        embedding, skips = self.image_encoder(image)
        if self.config.click_influence:
            skips = (*skips, F.avg_pool3d(image.float(), side // self.config.mask_prompt_size))
        return GlobalFeatures(embedding, skips)

    def decode(
        self, features: GlobalFeatures, points: Tensor, labels: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """As `RegionNetwork.decode`; float32 unless autocast is on."""
        prompts = self._encode_prompts(features, points, labels, mask)
        positions = self.prompt_encoder.dense_positions()
        logits = self.mask_decoder(features.embedding, positions, prompts, features.skips)
        if self.config.ellipsoid_prior:
            assert isinstance(self.prior, Tensor)
            logits = logits + self.prior_gain * self.prior
        if prompts.influence is not None:
            reach = torch.einsum("bmzyx,m->bzyx", prompts.influence, self.influence_gain)[:, None]
            size = logits.shape[2:]
            logits = logits + F.interpolate(reach, size=size, mode="trilinear", align_corners=False)
        return logits

    def decode_every_mask(
        self, features: GlobalFeatures, points: Tensor, labels: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As `decode`, with all masks of a published checkpoint; `decode` gives the first of them.

        Returns:
            logits (B, T, M, M, M) of the config.mask_tokens masks, and their predicted quality (B, T) where
            the checkpoint has a head for it, else None.
        """
        prompts = self._encode_prompts(features, points, labels, mask)
        positions = self.prompt_encoder.dense_positions()
        return self.mask_decoder.every_mask(features.embedding, positions, prompts)

    def _encode_prompts(
        self, features: GlobalFeatures, points: Tensor, labels: Tensor, mask: Tensor | None
    ) -> EncodedPrompts:
        b = features.embedding.shape[0]
        if points.shape[0] != b or labels.shape != points.shape[:2] or points.shape[2:] != (3,):
            raise ValueError(
                f"Expected points (B, N, 3) and labels (B, N) with B = {b}, "
                f"got {tuple(points.shape)} and {tuple(labels.shape)}."
            )
        sampled: tuple[Tensor, ...] = ()
        if self.config.point_features:
            sampled = (features.skips[1], features.embedding)
        image = features.skips[-1] if self.config.click_influence else None
        return self.prompt_encoder(points, labels, mask, sampled, image)


def to_mask_prompt(logits: Tensor, size: int = 32) -> Tensor:
    """Mask logits (B, 1, M, M, M) as a mask prompt (B, 1, size, size, size): means of covered voxels."""
    if logits.shape[-1] == size:
        return logits
    return F.avg_pool3d(logits, logits.shape[-1] // size)


def box_centre_prompt(
    network: RegionNetwork, batch: int, grid: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The first prompt of the global expert: the centre of the box, which is the centre of the grid.

    Returns:
        points (B, 1, 3) in grid voxels and labels (B, 1).
    """
    points = torch.full((batch, 1, 3), (grid - 1) / 2, device=device)
    labels = torch.full((batch, 1), network.config.box_label, device=device, dtype=torch.long)
    return points, labels

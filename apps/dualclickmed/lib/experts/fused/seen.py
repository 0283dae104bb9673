"""What a user of `strategy=fused` sees between two clicks, and what the next click says about it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...imaging.geometry import Box, Roi, resampled
from ...imaging.prompts import Click
from .random_walker import Field
from .refinement import NETWORK_LIMIT as LIMIT
from .refinement import CellClick, ClickEvidence, Depths, RegionFeatures

REFUTING_DEPTH = 0.3
"""Depth in the mask, in radii of a ball of the mask's volume, from which on a background click says that an
object was found that is not the one that was meant."""


@dataclass(frozen=True, eq=False)
class Seen:
    """What a user sees after some clicks: probabilities in a region, and the clicks' evidence so far."""

    features: RegionFeatures
    probability: Field
    evidence: ClickEvidence
    box: Box | None

    @cached_property
    def depths(self) -> Depths:
        """Depths of the next clicks; both their order and their reach are computed from them."""
        return Depths.of(self.features, self.probability > 0.5, self.box)

    @property
    def nbytes(self) -> int:
        # The depths count before they are asked for: a cache asks for this once.
        return 6 * self.probability.nbytes

    def agrees_with(self, click: Click) -> bool:
        """Whether the click has the same label as the mask at its voxel: its step then changes nothing."""
        inside = self.features.roi.box.contains(click.index)
        found = inside and bool(self.probability[self.features.cell(click.index)] > 0.5)
        return found == click.positive

    def depth_of(self, click: Click) -> float:
        """How deep in mm a click lies in what it would correct; -1 outside the region."""
        if not self.features.roi.box.contains(click.index):
            return -1.0
        return self.depths.at(CellClick(self.features.cell(click.index), click.positive))

    def is_refuted_by(self, click: Click) -> bool:
        """Whether it is a background click so deep in the mask that another object must be meant."""
        if click.positive or self.agrees_with(click):
            return False
        volume = float((self.probability > 0.5).sum()) * math.prod(self.features.step)
        radius = (3 * volume / (4 * math.pi)) ** (1 / 3)
        return self.depth_of(click) > REFUTING_DEPTH * radius

    def logits_on(self, roi: Roi) -> Tensor:
        """The probabilities as logits on the grid of another region."""
        limit = 1 / (1 + math.exp(-LIMIT))
        inside = torch.from_numpy(self.probability).clamp(1 - limit, limit)
        return resampled(torch.logit(inside), self.features.roi, roi)

    def moved(self, features: RegionFeatures) -> Seen:
        """The same on the grid of another region."""
        if features.roi == self.features.roi:
            return self
        fields = (self.probability, self.evidence.fore, self.evidence.back)
        probability, fore, back = (
            resampled(torch.from_numpy(field), self.features.roi, features.roi).numpy() for field in fields
        )
        return Seen(features, probability, ClickEvidence(fore, back), self.box)

"""Masks for viewers, made as for MONAI Label's clients: one object, and the defaults of a request."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..imaging.label_files import NamedLabels
from ..imaging.prompts import Prompts
from ..imaging.volume import Volume
from ..infers.layers import EXISTING, Layers
from ..infers.segmenter import Segmenter
from .conversation import Mask, Segment

OBJECT = "object"
"""What a viewer's object is called: viewers send no names."""


@dataclass(frozen=True, eq=False)
class _Corrected(Layers):
    """An existing segmentation that is at hand.

    Attributes:
        mask: (D, H, W).
    """

    existing: str = EXISTING[2]
    mask: Mask = field(default_factory=lambda: np.zeros((0, 0, 0), dtype=np.bool_))

    def read(self, volume: Volume) -> NamedLabels:
        return NamedLabels([self.mask.astype(np.uint16)], [{1: OBJECT}])


def segmenting(segmenter: Segmenter) -> Segment:
    """What makes the masks of viewers' objects.

    A mask that is corrected changes where a click contradicts it, as a request's ``existing`` ``correct``.
    """

    def segment(volume: Volume, prompts: Prompts, start: Mask | None) -> Mask:
        layers = None if start is None else _Corrected(mask=start)
        return segmenter.segment_volume(volume, {OBJECT: prompts}, layers).result.mask(OBJECT)

    return segment

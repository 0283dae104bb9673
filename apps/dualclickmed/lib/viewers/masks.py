"""Masks for viewers, made as for MONAI Label's clients: one object, and the defaults of a request."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..imaging.label_files import NamedLabels
from ..imaging.prompts import Prompts
from ..imaging.volume import Volume
from ..infers.layers import EXISTING, Layers
from ..infers.segmenter import Segmenter, SegmentRequest
from .conversation import Segment
from .interactions import Mask

OBJECT = "object"
"""What a viewer's object is called: viewers send no names."""


def segmenting(segmenter: Segmenter) -> Segment:
    """What makes the masks of viewers' objects.

    A mask that is corrected changes where a click contradicts it, as a request's ``existing`` ``correct``.
    """
    return partial(_mask, segmenter)


def _mask(segmenter: Segmenter, volume: Volume, prompts: Prompts, start: Mask | None) -> Mask:
    layers = Layers()
    if start is not None:
        given = NamedLabels([start.astype(np.uint16)], [{1: OBJECT}])
        layers = Layers(existing=EXISTING[2], given=given)
    options = segmenter.options
    asked = SegmentRequest(
        volume, lambda *_: {OBJECT: prompts}, options.strategy, options.device, layers=layers
    )
    return segmenter.segment(asked).result.mask(OBJECT)

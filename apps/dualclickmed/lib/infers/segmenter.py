"""From a request to its answer, in this order: image, prompts, experts, existing labels."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .. import cancellation
from ..configs.options import ServerOptions
from ..experts import DualExpert, Result
from ..imaging.intensity import CHOICES
from ..imaging.prompts import Prompts
from ..imaging.volume import Volume, VolumeCache
from .layers import Layers, layered
from .served_experts import ServedExperts, fallen_back

PromptFinder = Callable[[Volume, DualExpert], Mapping[str, Prompts]]
"""Returns the prompts in canonical order, by label; called once image and experts are loaded."""


@dataclass(frozen=True, eq=False)
class SegmentRequest:
    """What is to be segmented, and how.

    Attributes:
        image: a file, a folder of DICOM slices, or a volume that is loaded already.
        find: gives the prompts; what it computes counts as the stage "find".
        strategy: one of `experts.STRATEGIES`.
        device: "cpu" or "cuda:N".
        ct_window: one of `intensity.CHOICES`.
        modality: of the image, where it is known.
        layers: the existing segmentation, and what of it stays.
        notes: sentences about the image from before it was loaded.
    """

    image: Path | Volume
    find: PromptFinder
    strategy: str
    device: str
    ct_window: str = CHOICES[0]
    modality: str | None = None
    layers: Layers = field(default_factory=Layers)
    notes: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Answer:
    """A segmentation of one volume.

    Attributes:
        volume: the image.
        result: what the experts found, in canonical order, and what was taken over.
        stages: seconds by part, loading the image included.
        before: the existing label map (D, H, W) with the result's values; None if there was none.
        notes: sentences about the image's file, the existing segmentation, and a GPU that could not answer.
        beneath: voxels (D, H, W) of existing labels that lie under other labels of the result.
    """

    volume: Volume
    result: Result
    stages: dict[str, float]
    before: npt.NDArray[np.uint8] | None = None
    notes: Sequence[str] = ()
    beneath: Mapping[str, npt.NDArray[np.bool_]] = field(default_factory=dict)


class Segmenter:
    """Answers requests for any image on any device.

    Thread-safe: images are read side by side, networks run for one request at a time. A computation ends
    early where `cancellation` says so.

    Args:
        options: the server's settings.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.experts = ServedExperts(options)
        self._volumes = VolumeCache(options.cache_bytes // 2)

    def volume(self, image: Path, modality: str | None = None) -> Volume:
        """The image that answers are for, from the cache where it was used lately.

        Raises:
            UserError: it cannot be read.
        """
        return self._volumes.get(image, modality)

    def segment(self, request: SegmentRequest) -> Answer:
        """Load the image and segment every label in it.

        Raises:
            UserError: the weights, the image or the prompts cannot be used.
        """
        cancellation.check()
        start = time.perf_counter()
        image = request.image
        volume = image if isinstance(image, Volume) else self.volume(image, request.modality)
        loaded = time.perf_counter() - start
        return self.experts.compute(partial(_answer, request, volume, loaded), request.device)


def _answer(
    request: SegmentRequest, volume: Volume, loaded: float, expert: DualExpert, device: str
) -> Answer:
    """The answer of experts that are on `device`; `loaded` is how many seconds the image took."""
    cancellation.check()
    start = time.perf_counter()
    prompts = request.find(volume, expert)
    found = time.perf_counter() - start
    segment = partial(expert.segment, volume, strategy=request.strategy, intensity=request.ct_window)
    whole = layered(segment, volume, prompts, request.layers)
    stages = {"load": loaded, "find": found, **whole.result.stages}
    notes = [
        *request.notes,
        *volume.notes,
        *whole.notes,
        *([] if device == request.device else [fallen_back(request.device)]),
    ]
    return Answer(volume, whole.result, stages, whole.before, notes, whole.beneath)

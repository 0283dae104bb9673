"""The task without clicks: segments every label that was learned from annotators where it is expected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferType

from ..configs import wire
from ..errors import PromptError
from ..experts import DualExpert
from ..imaging.label_map import LabelMap
from ..imaging.prompts import Prompts
from ..imaging.volume import Volume
from ..learning.prior import Prior, propose
from .dialects import choice, word
from .segmenter import Segmenter, SegmentRequest
from .tasks import ClickTask


class AutoTask(ClickTask):
    """Segments all learned labels of an image without clicks (type segmentation), for batch inference and
    review.

    It is offered once a label has been learned where it lies (`learning.prior`).

    Args:
        segmenter: shared by all tasks.
        prior: returns the learned positions and sizes of labels; called for every request.
    """

    def __init__(self, segmenter: Segmenter, prior: Callable[[], Prior]) -> None:
        super().__init__(
            segmenter,
            InferType.SEGMENTATION,
            {},
            "Every label that was learned, where it is expected, without a click",
        )
        for option in (wire.STRATEGY, wire.CLICKS, wire.EXISTING, wire.OVERLAP):
            del self._config[option]
        self._prior = prior

    def is_valid(self) -> bool:
        """Whether there is anything to propose, and weights to do it with."""
        return super().is_valid() and bool(self._learned())

    def info(self) -> dict[str, Any]:
        """With the labels that are known now."""
        values = self._segmenter.options.labels.values
        return {**super().info(), "labels": {name: values[name] for name in self._learned()}}

    def labels_for(self, request: Mapping[str, Any]) -> LabelMap:
        return self._segmenter.options.labels

    def _learned(self) -> list[str]:
        """Labels with a learned position, in the server's order; those added since its start follow after a
        restart.
        """
        learned = set(self._prior().labels)
        return [name for name in self._segmenter.options.labels.names if name in learned]

    def understood(self, request: Mapping[str, Any], labels: LabelMap) -> SegmentRequest:
        window = choice(request, wire.CT_WINDOW, self._config[wire.CT_WINDOW])
        return SegmentRequest(
            image=Path(request[wire.IMAGE]),
            find=partial(self._proposed, window),
            strategy="global",
            device=self._segmenter.options.device_for(word(request, wire.DEVICE, None)),
            ct_window=window,
            modality=word(request, wire.MODALITY, None),
        )

    def _proposed(self, window: str, volume: Volume, expert: DualExpert) -> dict[str, Prompts]:
        """Prompts for the learned labels that are expected in this image."""
        wanted = set(self._learned())
        found = propose(self._prior(), volume, expert, window)
        kept = {label: prompts for label, prompts in found.items() if label in wanted}
        if not kept:
            raise PromptError(
                "No learned label is expected in an image like this one; labels are learned from final "
                "labels of similar images."
            )
        return kept

"""The two tasks that MONAI Label's clients see: several labels at once, and one object."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import HTTPException
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from ..configs import wire
from ..errors import PromptError, UserError
from ..experts.timing import StageTimer
from ..imaging.intensity import CHOICES
from ..imaging.label_map import BACKGROUND, MAX_NAME_LENGTH, LabelMap
from ..imaging.mask_files import DTYPES, EXTENSIONS, write
from .answers import in_raw_order, uncertainty_in_raw_order
from .dialects import CLICKS, choice, flag, locked_labels, named_order, read_prompts, to_canonical, word
from .layers import EXISTING, OVERLAPS, Layers
from .segmenter import Segmenter, SegmentRequest

logger = logging.getLogger(__name__)

GLOBAL = "global"
CONTENTS = ("mask", "uncertainty")
"""What the resulting file may hold; the first is the default."""
OBJECT = "object"
"""The label of `ObjectTask` where the request gives none."""


class ClickTask(InferTask):
    """Prompts in, a mask on the image's own grid out.

    A user's error becomes HTTP status 400 with its sentence; the server goes on.

    Args:
        segmenter: shared by all tasks.
        type: how clients present the task.
        labels: name to value, as /info shows them.
        description: likewise.
    """

    def __init__(
        self, segmenter: Segmenter, type: InferType, labels: dict[str, int] | None, description: str
    ) -> None:
        options = segmenter.options
        # Clients show a list of strings as a choice and take its first as the default.
        config = {
            wire.STRATEGY: options.strategies(),
            wire.CLICKS: list(CLICKS),
            wire.EXISTING: list(EXISTING),
            wire.OVERLAP: list(OVERLAPS),
            wire.CT_WINDOW: list(CHOICES),
            wire.DEVICE: options.devices(),
        }
        super().__init__(type=type, labels=labels, dimension=3, description=description, config=config)
        self._segmenter = segmenter

    def is_valid(self) -> bool:
        """Whether the weights are there and whole; clients are not offered the task otherwise."""
        return self._segmenter.experts.problem() is None

    def labels_for(self, request: Mapping[str, Any]) -> LabelMap:
        """The labels that this request may name."""
        raise NotImplementedError

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The mask's file, which the caller removes, and what goes with it.

        Args:
            request: the client's parameters, with ``image`` a path; see `dialects` for the prompts.

        Raises:
            HTTPException: status 400 or 413 for anything that the user can put right.
        """
        try:
            return self._answer(request)
        except UserError as error:
            logger.info("Refused: %s", error)
            raise HTTPException(error.status, str(error)) from error

    def _answer(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """From a request to its answer, in order: read it, segment, describe, write."""
        timer = StageTimer()
        with timer.timed("total"):
            labels = self.labels_for(request)
            form = _file_form(request)
            answer = self._segmenter.segment(self.understood(request, labels))
            with timer.timed("write"):
                mask, details = in_raw_order(answer, labels)
                if form.content == CONTENTS[1]:
                    mask = uncertainty_in_raw_order(answer)
                path = write(mask, form.extension, form.dtype, form.compress)
        stages = {**answer.stages, **timer}
        details[wire.LATENCIES] = {stage: round(seconds, 4) for stage, seconds in stages.items()}
        logger.info("Segmented %s: %s", list(answer.result.values), details[wire.LATENCIES])
        return str(path), details

    def understood(self, request: Mapping[str, Any], labels: LabelMap) -> SegmentRequest:
        """What a client's request asks for.

        Raises:
            UserError: one of its values cannot be used.
        """
        strategy = choice(request, wire.STRATEGY, self._config[wire.STRATEGY])
        layers = _layers(request, labels, corners=strategy == GLOBAL)
        clicked = read_prompts(request, labels, correct=layers.existing == EXISTING[2])
        return SegmentRequest(
            image=Path(request[wire.IMAGE]),
            find=lambda volume, _: to_canonical(clicked, volume),
            strategy=strategy,
            device=self._segmenter.options.device_for(word(request, wire.DEVICE, None)),
            ct_window=choice(request, wire.CT_WINDOW, self._config[wire.CT_WINDOW]),
            modality=word(request, wire.MODALITY, None),
            layers=layers,
            notes=request.get(wire.IMAGE_NOTES) or (),
        )


class LabelsTask(ClickTask):
    """Several labels at once, each from its own prompts (type deepedit)."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__(
            segmenter,
            InferType.DEEPEDIT,
            segmenter.options.labels.announced,
            "Clicks for any number of labels, or a box for one, to a mask of all of them",
        )

    def labels_for(self, request: Mapping[str, Any]) -> LabelMap:
        return self._segmenter.options.labels


class ObjectTask(ClickTask):
    """One object, whatever it is called (type deepgrow). Its value is 1."""

    def __init__(self, segmenter: Segmenter) -> None:
        # Without labels of its own, clients offer this task for every label of the app.
        super().__init__(segmenter, InferType.DEEPGROW, None, "Clicks or a box for one object to its mask")

    def labels_for(self, request: Mapping[str, Any]) -> LabelMap:
        name = request.get(wire.LABEL)
        if not isinstance(name, str) or not name.strip() or name.strip().casefold() == BACKGROUND:
            return LabelMap((OBJECT,))
        if len(name) > MAX_NAME_LENGTH or not name.isprintable():
            raise PromptError(f"A label's name has at most {MAX_NAME_LENGTH} printable characters.")
        return LabelMap((name.strip(),))


@dataclass(frozen=True)
class _FileForm:
    """How a client wants its answer's file; `write` refuses an unknown extension or dtype."""

    extension: str
    dtype: str
    compress: bool
    content: str


def _file_form(request: Mapping[str, Any]) -> _FileForm:
    return _FileForm(
        extension=word(request, wire.RESULT_EXTENSION, None) or EXTENSIONS[0],
        dtype=word(request, wire.RESULT_DTYPE, None) or DTYPES[0],
        # Masks shrink to a hundredth, in less time than sending them plain would take.
        compress=flag(request, wire.RESULT_COMPRESS, True),
        content=choice(request, wire.RESULT_CONTENT, CONTENTS),
    )


def _layers(request: Mapping[str, Any], labels: LabelMap, corners: bool) -> Layers:
    """What the request says about an existing segmentation and about overlaps; for `corners` see `Layers`."""
    uploaded = bool(request.get(wire.UPLOADED))
    # An uploaded segmentation is to be corrected unless the request has another `existing`.
    existing = EXISTING[2] if uploaded and word(request, wire.EXISTING, None) is None else None
    path = request.get(wire.EXISTING_PATH)
    return Layers(
        labels=labels,
        existing=existing or choice(request, wire.EXISTING, EXISTING),
        path=Path(path) if path else None,
        info=request if uploaded else request.get(wire.EXISTING_INFO) or {},
        required=uploaded,
        overlap=choice(request, wire.OVERLAP, OVERLAPS),
        order=named_order(request, labels),
        locked=locked_labels(request, labels),
        corners=corners,
    )

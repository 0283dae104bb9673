"""The two tasks that MONAI Label's clients see: several labels at once, and one object."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from fastapi import HTTPException
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from ..configs import wire
from ..errors import PromptError, UserError
from ..imaging.intensity import CHOICES
from ..imaging.label_map import BACKGROUND, MAX_LABELS, MAX_NAME_LENGTH, LabelMap, colour_of
from ..imaging.mask_files import DTYPES, EXTENSIONS, LabelledMask, Segment, write
from .dialects import CLICKS, choice, flag, locked_labels, named_order, read_prompts, word
from .layers import EXISTING, OVERLAPS, Layers
from .segmenter import Answer, Segmenter

logger = logging.getLogger(__name__)

_Voxel = TypeVar("_Voxel", bound=np.generic)
FUSED, GLOBAL = "fused", "global"
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
        return self._segmenter.problem() is None

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

    def _segmented(self, request: Mapping[str, Any], labels: LabelMap) -> Answer:
        """Segment what the request's clicks and boxes mean."""
        strategy = choice(request, wire.STRATEGY, self._config[wire.STRATEGY])
        layers = _layers(request, labels, corners=strategy == GLOBAL)
        return self._segmenter.segment(
            image=Path(request[wire.IMAGE]),
            prompts=read_prompts(request, labels, correct=layers.existing == EXISTING[2]),
            strategy=strategy,
            ct_window=choice(request, wire.CT_WINDOW, self._config[wire.CT_WINDOW]),
            device=self._segmenter.options.device_for(word(request, wire.DEVICE, None)),
            modality=word(request, wire.MODALITY, None),
            layers=layers,
        )

    def _answer(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        start = time.perf_counter()
        labels = self.labels_for(request)
        extension = word(request, wire.RESULT_EXTENSION, None) or EXTENSIONS[0]
        dtype = word(request, wire.RESULT_DTYPE, None) or DTYPES[0]
        # Masks shrink to a hundredth, in less time than sending them plain would take.
        compress = flag(request, wire.RESULT_COMPRESS, True)
        content = choice(request, wire.RESULT_CONTENT, CONTENTS)
        answer = self._segmented(request, labels)
        segmented = time.perf_counter()
        mask, details = _in_raw_order(answer, labels)
        if content == CONTENTS[1]:
            mask = _uncertainty(answer)
        path = write(mask, extension, dtype, compress)
        now = time.perf_counter()
        stages = {**answer.stages, "write": now - segmented, "total": now - start}
        details[wire.LATENCIES] = {stage: round(seconds, 4) for stage, seconds in stages.items()}
        logger.info("Segmented %s: %s", list(answer.result.values), details[wire.LATENCIES])
        return str(path), details


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


def _layers(request: Mapping[str, Any], labels: LabelMap, corners: bool) -> Layers:
    """What the request says about an existing segmentation and about overlaps; for `corners` see `Layers`."""
    uploaded = bool(request.get(wire.UPLOADED))
    # Who sends a segmentation along wants it to be corrected, unless something else is said.
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


def _in_raw_order(answer: Answer, labels: LabelMap) -> tuple[LabelledMask, dict[str, Any]]:
    """The mask with the server's values, and what goes with it; all voxels are raw indices (i, j, k)."""
    volume, result = answer.volume, answer.result
    array = volume.to_raw_array(result.labels)
    changed = (
        _filled_part(array)
        if answer.before is None
        else _filled_part(array != volume.to_raw_array(answer.before))
    )
    values = _values(result.values, labels)
    table = np.zeros(256, dtype=np.uint8)
    for label, value in values.items():
        table[result.values[label]] = value
    found = _filled_part(array)[1]
    found[...] = table[found]
    further, homes = _further(answer, array, values)
    parts = [_filled_part(layer) for layer in (array, *further)]
    measured = {label: _measured(*parts[homes.get(label, 0)], value) for label, value in values.items()}
    mask_file = LabelledMask(
        array,
        volume.affine,
        [Segment(name, value, colour_of(name), homes.get(name, 0)) for name, value in values.items()],
        further,
    )
    return mask_file, {
        wire.LABEL_NAMES: {**labels.values, **values},
        wire.LABELS: values,
        wire.STRATEGIES: {label: result.strategies[label] for label in values},
        wire.VOXELS: {label: count for label, (count, _, _) in measured.items()},
        wire.CENTROIDS: {
            label: [values[label], *centre] for label, (count, centre, _) in measured.items() if count
        },
        wire.BOXES: {label: box for label, (count, _, box) in measured.items() if count},
        wire.CHANGED: _roi(*changed),
        wire.SUGGESTIONS: {
            label: volume.to_raw([voxel])[0].tolist() for label, voxel in result.suggestions().items()
        },
        wire.NOTES: list(answer.notes),
        wire.SHAPE: list(volume.raw_shape),
    }


def _values(found: Mapping[str, int], labels: LabelMap) -> dict[str, int]:
    """The values of an answer's labels: the server's, and free ones for existing labels that it does not "
    "know."""
    free = sorted(set(range(1, MAX_LABELS + 1)) - set(labels.values.values()))
    unknown = [label for label in found if label not in labels.values]
    if len(unknown) > len(free):
        raise PromptError(
            f"An answer holds {MAX_LABELS} labels, those of the server included: there are more."
        )
    own = dict(zip(unknown, free, strict=False))
    return {label: own[label] if label in own else labels.values[label] for label in found}


def _further(
    answer: Answer, array: npt.NDArray[np.uint8], values: Mapping[str, int]
) -> tuple[list[npt.NDArray[np.uint8]], dict[str, int]]:
    """Further label maps (i, j, k) for labels that overlap others, and which of them is whose, from 1 on."""
    further: list[npt.NDArray[np.uint8]] = []
    homes: dict[str, int] = {}
    for label, hidden in answer.beneath.items():
        whole = (array == values[label]) | answer.volume.to_raw_array(hidden)
        array[array == values[label]] = 0
        at = next((n for n, layer in enumerate(further) if not layer[whole].any()), len(further))
        if at == len(further):
            further.append(np.zeros_like(array))
        further[at][whole] = values[label]
        homes[label] = at + 1
    return further, homes


def _measured(
    corner: npt.NDArray[np.int64], part: npt.NDArray[np.uint8], value: int
) -> tuple[int, list[int], list[int]]:
    """A label's number of voxels, its middle voxel and its box, both empty without voxels.

    Args:
        corner: of the part in the image. part: the label map there. value: the label's.
    """
    mask = part == value
    count, centre = _count_and_centre(mask)
    if not count:
        return 0, [], []
    first, inside = _filled_part(mask)
    return count, np.rint(centre + corner).astype(int).tolist(), _roi(corner + first, inside)


def _uncertainty(answer: Answer) -> LabelledMask:
    """How unsure each voxel is, in percent, in place of the mask.

    Raises:
        UserError: the strategy does not tell.
    """
    if not answer.result.refined:
        raise UserError(
            f"Only the strategy {FUSED!r} tells how unsure it is, except in PET and microscopy; ask for it."
        )
    percent = np.rint(100 * answer.result.uncertainty()).astype(np.uint8)
    return LabelledMask(answer.volume.to_raw_array(percent), answer.volume.affine, ())


def _roi(corner: npt.NDArray[np.int64], part: npt.NDArray[np.generic]) -> list[int]:
    """A part of the image as requests give boxes, both ends inside; empty for a part without voxels."""
    if not part.size:
        return []
    last = corner + part.shape - 1
    return [int(edge) for pair in zip(corner, last, strict=True) for edge in pair]


def _filled_part(array: npt.NDArray[_Voxel]) -> tuple[npt.NDArray[np.int64], npt.NDArray[_Voxel]]:
    """The smallest part that holds every voxel that is set, as a view, and its first voxel."""
    corner = np.zeros(3, dtype=np.int64)
    part = array
    # The last axis of a file's order varies slowest; each axis leaves less to look at for the next.
    for axis, others in ((2, (0, 1)), (1, (0, 2)), (0, (1, 2))):
        used = np.flatnonzero(part.any(axis=others))
        start, stop = (used[0], used[-1] + 1) if used.size else (0, 0)
        corner[axis] = start
        part = part[tuple(slice(start, stop) if n == axis else slice(None) for n in range(3))]
    return corner, part


def _count_and_centre(mask: npt.NDArray[np.bool_]) -> tuple[int, npt.NDArray[np.float64]]:
    """How many voxels are set, and their mean index; without any the centre means nothing."""
    flat = mask.sum(axis=2, dtype=np.int64)
    sums = (flat.sum(axis=1), flat.sum(axis=0), mask.sum(axis=(0, 1), dtype=np.int64))
    count = int(flat.sum())
    centre = [float(along @ np.arange(along.size)) / max(count, 1) for along in sums]
    return count, np.asarray(centre)

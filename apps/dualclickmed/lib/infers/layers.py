"""Existing segmentations, finished labels, and which label wins where two overlap.

The experts see only the prompts of a request. Here their label map is merged with the labels that the image
has already: labels without clicks stay as they are (`keep`), and labels with clicks may be corrected from
their present state (`correct`). Nothing is remembered between requests, so that to undo is to send one click
less.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..errors import PromptError
from ..experts import Result
from ..experts.dual import MAX_LABELS
from ..experts.prediction import filled_region
from ..imaging.geometry import Index
from ..imaging.label_files import LabelError, NamedLabels, read_labels
from ..imaging.label_map import LabelMap
from ..imaging.prompts import Click, Prompts
from ..imaging.volume import Volume

logger = logging.getLogger(__name__)

EXISTING = ("ignore", "keep", "correct")
"""What may become of an existing segmentation; the first is the default."""
OVERLAPS = ("likelier", "first")
"""Which of two labels gets a voxel that both claim: the more probable one, or the one named first."""
KEPT = "kept"
"""Stands for the expert of a label that was taken over."""

Mask = npt.NDArray[np.bool_]
SegmentFunction = Callable[[Mapping[str, Prompts]], Result]


@dataclass(frozen=True)
class Layers:
    """What a request says about labels besides their prompts.

    Attributes:
        labels: the task's labels, whose values and spelling an existing segmentation may use.
        existing: one of `EXISTING`.
        path: the file of the existing segmentation; None if there is none.
        given: the existing segmentation itself, where it is no file.
        info: what names its values, see `label_files.read_labels`.
        required: whether a file that cannot be used is an error, or else passed over with a note.
        overlap: one of `OVERLAPS`.
        order: labels in the order in which the request names them.
        locked: finished labels: they keep their voxels against all others, the first ones first.
        corners: whether the expert needs a box, which two clicks stand for where a label is not there yet.
    """

    labels: LabelMap = field(default_factory=lambda: LabelMap(()))
    existing: str = EXISTING[0]
    path: Path | None = None
    given: NamedLabels | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    required: bool = False
    overlap: str = OVERLAPS[0]
    order: tuple[str, ...] = ()
    locked: tuple[str, ...] = ()
    corners: bool = False

    def read(self, volume: Volume) -> NamedLabels:
        """The existing segmentation, without any label if there is none.

        Raises:
            LabelError: the file cannot be used, and is required.
        """
        if self.given is not None:
            return self.given
        if self.existing == EXISTING[0] or self.path is None:
            return NamedLabels([], [])
        try:
            return read_labels(self.path, volume, self.info, self.labels)
        except LabelError as error:
            if self.required:
                raise
            logger.warning("An existing segmentation was passed over: %s", error)
            return NamedLabels([], [], [str(error)])


@dataclass(frozen=True, eq=False)
class Layered:
    """A result in which the existing labels have their place.

    Attributes:
        result: of all labels, those that were taken over (`KEPT`) included.
        before: the existing label map (D, H, W) with the result's values; None if there was none.
        notes: sentences about the existing segmentation.
        beneath: voxels (D, H, W) of existing labels that another label has in the result's map, because the
            two overlap.
    """

    result: Result
    before: npt.NDArray[np.uint8] | None = None
    notes: list[str] = field(default_factory=list)
    beneath: dict[str, Mask] = field(default_factory=dict)


def layered(
    segment: SegmentFunction, volume: Volume, prompts: Mapping[str, Prompts], layers: Layers
) -> Layered:
    """Segment, then decide what is kept, corrected and locked.

    * An existing label without prompts keeps its voxels; no click of another label changes it.
    * With ``correct``, an existing label with prompts changes only where a click contradicts it, and there
      by the connected part of the experts' answer that holds the click. A box makes it anew.
    * Locked labels, and with ``overlap`` first all labels in the order of the request, are segmented each by
      itself; later ones get what is left. So one click more for the last label changes no other.

    Args:
        segment: the experts.
        volume: the image.
        prompts: by label, in canonical order. Those without foreground click and box need an existing label.
        layers: what the request says.

    Raises:
        PromptError: a foreground click lies in a label that is finished, a locked label has no prompts, or
            no label is left to segment.
        LabelError: the existing segmentation cannot be used.
    """
    existing = layers.read(volume)
    correct = layers.existing == EXISTING[2]
    known = {name for names in existing.names for name in names.values()}
    wanted: dict[str, Prompts] = {}
    for label, given in prompts.items():
        before_it = existing.mask(label) if correct and label in known else None
        # The corners lie beside the object: no click has to hold there.
        asked = given.with_corner_box() if layers.corners and before_it is None else given
        started = _started(asked, before_it)
        if started is not None:
            wanted[label] = started
    if not wanted:
        raise PromptError(
            "At least one foreground click or a box is needed, or a background click inside a label of the "
            "existing segmentation."
        )
    groups = _groups(wanted, layers)
    if not known and len(groups) == 1:
        return Layered(segment(wanted), None, existing.notes)

    names = [*wanted, *sorted(known - set(wanted))]
    if len(names) > MAX_LABELS:
        raise PromptError(f"At most {MAX_LABELS} labels can lie in one image, but there are {len(names)}.")
    values = {label: value for value, label in enumerate(names, start=1)}
    before = _painted(existing, values, volume, frozenset(known - set(wanted)))
    corrected = {label for label in wanted if correct and label in known and wanted[label].box is None}
    array = before.copy()
    array[np.isin(array, [values[label] for label in wanted if label not in corrected])] = 0
    results = []
    for group in groups:
        _refuse_finished(group, array, names, volume)
        found = segment(group)
        results.append(found)
        masks = {label: found.mask(label) for label in group}
        for label in corrected & group.keys():
            own = before == values[label]
            # A foreground click of another label inside this one excludes the voxel from this one.
            others = [index for other in group if other != label for index in group[other].foreground]
            masks[label] = _corrected(own, masks[label], group[label], others)
            array[own & ~masks[label]] = 0
        for label, mask in masks.items():
            array[mask & (array == 0)] = values[label]
    result = _joined(results, array, values)
    stay = (known - set(wanted)) | corrected
    notes = [*existing.notes, *(_passed_over(wanted, before, names, volume) if correct else ())]
    return Layered(result, before if known else None, notes, _beneath(existing, values, before, stay))


def _passed_over(
    wanted: Mapping[str, Prompts], before: npt.NDArray[np.uint8], names: Sequence[str], volume: Volume
) -> list[str]:
    """Notes on background clicks inside existing labels without prompts of their own. Such a click may only
    mean that the voxel is not a clicked label's, so the existing label keeps it.
    """
    found: dict[str, list[Index]] = {}
    for index in dict.fromkeys(index for given in wanted.values() for index in given.background):
        owner = names[before[index] - 1] if before[index] else None
        if owner is not None and owner not in wanted:
            found.setdefault(owner, []).append(index)
    return [
        f"The background click {volume.to_raw(clicked)[0].tolist()} lies in {owner!r}, which no other click "
        "is about: it keeps the voxel. To take it away, send background clicks and no others."
        for owner, clicked in found.items()
    ]


def _started(given: Prompts, before: Mask | None) -> Prompts | None:
    """Prompts that the experts can use; None for a label without any."""
    if given.foreground or given.box is not None:
        return given if before is None else replace(given, mask=before)
    if before is None or not any(before[index] for index in given.background):
        return None
    # Nothing was clicked in it, and the experts have to know where the label is.
    inside = _deepest(before, given.background)
    if inside is None:
        return None
    return replace(given, clicks=(Click(inside, True), *given.clicks), mask=before)


def _deepest(mask: Mask, avoided: Iterable[Index]) -> Index | None:
    """The voxel that is farthest from the mask's surface and from every avoided one; None if all are."""
    region = filled_region(mask)
    free = np.pad(mask[region], 1)
    offset = [s.start - 1 for s in region]
    for index in avoided:
        at = tuple(p - o for p, o in zip(index, offset, strict=True))
        if all(0 <= p < n for p, n in zip(at, free.shape, strict=True)):
            free[at] = False
    if not free.any():
        return None
    depth = ndimage.distance_transform_edt(free)
    z, y, x = (int(p) + o for p, o in zip(np.unravel_index(depth.argmax(), depth.shape), offset, strict=True))
    return z, y, x


def _groups(prompts: Mapping[str, Prompts], layers: Layers) -> list[dict[str, Prompts]]:
    """Groups of labels that are segmented together, in the order in which they are segmented."""
    for label in layers.locked:
        if label not in prompts:
            raise PromptError(f"A locked label needs clicks or a box of its own, but {label!r} has none.")
    single = list(layers.locked)
    if layers.overlap == OVERLAPS[1]:
        order = [*layers.order, *prompts]
        single += [label for label in order if label in prompts]
    single = list(dict.fromkeys(single))
    rest = {label: given for label, given in prompts.items() if label not in single}
    return [{label: prompts[label]} for label in single] + ([rest] if rest else [])


def _refuse_finished(
    group: Mapping[str, Prompts], array: npt.NDArray[np.uint8], names: Sequence[str], volume: Volume
) -> None:
    for label, given in group.items():
        for index in given.foreground:
            owner = names[array[index] - 1] if array[index] else None
            if owner is not None and owner not in group:
                point = volume.to_raw([index])[0].tolist()
                raise PromptError(
                    f"The voxel {point} was clicked as {label!r}, but it belongs to {owner!r}, which is "
                    "finished: click elsewhere, or correct that label first."
                )


def _painted(
    existing: NamedLabels, values: Mapping[str, int], volume: Volume, kept: frozenset[str]
) -> npt.NDArray[np.uint8]:
    """The existing labels in one map (D, H, W); kept labels win overlaps, then the first layer."""
    array = np.zeros(volume.shape, dtype=np.uint8)
    for first in (True, False):
        for layer, names in zip(existing.layers, existing.names, strict=True):
            table = np.zeros(int(layer.max()) + 1, dtype=np.uint8)
            for value, name in names.items():
                if (name in kept) is first:
                    table[value] = values[name]
            np.copyto(array, table[layer], where=array == 0)
    return array


def _beneath(
    existing: NamedLabels, values: Mapping[str, int], before: npt.NDArray[np.uint8], stay: set[str]
) -> dict[str, Mask]:
    """For each existing label in `stay`, its voxels that another label hides in the map `before`, if any."""
    if len(existing.layers) == 1:
        return {}
    found = {name: existing.mask(name) & (before != values[name]) for name in sorted(stay)}
    return {name: mask for name, mask in found.items() if mask.any()}


def _corrected(before: Mask, proposed: Mask, given: Prompts, others: Sequence[Index]) -> Mask:
    """The mask that was there, changed as proposed in the connected parts that hold a contradicting click."""
    after = before.copy()
    for change, clicks, value in (
        (proposed & ~before, given.foreground, True),
        (before & ~proposed, [*given.background, *others], False),
    ):
        contradicting = [index for index in clicks if change[index]]
        if not contradicting:
            continue
        region = filled_region(change)
        parts, _ = ndimage.label(change[region])
        offset = np.asarray([s.start for s in region])
        found = {int(parts[tuple(np.asarray(index) - offset)]) for index in contradicting}
        after[region][np.isin(parts, list(found))] = value
    return after


def _joined(
    results: Sequence[Result],
    array: npt.NDArray[np.uint8],
    values: dict[str, int],
) -> Result:
    strategies = dict.fromkeys(values, KEPT)
    stages: dict[str, float] = {}
    for found in results:
        strategies |= found.strategies
        for stage, seconds in found.stages.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    return replace(
        results[-1],
        labels=array,
        values=values,
        strategies=strategies,
        enforced=sorted({index for found in results for index in found.enforced}),
        stages=stages,
        refined={label: part for found in results for label, part in found.refined.items()},
    )

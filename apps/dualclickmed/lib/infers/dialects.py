"""Every way in which clients send clicks, turned into prompts.

Clients send voxel indices (i, j, k) of the image as it is stored; the dialects are

* ``{"liver": [[i, j, k], ...], "background": [...]}``: one key for each label (OHIF and 3D Slicer, deepedit);
* ``{"foreground": [...], "background": [...], "label": "liver"}`` (OHIF, 3D Slicer and MITK, deepgrow);
* ``{"points": [...], "point_labels": [1, 0, ...], "label_prompt": [1]}`` (VISTA-3D);
* ``{"roi": [i0, i1, j0, j1, k0, k1], "label": "liver"}``: a box (3D Slicer);
* with ``"clicks": "corners"``, the first two foreground clicks of a label: a box, for clients that have none.

One request may mix them. Lists may come as JSON in a string. Missing, null and empty values are ignored.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ..configs import wire
from ..errors import PromptError, UserError
from ..imaging.geometry import Index, voxels_around
from ..imaging.label_map import LabelMap, listed
from ..imaging.prompts import Click, Prompts
from ..imaging.volume import Volume

CLICKS = ("inside", "corners")
"""What foreground clicks mean; the first is the default."""
MAX_CLICKS = 10_000
"""Clicks that one request may hold, all labels together."""
MAX_WORD = 64
"""Longest option, in characters."""
_MAX_INDEX = 1 << 31
_POINT_LABELS = {1: True, 0: False, -1: None}
"""VISTA-3D's values: foreground, background, padding."""

_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 60
_shown.maxlist = _shown.maxdict = 4


@dataclass
class RawPrompts:
    """The prompts of one label in raw voxel indices (i, j, k).

    Attributes:
        foreground, background: clicked voxels, as they came.
        box: ((i0, j0, k0), (i1, j1, k1)), half-open, not yet cut to the image.
    """

    foreground: list[Index] = field(default_factory=list)
    background: list[Index] = field(default_factory=list)
    box: tuple[Index, Index] | None = None


def read_prompts(
    request: Mapping[str, Any], labels: LabelMap, correct: bool = False
) -> dict[str, RawPrompts]:
    """The prompts of a request, by label in the server's order; labels without any are left out.

    Clicks under ``background`` count for every label that has prompts. A box belongs to ``label``, or to the
    only label that has clicks.

    Args:
        request: the request's parameters; keys that are not about prompts are skipped.
        labels: the task's labels. A task with one label needs no naming of it.
        correct: whether an existing segmentation is corrected. Background clicks alone are prompts then: for
            ``label``, or else for every label, because which of them they lie in is not known here.

    Raises:
        PromptError: a value is not what its key needs, a label is unknown or missing, a box lacks its second
            corner, or there is neither a foreground click nor a box.
        UserError: ``clicks`` is none of `CLICKS`.
    """
    reader = _Reader(request, labels)
    reader.read_label_keys()
    reader.read_foreground()
    reader.read_points()
    reader.read_box()
    if choice(request, wire.CLICKS, CLICKS) == CLICKS[1]:
        reader.take_corners()
    return reader.result(correct)


def named_order(request: Mapping[str, Any], labels: LabelMap) -> tuple[str, ...]:
    """The labels that have keys of their own, in the order of the request."""
    found = [labels.find(key) for key in request if key not in wire.RESERVED]
    return tuple(dict.fromkeys(label for label in found if label is not None))


def locked_labels(request: Mapping[str, Any], labels: LabelMap) -> tuple[str, ...]:
    """The labels that a request marks as finished.

    Raises:
        PromptError: the value is no list of the task's labels.
    """
    locked = []
    for name in _listed(wire.LOCKED, request.get(wire.LOCKED)):
        label = labels.find(name) if isinstance(name, str) else None
        if label is None:
            raise PromptError(
                f"{wire.LOCKED!r} must list labels, but it holds {_shown.repr(name)}; "
                f"the labels are {listed(labels.names)}."
            )
        locked.append(label)
    return tuple(dict.fromkeys(locked))


def to_canonical(prompts: Mapping[str, RawPrompts], volume: Volume) -> dict[str, Prompts]:
    """Prompts in the volume's canonical array order (z, y, x).

    Raises:
        PromptError: a click lies outside the image or contradicts another, or a box has no part in the
            image. The message names voxels as the client does.
    """
    shape = volume.raw_shape
    _check_agreement(prompts)
    return {label: _label_to_canonical(label, raw, volume, shape) for label, raw in prompts.items()}


def flag(request: Mapping[str, Any], key: str, default: bool) -> bool:
    """A yes or no, which some clients send as a word or a number.

    Raises:
        UserError: the value is neither.
    """
    value = first(request, key, default)
    if isinstance(value, str):
        value = {"true": True, "1": True, "false": False, "0": False}.get(value.strip().lower(), value)
    if value not in (True, False):
        raise UserError(f"{key!r} must be true or false, but it is {_shown.repr(value)}.")
    return bool(value)


def choice(request: Mapping[str, Any], key: str, choices: Sequence[str]) -> str:
    """An option that is one of `choices`; the first is the default.

    Raises:
        UserError: the value is none of them.
    """
    value = first(request, key, choices[0])
    if value not in choices:
        raise UserError(f"{key!r} must be one of {', '.join(choices)}, but it is {_shown.repr(value)}.")
    return str(value)


def word(request: Mapping[str, Any], key: str, default: str | None) -> str | None:
    """An option that is a short text.

    Raises:
        UserError: the value is something else.
    """
    value = first(request, key, default)
    if value is not None and (not isinstance(value, str) or len(value) > MAX_WORD):
        raise UserError(f"{key!r} must be a word, but it is {_shown.repr(value)}.")
    return value


def first(request: Mapping[str, Any], key: str, default: Any) -> Any:
    """The value of an option; of a list, which clients without a choice send whole, the first entry."""
    value = request.get(key)
    if isinstance(value, (list, tuple)):
        value = value[0] if value else None
    return default if value is None or value == "" else value


class _Reader:
    """Collects the prompts of one request, dialect by dialect."""

    def __init__(self, request: Mapping[str, Any], labels: LabelMap) -> None:
        self.request = request
        self.labels = labels
        self.prompts: dict[str, RawPrompts] = {}
        self.clicks = 0
        self.named = self._named_label()
        self.background = self._points(wire.BACKGROUND, request.get(wire.BACKGROUND))

    def result(self, correct: bool) -> dict[str, RawPrompts]:
        given = {name: self.prompts[name] for name in self.labels.names if name in self.prompts}
        found = {
            name: raw
            for name, raw in given.items()
            if raw.foreground or raw.box or (correct and raw.background)
        }
        if correct and not found and self.background:
            meant = self.labels.names if self.named is None else (self.named,)
            found = {name: RawPrompts() for name in meant}
        if not found:
            count = len(self.background) + sum(len(raw.background) for raw in given.values())
            extra = f", but there are only {count} background clicks" if count else ""
            raise PromptError(f"At least one foreground click or a box is needed{extra}.")
        for raw in found.values():
            raw.background.extend(self.background)
        return found

    def read_label_keys(self) -> None:
        for key, value in self.request.items():
            if key in wire.RESERVED:
                continue
            label = self.labels.find(key)
            if label is not None:
                self._of(label).foreground.extend(self._points(key, value))
            elif _looks_like_points(value):
                raise PromptError(f"There is no label {_shown.repr(key)}; {self._known()}.")

    def read_foreground(self) -> None:
        points = self._points(wire.FOREGROUND, self.request.get(wire.FOREGROUND))
        if points:
            self._of(self._target(wire.FOREGROUND)).foreground.extend(points)

    def read_points(self) -> None:
        points = self._points(wire.POINTS, self.request.get(wire.POINTS))
        kinds = _listed(wire.POINT_LABELS, self.request.get(wire.POINT_LABELS)) or [1] * len(points)
        if len(points) != len(kinds):
            raise PromptError(
                f"{wire.POINT_LABELS!r} must have one value for each of the {len(points)} points, "
                f"but it has {len(kinds)}."
            )
        for kind in kinds:
            if isinstance(kind, bool) or not isinstance(kind, (int, float)) or kind not in _POINT_LABELS:
                raise PromptError(
                    f"{wire.POINT_LABELS!r} may hold 1 (foreground), 0 (background) and -1 (ignored), "
                    f"but it holds {_shown.repr(kind)}."
                )
        if any(kind >= 0 for kind in kinds):
            raw = self._of(self._prompted_label() or self._target(wire.POINTS))
            for point, kind in zip(points, kinds, strict=True):
                if kind >= 0:
                    (raw.foreground if _POINT_LABELS[kind] else raw.background).append(point)

    def read_box(self) -> None:
        values = _listed(wire.ROI, self.request.get(wire.ROI))
        if not values:
            return
        if len(values) != 6:
            raise PromptError(
                f"{wire.ROI!r} must be six whole numbers [i0, i1, j0, j1, k0, k1], "
                f"but it is {_shown.repr(values)}."
            )
        i0, i1, j0, j1, k0, k1 = (_whole(wire.ROI, value, values) for value in values)
        # Both ends are voxels of the box, so that a box drawn on a single slice is one voxel thick.
        self._of(self._target(wire.ROI)).box = voxels_around([(i0, j0, k0), (i1, j1, k1)])

    def take_corners(self) -> None:
        """The first two foreground clicks of each label become a box that holds both; the others stay."""
        for label, raw in self.prompts.items():
            if raw.box is not None or not raw.foreground:
                continue
            if len(raw.foreground) == 1:
                raise PromptError(
                    f"The box of {label!r} needs two clicks at opposite corners, but there is only one: "
                    f"{list(raw.foreground[0])}."
                )
            raw.box = voxels_around(raw.foreground[:2])
            raw.foreground = raw.foreground[2:]

    def _of(self, label: str) -> RawPrompts:
        return self.prompts.setdefault(label, RawPrompts())

    def _known(self) -> str:
        return f"the labels are {listed(self.labels.names)}"

    def _named_label(self) -> str | None:
        """The request's ``label``; None if it names no label of its own."""
        value = self.request.get(wire.LABEL)
        if value is None or value == []:
            return None
        if not isinstance(value, str):
            raise PromptError(f"{wire.LABEL!r} must be a label's name, but it is {_shown.repr(value)}.")
        if value.strip().casefold() in ("", wire.BACKGROUND):
            return None
        label = self.labels.find(value)
        if label is None:
            raise PromptError(f"There is no label {_shown.repr(value)}; {self._known()}.")
        return label

    def _prompted_label(self) -> str | None:
        """The label that ``label_prompt`` names by value or name, alone or in a list; None without one."""
        value = self.request.get(wire.LABEL_PROMPT)
        label = self.labels.find(value) if isinstance(value, str) else None
        if label is not None:
            return label
        values = [value] if isinstance(value, (int, float)) else _listed(wire.LABEL_PROMPT, value)
        if not values:
            return None
        if len(values) > 1:
            raise PromptError(
                f"{wire.LABEL_PROMPT!r} must name the one label of the points, "
                f"but it is {_shown.repr(values)}."
            )
        (value,) = values
        if isinstance(value, str) and (label := self.labels.find(value)) is not None:
            return label
        if not isinstance(value, (bool, str)) and value in range(1, len(self.labels.names) + 1):
            return self.labels.names[int(value) - 1]
        raise PromptError(
            f"{wire.LABEL_PROMPT!r} must be a label's name or its value from 1 to {len(self.labels.names)}, "
            f"but it is {_shown.repr(value)}; {self._known()}."
        )

    def _target(self, key: str) -> str:
        """The label that a key without a label of its own is about."""
        if self.named is not None:
            return self.named
        if len(self.labels.names) == 1:
            return self.labels.names[0]
        clicked = [name for name, raw in self.prompts.items() if raw.foreground]
        if key == wire.ROI and len(clicked) == 1:
            return clicked[0]
        raise PromptError(f"{key!r} needs a {wire.LABEL!r} to belong to; {self._known()}.")

    def _points(self, key: str, value: Any) -> list[Index]:
        values = _listed(key, value)
        self.clicks += len(values)
        if self.clicks > MAX_CLICKS:
            raise PromptError(f"A request may hold {MAX_CLICKS} clicks, but this one holds more.")
        points: list[Index] = []
        for point in values:
            if not isinstance(point, (list, tuple)) or len(point) != 3:
                raise PromptError(
                    f"Every click under {_shown.repr(key)} must be three whole numbers [i, j, k], "
                    f"but one is {_shown.repr(point)}."
                )
            i, j, k = (_whole(key, number, point) for number in point)
            points.append((i, j, k))
        return points


def _listed(key: str, value: Any) -> list[Any]:
    """A list that may come as JSON in a string, or not at all."""
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = [value]
    if value is None or value == "":
        return []
    if not isinstance(value, (list, tuple)):
        raise PromptError(f"{_shown.repr(key)} must be a list, but it is {_shown.repr(value)}.")
    return list(value)


def _whole(key: str, value: Any, context: Any) -> int:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # The comparison refuses nan and infinity as well.
    if not number or not -_MAX_INDEX < value < _MAX_INDEX or int(value) != value:
        raise PromptError(
            f"{_shown.repr(key)} must hold whole numbers, but {_shown.repr(value)} "
            f"in {_shown.repr(context)} is none."
        )
    return int(value)


def _looks_like_points(value: Any) -> bool:
    """Whether an unknown key holds clicks, so that a misspelt label is not passed over in silence."""
    if isinstance(value, str) and value.lstrip().startswith("[["):
        return True
    return isinstance(value, (list, tuple)) and len(value) > 0 and isinstance(value[0], (list, tuple))


def _check_agreement(prompts: Mapping[str, RawPrompts]) -> None:
    owner: dict[Index, str] = {}
    for label, raw in prompts.items():
        both = set(raw.foreground) & set(raw.background)
        if both:
            raise PromptError(
                f"A voxel is either foreground or background, but {list(min(both))} was clicked as {label!r} "
                "and as background."
            )
        for point in raw.foreground:
            if owner.setdefault(point, label) != label:
                raise PromptError(
                    f"A voxel belongs to one label, but {list(point)} was clicked as {owner[point]!r} "
                    f"and as {label!r}."
                )


def _label_to_canonical(label: str, raw: RawPrompts, volume: Volume, shape: tuple[int, int, int]) -> Prompts:
    clicks = [
        Click((int(z), int(y), int(x)), positive)
        for points, positive in ((raw.foreground, True), (raw.background, False))
        if points
        for z, y, x in volume.to_canonical(_inside(label, points, shape))
    ]
    box = None
    if raw.box is not None:
        lo, hi = np.maximum(raw.box[0], 0), np.minimum(raw.box[1], shape)
        if not (lo < hi).all():
            spans = [[low, high - 1] for low, high in zip(*raw.box, strict=True)]
            raise PromptError(
                f"The box of {label!r} must overlap the image of {_size(shape)} voxels, but it spans {spans}."
            )
        box = volume.box_to_canonical(tuple(lo.tolist()), tuple(hi.tolist()))
    return Prompts(clicks=tuple(clicks), box=box)


def _inside(label: str, points: list[Index], shape: tuple[int, int, int]) -> npt.NDArray[np.int64]:
    array = np.asarray(points, dtype=np.int64)
    outside = ((array < 0) | (array >= shape)).any(axis=1)
    if outside.any():
        raise PromptError(
            f"A click must lie inside the image of {_size(shape)} voxels, but {array[outside][0].tolist()} "
            f"for {label!r} lies outside."
        )
    return array


def _size(shape: tuple[int, int, int]) -> str:
    return " x ".join(str(n) for n in shape)

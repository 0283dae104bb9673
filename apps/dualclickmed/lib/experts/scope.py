"""The scope of a training: what retrained weights answer themselves; everything else goes to their origin.

A network that is trained on a few images of one kind forgets some of what it knew about others. So weights
that were published by learning carry a training scope in their card: which objects they were trained on, by
modality, size of the object and size of the patient. A request that is like one of these goes to them, any
other one to the weights that learning began with, whose answers therefore stay what they were.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import WeightsError
from ..imaging.geometry import Box, Position, as_position
from ..imaging.prompts import Prompts
from ..imaging.volume import Volume
from ..weights.files import read_card
from .global_expert import GlobalExpert
from .local_expert import LocalExpert

logger = logging.getLogger(__name__)

SCOPE_KEY = "lesson"
"""Key of a model card that holds the objects that the weights were trained on."""
SIDES_APART = 0.5
"""How far an object may differ from a trained one in size: the root mean square of the sides' log ratios."""
PATIENT_APART = 0.6
"""The same for the box that holds the patient."""
CT_BODY = -400.0
"""Hounsfield units above which a voxel belongs to the patient."""
BODY_LEVEL = 0.1
"""The same for other images, between the percentiles 1 and 99."""
BODY_SHARE = 0.02
"""A slice with a smaller part of such voxels holds none of the patient."""
MOST_KNOWN = 256
"""How many decisions (image, box) are cached."""
_MOST_SAMPLES = 64
"""Voxels along an axis that the patient is looked for in."""


@dataclass(frozen=True)
class Example:
    """One labelled object of one image.

    Attributes:
        label: its name.
        modality: of the image.
        centre: (z, y, x) of the object's box, as fractions of the patient's.
        sides: (z, y, x) of the object's box in millimetres.
        patient: sides of the patient's box in millimetres.
        volume: of the object, in cubic millimetres.
    """

    label: str
    modality: str
    centre: Position
    sides: Position
    patient: Position
    volume: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Example:
        """The inverse of `to_dict`, also after JSON; KeyError, TypeError or ValueError for anything else."""
        return cls(
            str(values["label"]),
            str(values["modality"]),
            as_position(values["centre"]),
            as_position(values["sides"]),
            as_position(values["patient"]),
            float(values["volume"]),
        )


def alike(one: str, other: str) -> bool:
    """Whether two images may be of one modality; CT is always recognised, so unknown ones are not CT."""
    return one == other or ("unknown" in (one, other) and "ct" not in (one, other))


def patient_box(volume: Volume) -> Box:
    """The box that holds the patient, in voxel edges; the whole image if nothing stands out."""
    steps = [max(1, -(-n // _MOST_SAMPLES)) for n in volume.shape]
    z, y, x = (slice(step // 2, None, step) for step in steps)
    values = volume.array[z, y, x] * volume.slope + volume.intercept
    if volume.modality == "ct":
        level = CT_BODY
    else:
        low, high = (volume.percentile(q) for q in (1.0, 99.0))
        level = low + BODY_LEVEL * (high - low)
    inside = values > level
    lo, hi = [0.0, 0.0, 0.0], [float(n) for n in volume.shape]
    for axis in range(3):
        share = inside.mean(axis=tuple(other for other in range(3) if other != axis))
        found = np.flatnonzero(share > BODY_SHARE)
        if found.size:
            lo[axis] = float(found[0] * steps[axis])
            hi[axis] = float(min((found[-1] + 1) * steps[axis], volume.shape[axis]))
    return Box.between(lo, hi)


def millimetres(box: Box, volume: Volume) -> npt.NDArray[np.float64]:
    """Sides of a box of voxel edges, (z, y, x)."""
    return np.asarray(box.sides) * np.asarray(volume.spacing)


class TrainingScope:
    """The objects that weights were trained on, and which others are like them.

    Args:
        examples: the objects that they were trained on.
    """

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = list(examples)
        self._sides = np.log(np.array([e.sides for e in examples], dtype=np.float64).reshape(-1, 3))
        self._known: OrderedDict[tuple[str, Box | None], bool] = OrderedDict()
        self._patients = np.log(np.array([e.patient for e in examples], dtype=np.float64).reshape(-1, 3))

    def covers(self, volume: Volume, box: Box | None) -> bool:
        """Whether an object of this image is like one of the training.

        Args:
            volume: the image.
            box: of the object; None where it is not known yet.
        """
        key = (volume.key, box)
        if key not in self._known:
            while len(self._known) >= MOST_KNOWN:
                self._known.popitem(last=False)
            self._known[key] = self._covers(volume, box)
        return self._known[key]

    def _covers(self, volume: Volume, box: Box | None) -> bool:
        fits = np.array([alike(e.modality, volume.modality) for e in self.examples], dtype=np.bool_)
        fits &= _apart(self._patients, millimetres(patient_box(volume), volume)) <= PATIENT_APART
        if box is not None:
            fits &= _apart(self._sides, millimetres(box, volume)) <= SIDES_APART
        return bool(fits.any())


class ScopedGlobalExpert(GlobalExpert):
    """The global expert with retrained weights, and its origin for everything outside their scope.

    Args:
        origin: answers there.
        scope: of the training of its own weights.
        arguments: as for `NetworkExpert`.
    """

    def __init__(self, origin: GlobalExpert, scope: TrainingScope, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.origin, self.scope = origin, scope

    def expert_for(self, volume: Volume, prompts: Prompts) -> GlobalExpert:
        """Itself or its origin; the box decides, so that no correction changes the expert."""
        box = prompts.box
        if box is None and prompts.foreground:
            box = Box.around(prompts.foreground[:2])
        return self if self.scope.covers(volume, box) else self.origin


class ScopedLocalExpert(LocalExpert):
    """The local expert with retrained weights; the image decides, as a click says nothing about size."""

    def __init__(self, origin: LocalExpert, scope: TrainingScope, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.origin, self.scope = origin, scope

    def expert_for(self, volume: Volume, prompts: Prompts) -> LocalExpert:
        """Itself or its origin."""
        return self if self.scope.covers(volume, None) else self.origin


def training_scope_of(path: Path) -> TrainingScope | None:
    """The training scope of weights, by their card; None for those that did not come from learning."""
    try:
        stored = read_card(path).get(SCOPE_KEY)
        return TrainingScope([Example.from_dict(e) for e in stored]) if stored else None
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"The card of '{path}' holds a damaged scope ({error}).") from error


def _apart(logs: npt.NDArray[np.float64], sides: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.sqrt(np.square(logs - np.log(sides)).mean(axis=1))

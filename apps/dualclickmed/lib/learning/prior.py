"""Learned positions and sizes of labels: where in the body each one lies and how large it is.

Positions are kept as fractions of the box that holds the patient, which differs less between images than the
field of view does, and sizes in millimetres. Images whose patient boxes are of similar size count more, so
that a label learned in the abdomen is not looked for in a crop of the brain.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..atomic_files import write_text
from ..experts.dual import DualExpert
from ..experts.scope import Example, alike, millimetres, patient_box
from ..imaging.geometry import Box, as_position
from ..imaging.label_files import NamedLabels
from ..imaging.prompts import Prompts
from ..imaging.volume import Volume

logger = logging.getLogger(__name__)

FILE = "prior.json"
SIZE_SPREAD = 0.3
"""How fast an example counts less as its patient box differs from the image's, as a log ratio."""
MIN_WEIGHT = 0.05
"""A label whose examples count less than this in sum is not proposed."""
MARGIN = 1.1
"""The proposed box is larger than the expected one by this factor: its place is not known exactly."""
_REFINEMENTS = 2
_LEAST_SIDE, _LARGEST_SIDE = 0.6, 1.6
"""Bounds of a found object's sides, in expected ones, for its box to be trusted."""
_LEAST_VOXELS = 8


def examples_of(volume: Volume, labels: NamedLabels) -> list[Example]:
    """The examples of one labelled image, one for each label."""
    patient = patient_box(volume)
    spacing = np.asarray(volume.spacing)
    whole = millimetres(patient, volume)
    found = []
    for name, voxels in labels.voxels.items():
        box = Box.of_mask(labels.mask(name))
        centre = (np.asarray(box.centre) - np.asarray(patient.lo)) / np.asarray(patient.sides)
        found.append(
            Example(
                name,
                volume.modality,
                as_position(centre),
                as_position(millimetres(box, volume)),
                as_position(whole),
                voxels * float(spacing.prod()),
            )
        )
    return found


class Prior:
    """Examples by the version of the label that they come from.

    Args:
        examples: version to its examples.
    """

    def __init__(self, examples: Mapping[str, Sequence[Example]] | None = None) -> None:
        self.examples = {version: list(found) for version, found in (examples or {}).items()}

    @classmethod
    def load(cls, folder: Path) -> Prior:
        """What :meth:`save` wrote into a folder; empty where nothing was written or the file is damaged."""
        try:
            stored = json.loads((folder / FILE).read_text(encoding="utf-8"))
            return cls({version: [Example.from_dict(e) for e in found] for version, found in stored.items()})
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            logger.warning("%s is damaged and is made anew (%s)", folder / FILE, error)
            return cls()

    def save(self, folder: Path) -> None:
        """Write the examples so that a reader finds the old file or the new one."""
        plain = {version: [e.to_dict() for e in found] for version, found in self.examples.items()}
        write_text(folder / FILE, json.dumps(plain))

    def keep(self, versions: Iterable[str]) -> Prior:
        """The examples of some versions: those that are final now."""
        wanted = set(versions)
        return Prior({version: found for version, found in self.examples.items() if version in wanted})

    def all(self) -> list[Example]:
        """Every example."""
        return [e for found in self.examples.values() for e in found]

    @property
    def labels(self) -> list[str]:
        """Names of all labels that there are examples of."""
        return list(dict.fromkeys(e.label for e in self.all()))

    def boxes(self, volume: Volume) -> dict[str, Box]:
        """Where each label is expected in an image, in canonical voxel edges.

        Labels that were seen in other kinds of images only, or in images of another part of the body to judge
        by their size, are left out.
        """
        patient = patient_box(volume)
        spacing = np.asarray(volume.spacing)
        whole = millimetres(patient, volume)
        boxes: dict[str, Box] = {}
        for label in self.labels:
            examples = [e for e in self.all() if e.label == label and alike(e.modality, volume.modality)]
            if not examples:
                continue
            ratio = np.log(np.array([e.patient for e in examples]) / whole)
            weights = np.exp(-0.5 * np.square(ratio / SIZE_SPREAD).mean(axis=1))
            if weights.sum() < MIN_WEIGHT:
                continue
            centre = _median(np.array([e.centre for e in examples]), weights)
            sides = _median(np.array([e.sides for e in examples]), weights)
            middle = np.asarray(patient.lo) + centre * np.asarray(patient.sides)
            half = np.maximum(MARGIN * sides / spacing, 1.0) / 2
            box = _inside(middle - half, middle + half, volume.shape)
            if box is not None:
                boxes[label] = box
        return boxes


def propose(prior: Prior, volume: Volume, expert: DualExpert, intensity: str = "auto") -> dict[str, Prompts]:
    """Prompts for every label that is expected in an image, without a click.

    The global expert looks into the expected box first; where it finds an object of about the expected size,
    that object's own box takes the place of the expected one, and it looks again.

    Args:
        prior: learned positions and sizes of labels.
        volume: the image.
        expert: with its global expert.
        intensity: one of `intensity.CHOICES`.

    Returns:
        A box for each label; none where nothing is expected.
    """
    expected = prior.boxes(volume)
    boxes = dict(expected)
    for _ in range(_REFINEMENTS):
        if not boxes:
            break
        prompts = {label: Prompts(box=box) for label, box in boxes.items()}
        result = expert.segment(volume, prompts, "global", intensity)
        for label, box in expected.items():
            mask = result.mask(label)
            if np.count_nonzero(mask) < _LEAST_VOXELS:
                continue
            found = Box.of_mask(mask)
            ratio = np.asarray(found.sides) * MARGIN / np.asarray(box.sides)
            if ratio.min() >= _LEAST_SIDE and ratio.max() <= _LARGEST_SIDE:
                boxes[label] = found
    return {label: Prompts(box=box) for label, box in boxes.items()}


def _median(values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The weighted median of each column of (N, 3)."""
    found = []
    for column in values.T:
        order = np.argsort(column)
        running = np.cumsum(weights[order])
        found.append(float(column[order][np.searchsorted(running, running[-1] / 2)]))
    return np.asarray(found)


def _inside(lo: npt.NDArray[np.float64], hi: npt.NDArray[np.float64], shape: Sequence[int]) -> Box | None:
    lo, hi = np.maximum(lo, 0.0), np.minimum(hi, np.asarray(shape, dtype=np.float64))
    return Box.between(lo, hi) if (lo + 1 <= hi).all() else None

"""Labelled cases for evaluation: images with their labels in any layout that training reads, and challenge
files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import UserError
from ..imaging.case_files import SUFFIX, case_files, read_case
from ..imaging.geometry import Box, Position
from ..imaging.volume import MODALITY_NAMES, Volume
from ..training.sources import LabelledCase, find_training_cases, load_case

Labels = npt.NDArray[np.integer]

GROUPS = {"ct": "ct", "mr": "mri", "pt": "pet", "us": "ultrasound", "microscopy": "microscopy"}
"""The name of the group of each modality in `volume.MODALITIES`."""


@dataclass(frozen=True, eq=False)
class Task:
    """One case as the protocol takes it.

    Attributes:
        volume: the image.
        labels: (D, H, W) whole numbers on its grid.
        values: the classes that are asked for, in order.
        boxes: of each class; None where the case has none, and step 0 scores 0.
        spacing: what surface distances are measured with, by array axis.
    """

    volume: Volume
    labels: Labels
    values: tuple[int, ...]
    boxes: Mapping[int, Box] | None
    spacing: Position

    @classmethod
    def of_objects(cls, volume: Volume, labels: Labels, values: Sequence[int]) -> Task:
        """A task with the exact enclosing boxes."""
        boxes = {value: Box.of_mask(labels == value) for value in values}
        return cls(volume, labels, tuple(values), boxes, volume.spacing)


@dataclass(frozen=True)
class Case:
    """One labelled case.

    Attributes:
        name: unique among the cases of an evaluation.
        group: by which results are averaged: the modality, where it is known.
        source: its files.
        truth: where a challenge file's ``gts`` are, if not in the file itself.
    """

    name: str
    group: str
    source: LabelledCase
    truth: Path | None = None

    @property
    def is_challenge(self) -> bool:
        """Whether it is a case file of the challenge, with boxes of its own or without."""
        return self.source.image.suffix == SUFFIX

    def load(self) -> tuple[Volume, Labels]:
        """The image, and its labels as a (D, H, W) array on the image's canonical grid.

        Raises:
            UserError: the two files do not share a grid, or one of them can't be used.
        """
        if self.is_challenge:
            task = self.task()
            return task.volume, task.labels
        return load_case(self.source)

    def label_names(self) -> dict[int, str]:
        """Names by label value, where the case has them."""
        return dict(self.source.names)

    def task(self, wanted: Sequence[str] = (), smallest: int = 1, most: int | None = None) -> Task:
        """What the protocol asks about this case.

        Args:
            wanted: values or names of labels; all if there are none.
            smallest: classes of fewer voxels are left out.
            most: at most this many classes, evenly spread over those that are left.

        Returns:
            A task, possibly without any class.

        Raises:
            UserError: as `load`.
        """
        boxes: Mapping[int, Box] | None = None
        if self.is_challenge:
            file = read_case(self.source.image, self.truth)
            if file.truth is None:
                raise UserError(
                    f"'{self.source.image.name}' must hold gts to be evaluated, but has none; --truth names "
                    "a folder of files that do."
                )
            volume, labels = file.volume, file.truth
            spacing = file.spacing
            if file.boxes is not None:
                boxes = dict(zip(file.values, file.boxes, strict=True))
        else:
            volume, labels = self.load()
            spacing = volume.spacing
        values = [value for value, _ in objects(labels, smallest)]
        if wanted:
            names = {name.lower(): value for value, name in self.source.names.items()}
            chosen = {int(w) if w.isdigit() else names.get(w.lower(), -1) for w in wanted}
            values = [value for value in values if value in chosen]
        if most is not None and len(values) > most:
            values = [values[i] for i in np.linspace(0, len(values) - 1, most).round().astype(int)]
        if not self.is_challenge:
            return Task.of_objects(volume, labels, values)
        kept = None if boxes is None else {value: boxes[value] for value in values}
        return Task(volume, labels, tuple(values), kept, spacing)


def find_cases(path: Path, truth: Path | None = None) -> list[Case]:
    """Every case of a folder or list, in order of name.

    Challenge files (``.npz``), or whatever `training.sources` reads: folders with `image.*` and `label.*`,
    imagesTr and labelsTr, a CSV or JSON list.

    Args:
        path: the folder or list.
        truth: a folder of files with ``gts``, of the same names as the challenge files.

    Raises:
        UserError: there is nothing, no case in it, or a challenge file without its truth.
    """
    if not path.exists():
        raise UserError(f"There is no folder '{path}' to evaluate.")
    if path.is_dir() and next(path.glob(f"*{SUFFIX}"), None) is not None:
        return [_challenge_case(file, truth) for file in case_files(path)]
    try:
        found = find_training_cases(path)
    except UserError as error:
        raise UserError(f"'{path}' holds no case to evaluate. {error}") from error
    return [Case(case.id, _group(case), case) for case in found]


def objects(labels: Labels, smallest: int) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
    """Each label value above 0 with its mask, where the mask has at least `smallest` voxels."""
    values, counts = np.unique(labels, return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        if value > 0 and count >= smallest:
            yield int(value), labels == value


def _challenge_case(file: Path, truth: Path | None) -> Case:
    kind = MODALITY_NAMES.get(file.stem.partition("_")[0].lower(), "")
    answers = None if truth is None else truth / file.name
    if answers is not None and not answers.is_file():
        raise UserError(f"The folder of truths '{truth}' must hold '{file.name}', but does not.")
    group = GROUPS.get(kind, file.parent.name)
    return Case(file.stem, group, LabelledCase(file.stem, file, file), answers)


def _group(case: LabelledCase) -> str:
    """The modality, else the first folder of the name, else the data set."""
    modality = GROUPS.get(MODALITY_NAMES.get(case.modality or "", ""))
    first, slash, _ = case.id.partition("/")
    return modality or (first if slash else case.dataset) or "all"

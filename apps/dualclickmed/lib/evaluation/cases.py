"""Labelled cases for evaluation: folders that hold an image and its label on one grid."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import UserError
from ..volume import Volume, load_volume

_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")


@dataclass(frozen=True)
class Case:
    """One image with a label file.

    Attributes:
        name: path of the case below the folder that was given.
        group: first part of the name, by which results are averaged (the modality, say).
        image, label: the two files.
    """

    name: str
    group: str
    image: Path
    label: Path

    def load(self) -> tuple[Volume, npt.NDArray[np.integer]]:
        """The image, and its labels as a (D, H, W) array on the image's canonical grid.

        Raises:
            UserError: the two files do not share a grid.
        """
        volume = load_volume(self.image)
        label = load_volume(self.label)
        if label.raw_shape != volume.raw_shape or not np.allclose(label.affine, volume.affine, atol=1e-2):
            raise UserError(
                f"Case '{self.name}': the label's grid {label.raw_shape} differs from the image's "
                f"{volume.raw_shape}."
            )
        values = label.array
        if label.slope != 1 or label.intercept != 0:
            values = np.round(values * label.slope + label.intercept).astype(np.int32)
        return volume, values

    def label_names(self) -> dict[int, str]:
        """Names by label value, from meta.json where the case has one."""
        meta = self.label.parent / "meta.json"
        if not meta.exists():
            return {}
        names = json.loads(meta.read_text()).get("labels", {})
        return (
            {int(k): str(v) for k, v in names.items() if str(k).isdigit()} if isinstance(names, dict) else {}
        )


def find_cases(folder: Path) -> list[Case]:
    """Every case below a folder: a folder with `image.*` and `label.*` (NIfTI, NRRD or MHA), in order of
    name.

    Raises:
        UserError: the folder is missing or holds no case.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder '{folder}' to evaluate.")
    cases = []
    for image in sorted(p for p in folder.rglob("image.*") if p.name.removeprefix("image") in _ENDINGS):
        labels = [image.with_name("label" + ending) for ending in _ENDINGS]
        label = next((p for p in labels if p.exists()), None)
        if label is None:
            continue
        name = image.parent.relative_to(folder)
        cases.append(Case(name.as_posix(), name.parts[0] if name.parts else folder.name, image, label))
    if not cases:
        raise UserError(
            f"'{folder}' holds no case: expected folders with image.nii.gz and label.nii.gz (or .nrrd, .mha)."
        )
    return cases


def objects(labels: npt.NDArray[np.integer], smallest: int) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
    """Each label value above 0 with its mask, where the mask has at least `smallest` voxels."""
    values, counts = np.unique(labels, return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        if value > 0 and count >= smallest:
            yield int(value), labels == value

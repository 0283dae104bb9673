"""The studies' final labels as training cases: named, on their image's grid, or skipped with a reason."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np

from ..configs.consensus import LAST
from ..errors import UserError
from ..imaging.label_files import NamedLabels, read_labels
from ..imaging.label_map import LabelMap
from ..imaging.volume import MODALITY_NAMES, Volume, load_volume
from ..training.sources import LabelledCase
from .agreement import consensus
from .following import StoredLabel
from .prior import Prior, examples_of
from .record import FINAL, Record, version_of

logger = logging.getLogger(__name__)


class LabelledStudies(Protocol):
    """The part of MONAI Label's datastore that is needed here."""

    def datalist(self) -> list[dict[str, Any]]: ...

    def json(self) -> dict[str, Any]: ...

    def get_image_uri(self, image_id: str) -> str: ...

    def get_image_info(self, image_id: str) -> dict[str, Any]: ...

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]: ...


@dataclass(frozen=True)
class FinalLabel:
    """An image with its final label, as the studies hold them.

    Attributes:
        image: id of the image.
        path: the image's file or folder.
        label: the label's file.
        info: what was submitted along with it.
        modality: of the image, where the studies know it.
    """

    image: str
    path: Path
    label: Path
    info: Mapping[str, Any] = field(default_factory=dict)
    modality: str | None = None

    @property
    def version(self) -> str:
        """Identifies the image and the label's content (`record.version_of`)."""
        return version_of(self.image, self.label)

    @property
    def stored(self) -> StoredLabel:
        """The label without its image."""
        return StoredLabel(self.image, self.label, self.info)


def final_labels(studies: LabelledStudies) -> list[FinalLabel]:
    """Every image with a final label, in order of id; those of a DICOMweb server are fetched."""
    files = {str(pair["image"]): Path(pair["label"]) for pair in studies.datalist()}
    found = []
    for image, entry in sorted(studies.json()["objects"].items()):
        if FINAL not in entry.get("labels", {}):
            continue
        path = studies.get_image_uri(image)
        label = files.get(path)
        if label is None or not label.is_file():
            logger.warning("The final label of %s is missing and was skipped", image)
            continue
        modality = modality_of(studies.get_image_info(image))
        found.append(FinalLabel(image, Path(path), label, studies.get_label_info(image, FINAL), modality))
    return found


def modality_of(info: Mapping[str, Any]) -> str | None:
    """The modality of an image, where the studies know it and it is one of `MODALITY_NAMES`."""
    modality = str(info.get("Modality", "")).lower()
    return modality if modality in MODALITY_NAMES else None


def understood(volume: Volume, label: Path, info: Mapping[str, Any], known: LabelMap) -> dict[str, Any]:
    """How a submitted label was understood, for the answer to its client.

    Args:
        volume: the image.
        label, info: the file, and what was sent along.
        known: the server's labels.

    Returns:
        For each label its voxels on the image's grid and its volume in ml; sentences on what was left out.

    Raises:
        LabelError: it cannot be used.
    """
    named = read_labels(label, volume, info, known)
    voxel = float(np.prod(volume.spacing)) / 1000
    return {
        "labels": {
            name: {"voxels": count, "ml": round(count * voxel, 3)} for name, count in named.voxels.items()
        },
        "notes": named.notes,
    }


def opened(
    label: FinalLabel, known: LabelMap, record: Record | None = None, rule: str = LAST
) -> tuple[Volume, NamedLabels]:
    """An image and its named labels.

    Args:
        label: the final label.
        known: the server's labels.
        record: that holds the versions of several annotators (None: there are none).
        rule: which of them counts, one of `configs.consensus.CONSENSUS`.

    Raises:
        UserError: either file cannot be used, or the annotators agree on nothing.
    """
    volume = load_volume(label.path, label.modality)
    if record is not None and rule != LAST:
        versions = versions_of(record, label.image, volume, known)
        if len(versions) > 1:
            return volume, consensus(versions, rule)
    return volume, read_labels(label.label, volume, label.info, known)


def versions_of(record: Record, image: str, volume: Volume, known: LabelMap) -> dict[str, NamedLabels]:
    """Each annotator's labels of an image, the one submitted last at the end.

    Versions that cannot be used are left out, which the log says.
    """
    found = {}
    for submission in record.versions(image):
        try:
            found[submission.who] = read_labels(record.path_of(submission), volume, submission.meaning, known)
        except UserError as error:
            logger.warning("The label of %s by %s was left out. %s", image, submission.who, error)
    return found


@dataclass(frozen=True)
class Prepared:
    """The data of a training.

    Attributes:
        cases: image id to its cases, several where labels overlap; their files lie in the run's folder.
        versions: of every final label, those that were skipped included.
        skipped: image id to the reason.
        labels: names of all labels in the cases.
    """

    cases: dict[str, list[LabelledCase]]
    versions: list[str]
    skipped: dict[str, str]

    @property
    def labels(self) -> list[str]:
        """Names of all labels in the cases, each once."""
        return list(
            dict.fromkeys(name for cases in self.cases.values() for c in cases for name in c.names.values())
        )

    def of(self, images: Sequence[str]) -> list[LabelledCase]:
        """The cases of some images."""
        return [case for image in images for case in self.cases[image]]


def prepare(
    labels: Sequence[FinalLabel],
    folder: Path,
    known: LabelMap,
    prior: Prior,
    record: Record | None = None,
    rule: str = LAST,
) -> Prepared:
    """Write every usable label on its image's grid; log and skip the others.

    Args:
        labels: the final labels.
        folder: of the run; label maps are written into it.
        known: the server's labels.
        prior: learns each label's position and size; its examples of labels that are no longer final stay.
        record, rule: as for `opened`.
    """
    cases: dict[str, list[LabelledCase]] = {}
    versions: list[str] = []
    skipped: dict[str, str] = {}
    folder.mkdir(parents=True, exist_ok=True)
    for number, label in enumerate(labels):
        version = label.version
        versions.append(version)
        try:
            volume, named = opened(label, known, record, rule)
        except UserError as error:
            skipped[label.image] = str(error)
            logger.warning("The final label of %s was skipped. %s", label.image, error)
            continue
        for note in named.notes:
            logger.warning("The final label of %s: %s", label.image, note)
        prior.examples[version] = examples_of(volume, named)
        cases[label.image] = list(_written(label, volume, named, folder / f"label-{number:04d}"))
    return Prepared(cases, versions, skipped)


def _written(label: FinalLabel, volume: Volume, named: NamedLabels, stem: Path) -> Iterator[LabelledCase]:
    for layer, (values, names) in enumerate(zip(named.layers, named.names, strict=True)):
        path = stem.with_name(f"{stem.name}-{layer}.nii.gz")
        image = nib.Nifti1Image(volume.to_raw_array(values).astype(np.uint16), volume.affine)
        nib.save(image, path)
        name = label.image if layer == 0 else f"{label.image}#{layer + 1}"
        yield LabelledCase(name, label.path, path, names, label.modality, "studies")

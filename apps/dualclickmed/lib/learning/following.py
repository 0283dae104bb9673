"""Final labels are those that the datastore holds; the record follows it and adds who submitted them.

A label may be submitted, removed, restored from a backup or put into the folder by hand, while the server
runs or not. All questions about labelled images, waiting labels and training data are answered from the
datastore; what the record does not know yet is added to it.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..errors import UserError
from .record import FINAL, UNKNOWN, Record, Submission, version_of

logger = logging.getLogger(__name__)

BY_HAND = "by hand"
"""Stands for the submitter of a file that was put into the folder by hand."""
SAME_SECONDS = 5.0
"""A file that is this much older or newer than what was noted at its submission is another file."""
STORE = "datastore_v2.json"
_REMOVED = "it is no longer among the studies' final labels"


@dataclass(frozen=True)
class StoredLabel:
    """A final label as the datastore holds it.

    Attributes:
        image: id of the image.
        label: the label's file; None where it would have to be fetched from an archive first.
        info: what the datastore keeps about it.
    """

    image: str
    label: Path | None
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> str | None:
        """Identifies image and content (`record.version_of`); None where the file is not here."""
        if self.label is None:
            return None
        try:
            state = self.label.stat()
        except OSError:
            return None
        return _version(self.image, self.label, state.st_mtime_ns, state.st_size, state.st_ino)


@functools.lru_cache(maxsize=1 << 16)
def _version(image: str, label: Path, *_state: int) -> str:
    """`version_of`, once for each state of a file."""
    return version_of(image, label)


class Labelled(Protocol):
    """The part of MONAI Label's datastore that is needed here."""

    def get_labeled_images(self) -> list[str]: ...

    def get_label_uri(self, label_id: str, label_tag: str) -> str: ...

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]: ...


def stored_labels(studies: Labelled, fetch: bool = True) -> list[StoredLabel]:
    """Every final label of a datastore, in order of the images' ids.

    Args:
        studies: the datastore.
        fetch: whether the files are here, or may be fetched from an archive.
    """
    images = sorted(set(studies.get_labeled_images()))
    if not fetch:
        return [StoredLabel(image, None) for image in images]
    found = []
    for image in images:
        path = Path(studies.get_label_uri(image, FINAL))
        if path.is_file():
            found.append(StoredLabel(image, path, studies.get_label_info(image, FINAL)))
    return found


def stored_labels_in(folder: Path) -> list[StoredLabel]:
    """Every final label of a studies folder, as a server on it has noted them."""
    try:
        objects = json.loads((folder / STORE).read_text(encoding="utf-8"))["objects"]
        labels = {
            image: entry["labels"][FINAL] for image, entry in objects.items() if FINAL in entry["labels"]
        }
    except (OSError, ValueError, KeyError, TypeError):
        return []
    found = []
    for image, label in sorted(labels.items()):
        path = folder / "labels" / FINAL / f"{image}{label.get('ext', '')}"
        if path.is_file():
            found.append(StoredLabel(image, path, label.get("info") or {}))
    return found


def image_in(folder: Path, image: str) -> Path:
    """The file of an image of a studies folder.

    Raises:
        UserError: the folder's record does not know it.
    """
    try:
        entry = json.loads((folder / STORE).read_text(encoding="utf-8"))["objects"][image]
        return folder / f"{image}{entry['image'].get('ext', '')}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"The studies in '{folder}' have no image {image!r}.") from error


def follow(record: Record, labels: Sequence[StoredLabel], archive: bool = False) -> dict[str, Submission]:
    """Bring a record up to date with a datastore, and return the submissions that are final now.

    Args:
        record: to bring up to date.
        labels: what the datastore holds.
        archive: whether the labels come from a DICOMweb archive. Its list may lag behind, so that no label
            is noted as removed; it rewrites every label, so that changed content does not mean another
            annotator.

    Returns:
        Image to the submission that is final.
    """
    known = record.final()
    found: dict[str, Submission] = {}
    for label in labels:
        noted = known.get(label.image)
        version = label.version
        if noted is not None and version in (None, noted.version):
            found[label.image] = noted
        elif version is not None:
            assert label.label is not None
            found[label.image] = _noted(record, label, version, noted.who if archive and noted else None)
        else:
            found[label.image] = Submission("", label.image, UNKNOWN, "", "")
    if not archive:
        for image in known.keys() - found.keys():
            try:
                record.removed(image, _REMOVED)
            except OSError as error:
                logger.warning("That the final label of %s is gone could not be noted: %s", image, error)
    return found


def _noted(record: Record, label: StoredLabel, version: str, who: str | None) -> Submission:
    """The submission of a label that the record does not know as final, noted if the disk allows it."""
    assert label.label is not None
    earlier = {s.version: s for s in record.submissions() if s.image == label.image}.get(version)
    info = dict(label.info)
    if earlier is not None:
        # A kept version was restored: it belongs to its annotator.
        info |= {**earlier.meaning, "client_id": earlier.who}
    elif who is not None:
        info["client_id"] = who
    elif not _of_this_file(label):
        info["client_id"] = BY_HAND
    try:
        return record.submit(label.image, label.label, info)[0]
    except OSError as error:
        logger.warning("The final label of %s could not be noted: %s", label.image, error)
        return Submission(version, label.image, str(info.get("client_id", UNKNOWN)), "", "")


def _of_this_file(label: StoredLabel) -> bool:
    """Whether the information noted about a label belongs to its present file."""
    assert label.label is not None
    noted = label.info.get("ts")
    if not isinstance(noted, (int, float)) or not (label.info.get("client_id") or label.info.get("user")):
        return False
    return abs(label.label.stat().st_mtime - noted) <= SAME_SECONDS

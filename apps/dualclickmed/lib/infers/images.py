"""Which image a request names; no request can make the server read any other file."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import requests
from monailabel.datastore.dicom import DICOMWebDatastore

from ..configs import wire
from ..errors import UserError
from ..imaging.mask_files import EXTENSIONS
from ..imaging.volume import MODALITY_NAMES
from .archived import Segmentations
from .dialects import word
from .layers import EXISTING

_UPLOAD = re.compile(r"tmp[a-z0-9_]{8}(\.[\w.-]{1,64})?")
"""MONAI Label's name of an uploaded image in the folder for temporary files; the middle cannot be guessed."""
_MAX_ID = 255

_segmentations = Segmentations()


class ArchivedStudies(Protocol):
    """The part of MONAI Label's datastore that is needed here."""

    def get_image_uri(self, image_id: str) -> str: ...

    def get_image_info(self, image_id: str) -> dict[str, Any]: ...

    def get_labels_by_image_id(self, image_id: str) -> dict[str, str]: ...

    def get_label_uri(self, label_id: str, label_tag: str) -> str: ...

    def get_label_info(self, label_id: str, label_tag: str) -> dict[str, Any]: ...


def located(image: object, studies: ArchivedStudies, sessions: Path | None) -> tuple[str, str | None]:
    """The path of a request's image, and its modality if the studies know it.

    Args:
        image: an id of the studies, or the path that MONAI Label put in for an upload or a session.
        studies: the server's datastore.
        sessions: the folder that holds the images of sessions.

    Raises:
        UserError: it is none of these, or the archive that holds it does not answer.
    """
    if not isinstance(image, str) or not image:
        raise UserError(
            "A request needs an image: an id of the server's studies, a session that has not expired, "
            "or an uploaded file."
        )
    if _is_upload(image) or _is_session(image, sessions):
        return image, None
    if "/" in image or "\\" in image or image in (".", ".."):
        raise UserError(f"An image's id holds no folders, but {image[:100]!r} does.")
    if len(image) > _MAX_ID or not image.isprintable():
        raise UserError(
            f"An image's id is at most {_MAX_ID} printable characters, but {image[:100]!r} is not."
        )
    try:
        path = studies.get_image_uri(image)
    except requests.RequestException as error:
        raise UserError(f"The archive did not give the image {image[:100]!r}: {error}.") from error
    if not path:
        raise UserError(f"There is no image {image[:100]!r} in the server's studies.")
    modality = str(studies.get_image_info(image).get("Modality", "")).lower()
    return path, modality if modality in MODALITY_NAMES else None


def with_image(request: Mapping[str, Any], studies: ArchivedStudies, sessions: Path | None) -> dict[str, Any]:
    """The request with the checked path of its image, the modality and the existing segmentation.

    Raises:
        UserError: as `located` does.
    """
    image = request.get(wire.IMAGE)
    path, modality = located(image, studies, sessions)
    # MONAI Label takes an id for a path where a file of that name happens to lie in its working folder.
    known = path if Path(str(image)).exists() else image
    # A client that uploads an image and names no format, as MITK does, expects the image's own.
    kind = _kind(image) if _is_upload(image) else None
    return {
        wire.MODALITY: modality,
        wire.RESULT_EXTENSION: kind,
        **request,
        wire.IMAGE: known,
        wire.IMAGE_NOTES: _notes(image, known, studies),
        **_existing(request, studies),
    }


def _notes(image: object, known: object, studies: ArchivedStudies) -> list[str]:
    """What was noted about an image of an archive when it came here; other files are read each time."""
    if known is not image or not isinstance(image, str) or not isinstance(studies, DICOMWebDatastore):
        return []
    noted = studies.get_image_info(image).get("notes")
    return [str(note) for note in noted] if isinstance(noted, list) else []


def _kind(path: str) -> str | None:
    """The ending of an image's file, if results can be written so."""
    return max((ending for ending in EXTENSIONS if path.lower().endswith(ending)), key=len, default=None)


def _existing(request: Mapping[str, Any], studies: ArchivedStudies) -> dict[str, Any]:
    """Where the existing segmentation of a request's image is: uploaded with it, else the last one stored.

    What the client may have sent under these names itself is overwritten.
    """
    nothing: dict[str, Any] = {wire.EXISTING_PATH: None, wire.EXISTING_INFO: {}, wire.UPLOADED: False}
    uploaded = request.get(wire.LABEL_FILE)
    if _is_upload(uploaded):
        return {**nothing, wire.EXISTING_PATH: uploaded, wire.UPLOADED: True}
    image = request.get(wire.IMAGE)
    if word(request, wire.EXISTING, None) in (None, EXISTING[0]) or not isinstance(image, str):
        return nothing
    if isinstance(studies, DICOMWebDatastore):
        # Another server may have stored it.
        newest = _segmentations.newest(studies, image)
        return {**nothing, wire.EXISTING_PATH: None if newest is None else str(newest)}
    stored = {tag: studies.get_label_info(image, tag) for tag in studies.get_labels_by_image_id(image)}
    # Of equally old ones the final one counts: "final" comes before "original".
    for tag in sorted(stored, key=lambda tag: (-_stored_at(stored[tag]), tag)):
        path = studies.get_label_uri(image, tag)
        if path and Path(path).is_file():
            return {**nothing, wire.EXISTING_PATH: path, wire.EXISTING_INFO: stored[tag]}
    return nothing


def _stored_at(info: Mapping[str, Any]) -> float:
    at = info.get("ts")
    return float(at) if isinstance(at, (int, float)) else 0.0


def remove_uploads(request: Mapping[str, Any]) -> None:
    """Remove what was uploaded with a request; MONAI Label does so for those that it has answered alone."""
    for uploaded in (request.get(wire.IMAGE), request.get(wire.LABEL_FILE)):
        if _is_upload(uploaded):
            Path(uploaded).unlink(missing_ok=True)


def _is_upload(image: object) -> TypeGuard[str]:
    if not isinstance(image, str):
        return False
    path = Path(image)
    return path.parent == Path(tempfile.gettempdir()) and _UPLOAD.fullmatch(path.name) is not None


def _is_session(image: str, sessions: Path | None) -> bool:
    if sessions is None or not Path(image).is_absolute():
        return False
    try:
        return Path(image).resolve().is_relative_to(sessions.resolve())
    except (OSError, ValueError):
        return False

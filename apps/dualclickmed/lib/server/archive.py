"""Studies in an archive with DICOMweb, downloaded whole or not at all.

MONAI Label's `DICOMWebDatastore` takes any folder with a file in it for a whole series: a crash or a second
request in the middle of a download leaves it with half an image for good. It remembers for two hours which
series and segmentations there are, and waits for an archive without end.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from dicomweb_client import DICOMwebClient
from dicomweb_client.ext.gcp.session_utils import create_session_from_gcp_credentials
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMwebClientX, DICOMWebDatastore
from monailabel.datastore.utils.dicom import dicom_web_download_series
from monailabel.interfaces.datastore import DefaultLabelTag
from pydicom.dataset import Dataset

from ..errors import UserError
from ..imaging.series_nifti import segments_to_nifti, series_to_nifti
from . import checks
from .leftovers import clear_half_written
from .studies import Studies

logger = logging.getLogger(__name__)

LIST_SECONDS = 10.0
"""Seconds for which a list of the archive's series is used again."""
SEGMENTATIONS = "segmentations"
"""Folder of the segmentations that `infers.archived` fetched, beside the series in the cache."""
LOADING_LOCKS = 64
CONNECT_SECONDS = 5.0
READ_SECONDS = 60.0
"""Silence of an archive after which a request to it fails."""


class DicomStudies(DICOMWebDatastore, Studies):
    """MONAI Label's DICOMweb datastore on a cache folder that is kept as `Studies` keeps one. Thread-safe."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # A series has always the same one; two series that share one merely wait for each other.
        self._loading = [threading.Lock() for _ in range(LOADING_LOCKS)]
        self._images = Fresh(self._search_images)
        self._segmented = Fresh(self._search_segmented)
        super().__init__(*args, **kwargs)

    def get_image_uri(self, image_id: str) -> str:
        """The image's file, downloaded and converted first if it is not here yet.

        Notes about the series are part of the image's information (`get_image_info`), under "notes".

        Raises:
            UserError: the id is no plain name, the archive has no such series, or it is no regular image.
            requests.RequestException: the archive does not answer.
        """
        checks.plain_id(image_id)
        folder = Path(self._datastore.image_path()) / image_id
        image = folder.with_name(f"{image_id}.nii.gz")
        with self._series(image_id):
            if not (folder.is_dir() and any(folder.iterdir())):
                self._download(image_id, folder)
            if not self._convert_to_nifti:
                return str(folder.resolve())
            if not image.exists() or image_id not in self._datastore.objects:
                with _temporary() as converted:
                    notes = series_to_nifti(folder, converted)
                    info = {**self._dicom_info(image_id), "notes": notes}
                    Studies.add_image(self, image_id, str(converted), info)
        return str(image.resolve())

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        """The file of a label: as it was submitted here, else the archive's segmentation, downloaded.

        Args:
            label_id: the image's id, or the series of a segmentation.
            label_tag: of the label; the archive has final ones alone.
            image_id: the image that the segmentation belongs to: it is kept as the image's label.

        Raises:
            UserError: an id is no plain name, the archive has no such series, or it cannot be read.
            requests.RequestException: the archive does not answer.
        """
        checks.plain_id(label_id, "label")
        checks.plain_tag(label_tag)
        stored = Studies.get_label_uri(self, image_id or label_id, label_tag)
        if label_tag != DefaultLabelTag.FINAL or (stored and Path(stored).is_file()):
            return stored
        folder = Path(self._datastore.label_path(label_tag)) / label_id
        with self._series(label_id):
            if not (folder.is_dir() and any(folder.iterdir())):
                self._download(label_id, folder)
            if not image_id or not self._convert_to_nifti:
                return str(next(folder.iterdir()).resolve())
            with _temporary() as converted:
                info = {**self._dicom_info(label_id), "label_names": segments_to_nifti(folder, converted)}
                Studies.save_label(self, image_id, str(converted), label_tag, info)
        return Studies.get_label_uri(self, image_id, label_tag)

    def save_label(
        self,
        image_id: str,
        label_filename: str,
        label_tag: str,
        label_info: dict[str, Any],
        label_id: str = "",
    ) -> str:
        checks.plain_id(image_id)
        checks.plain_tag(label_tag)
        saved = DICOMWebDatastore.save_label(self, image_id, label_filename, label_tag, label_info, label_id)
        self._segmented.forget()
        return str(saved)

    def list_images(self) -> list[str]:
        """Series of the archive, at most `LIST_SECONDS` old; older ones if it does not answer."""
        return self._images.get()

    def get_labeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Series that a segmentation refers to, likewise."""
        return self._segmented.get()

    def _download_labeled_data(self) -> None:
        """Fetch every segmentation with its image; those that cannot be read are passed over.

        Called before a training. Labels whose segmentation is gone from the archive go here, too.
        """
        known, labels = set(self.list_images()), []
        for series in self._client.search_for_series(search_filters={"Modality": "SEG"}):
            found = Dataset.from_json(series)
            label = str(found["SeriesInstanceUID"].value)
            (first, *_) = self._client.retrieve_series_metadata(str(found["StudyInstanceUID"].value), label)
            referred = Dataset.from_json(first).get("ReferencedSeriesSequence")
            image = str(referred[0].SeriesInstanceUID) if referred else ""
            if image in known:
                labels.append((image, label))
            else:
                logger.warning("The segmentation %s belongs to none of the images", label)
        for image in set(Studies.get_labeled_images(self)) - {image for image, _ in labels}:
            path = Path(Studies.get_label_uri(self, image, DefaultLabelTag.FINAL) or os.devnull)
            if path.is_file():
                logger.info("The label of %s is gone from the archive", image)
                path.unlink()
        for image, label in labels:
            try:
                self.get_image_uri(image)
                self.get_label_uri(label, DefaultLabelTag.FINAL, image)
            except UserError as error:
                logger.warning("The segmentation %s was passed over: %s", label, error)

    def _search_images(self) -> list[str]:
        found = self._client.search_for_series(search_filters=self._search_filter)
        return [str(Dataset.from_json(series)["SeriesInstanceUID"].value) for series in found]

    def _search_segmented(self) -> list[str]:
        # MONAI Label's own search, without its memory of two hours.
        return list(DICOMWebDatastore.get_labeled_images.__wrapped__(self))

    def _download(self, image_id: str, folder: Path) -> None:
        part = folder.with_name(f".{uuid.uuid4().hex}.part")
        try:
            dicom_web_download_series(None, image_id, str(part), self._client, self._fetch_by_frame)
            if folder.is_dir():
                folder.rmdir()
            part.rename(folder)
        except IndexError as error:
            raise UserError(f"There is no series {image_id[:100]!r} in the archive.") from error
        except OSError:
            # Another process, on the same cache, may have been faster.
            if not (folder.is_dir() and any(folder.iterdir())):
                raise
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _series(self, image_id: str) -> threading.Lock:
        return self._loading[hash(image_id) % LOADING_LOCKS]

    def _clear_up(self) -> None:
        for part in self._pending.parent.glob(".*.part"):
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
        super()._clear_up()
        clear_half_written(self._pending.parent / SEGMENTATIONS)


@contextmanager
def _temporary() -> Iterator[Path]:
    handle, name = tempfile.mkstemp(prefix="dualclickmed-", suffix=".nii.gz")
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


class Fresh:
    """A list that is fetched again after `LIST_SECONDS` by one thread; others use the old one meanwhile.

    Args:
        ask: fetches the list; if it raises requests.RequestException, it is called again later.
    """

    def __init__(self, ask: Callable[[], list[str]]) -> None:
        self._ask = ask
        self._asking = threading.Lock()
        self._known: list[str] | None = None
        self._until = 0.0

    def get(self) -> list[str]:
        """The list, new or the last one known.

        Raises:
            requests.RequestException: there was none yet, and the archive does not answer.
        """
        if self._known is not None and time.monotonic() < self._until:
            return list(self._known)
        if self._known is not None and self._asking.locked():
            return list(self._known)
        with self._asking:
            if self._known is not None and time.monotonic() < self._until:
                return list(self._known)
            try:
                self._known = self._ask()
            except requests.RequestException as error:
                if self._known is None:
                    raise
                logger.warning("The archive does not answer, its list may be old: %s", error)
            self._until = time.monotonic() + LIST_SECONDS
            return list(self._known)

    def forget(self) -> None:
        """Fetch the list at the next call."""
        self._until = 0.0


class _TimeoutSession(requests.Session):
    """A session with time-outs: an archive that hangs must not hold a worker for ever."""

    def request(self, *args: Any, **kwargs: Any) -> requests.Response:
        kwargs.setdefault("timeout", (CONNECT_SECONDS, READ_SECONDS))
        return super().request(*args, **kwargs)


def connect(address: str) -> DicomStudies:
    """The archive at a DICOMweb address, as MONAI Label's settings describe it.

    Raises:
        requests.RequestException: it does not answer.
    """
    if "googleapis.com" in address:
        client = DICOMwebClient(url=address, session=create_session_from_gcp_credentials())
    else:
        session = _TimeoutSession()
        if settings.MONAI_LABEL_DICOMWEB_USERNAME and settings.MONAI_LABEL_DICOMWEB_PASSWORD:
            session.auth = (settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD)
        client = DICOMwebClientX(
            url=address,
            session=session,
            qido_url_prefix=settings.MONAI_LABEL_QIDO_PREFIX,
            wado_url_prefix=settings.MONAI_LABEL_WADO_PREFIX,
            stow_url_prefix=settings.MONAI_LABEL_STOW_PREFIX,
        )
    return DicomStudies(
        client=client,
        search_filter=settings.MONAI_LABEL_DICOMWEB_SEARCH_FILTER,
        cache_path=(settings.MONAI_LABEL_DICOMWEB_CACHE_PATH or "").strip() or None,
        fetch_by_frame=settings.MONAI_LABEL_DICOMWEB_FETCH_BY_FRAME,
        convert_to_nifti=settings.MONAI_LABEL_DICOMWEB_CONVERT_TO_NIFTI,
    )

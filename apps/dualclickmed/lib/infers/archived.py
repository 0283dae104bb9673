"""The newest segmentation of a series in an archive, whichever program stored it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from monailabel.datastore.dicom import DICOMWebDatastore
from pydicom.dataset import Dataset

from ..atomic_files import replacing
from ..errors import UserError
from ..server.archive import SEGMENTATIONS


@dataclass(frozen=True)
class _Stored:
    """A segmentation of the archive: the series it refers to, and when it was made."""

    series: frozenset[str]
    made: tuple[str, str]


class Segmentations:
    """Finds segmentations in an archive and remembers which series each one refers to. Thread-safe."""

    def __init__(self) -> None:
        self._known: dict[str, _Stored] = {}
        self._loading = threading.Lock()

    def newest(self, studies: DICOMWebDatastore, image_id: str) -> Path | None:
        """The file of the newest DICOM SEG of a series; None if there is none.

        Raises:
            UserError: the archive does not answer.
        """
        study = str(studies.get_image_info(image_id).get("StudyInstanceUID", ""))
        if not study:
            return None
        client = studies._client
        try:
            found = client.search_for_series(study_instance_uid=study, search_filters={"Modality": "SEG"})
            uids = [str(Dataset.from_json(series).SeriesInstanceUID) for series in found]
            for uid in uids:
                if uid not in self._known:
                    self._known[uid] = _stored(client.retrieve_series_metadata(study, uid))
            own = [uid for uid in uids if image_id in self._known[uid].series]
            if not own:
                return None
            newest = max(own, key=lambda uid: (self._known[uid].made, uid))
            return self._loaded(client, study, newest, Path(studies._datastore.image_path()) / SEGMENTATIONS)
        except requests.RequestException as error:
            raise UserError(f"The archive did not give the segmentations of this image: {error}.") from error

    def _loaded(self, client: Any, study: str, uid: str, folder: Path) -> Path:
        path = folder / f"{uid}.dcm"
        with self._loading:
            if not path.exists():
                with replacing(path) as part:
                    client.retrieve_series(study, uid)[0].save_as(part, enforce_file_format=True)
        return path


def _stored(metadata: list[dict[str, Any]]) -> _Stored:
    header = Dataset.from_json(metadata[0])
    referred = header.get("ReferencedSeriesSequence") or []
    made = tuple(
        str(header.get(f"Content{part}") or header.get(f"Series{part}") or "") for part in ("Date", "Time")
    )
    return _Stored(frozenset(str(item.SeriesInstanceUID) for item in referred), (made[0], made[1]))

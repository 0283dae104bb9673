"""Stores masks from other viewers as final labels, which trainings use; only where switched on."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np

from ..imaging import mask_files
from ..imaging.label_map import colour_of
from ..imaging.volume import Volume
from .interactions import Mask

logger = logging.getLogger(__name__)

CLIENT = "other viewer"
"""Who submitted such labels, as the queue shows it."""
_MOST_OBJECTS = 255


class Datastore(Protocol):
    """The part of MONAI Label's datastore that is needed here."""

    def get_image_uri(self, image_id: str) -> str: ...

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str: ...

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: Any) -> str: ...


class Keeper:
    """Stores an image and its masks as a final label. Viewers send no names: objects are numbered.

    Args:
        datastore: of the server; a folder of studies.
    """

    def __init__(self, datastore: Datastore) -> None:
        self._datastore = datastore

    def __call__(self, volume: Volume, masks: Sequence[Mask]) -> None:
        """Store them in a thread of its own, without waiting for it."""
        threading.Thread(target=self._try, args=(volume, list(masks)), name="viewer-labels").start()

    def _try(self, volume: Volume, masks: Sequence[Mask]) -> None:
        try:
            self.keep(volume, masks)
        except Exception:
            logger.exception("The masks of a viewer were not kept")

    def keep(self, volume: Volume, masks: Sequence[Mask]) -> str:
        """Store an image, if it is not there yet, and its masks; where they overlap the later one counts.

        Returns:
            The image's id, which is the same for the same image.
        """
        image_id = f"viewer-{volume.key.partition(':')[2].partition(':')[0]}"
        labels = np.zeros(volume.shape, dtype=np.uint8)
        names = [f"object {number}" for number, _ in enumerate(masks[:_MOST_OBJECTS], start=1)]
        for value, mask in enumerate(masks[:_MOST_OBJECTS], start=1):
            labels[mask] = value
        segments = [mask_files.Segment(name, at, colour_of(name)) for at, name in enumerate(names, start=1)]
        found = mask_files.LabelledMask(volume.to_raw_array(labels), volume.affine, segments)
        written = mask_files.write(found, ".seg.nrrd", compress=True)
        try:
            if not self._datastore.get_image_uri(image_id):
                self._add(image_id, volume)
            self._datastore.save_label(image_id, str(written), "final", {"client_id": CLIENT})
        finally:
            written.unlink(missing_ok=True)
        return image_id

    def _add(self, image_id: str, volume: Volume) -> None:
        image = nib.Nifti1Image(volume.to_raw_array(volume.array), volume.affine)
        image.header.set_slope_inter(volume.slope, volume.intercept)
        image.header.set_xyzt_units("mm")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{image_id}.nii.gz"
            nib.save(image, path)
            self._datastore.add_image(image_id, str(path), {"client_id": CLIENT})

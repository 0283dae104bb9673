"""The scoring method behind the strategies `disagreement` and `expected_clicks`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod

from ..configs.options import ServerOptions
from ..imaging.volume import MODALITY_NAMES, Volume, load_volume
from ..learning.prior import Prior
from ..learning.record import Record
from ..learning.scoring import MOST_IMAGES, MOST_SECONDS, gain_of, score_images
from ..predictor import Predictor
from ..weights.files import KINDS, default_path, read_card


class ImageScores(ScoringMethod):
    """Scores unlabelled images (`learning.scoring`) in the process that MONAI Label starts for it.

    Where nothing has been learned yet it ends at once and loads no network.

    Args:
        record: whose folder holds prior and scores.
        options: the server's.
    """

    def __init__(self, record: Record, options: ServerOptions) -> None:
        super().__init__("Score unlabelled images by the experts' disagreement and by expected clicks")
        self.record, self.options = record, options

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """Score at most `most` images (default 50) for at most `seconds` (default 600)."""
        folder = self.record.folder
        prior = Prior.load(folder)
        images = list(datastore.get_unlabeled_images())
        if not prior.labels or not images:
            return {"scored": 0}
        preset, folder_of_weights = self.options.preset, self.options.model_dir
        box, click = (default_path(kind, preset, folder_of_weights) for kind in KINDS)
        device = self.options.device_for(request.get("device"))
        expert = Predictor.from_weights(box, click, device).expert
        made = score_images(
            {image: functools.partial(_load, datastore, image) for image in images},
            folder,
            prior,
            expert,
            gain_of(read_card(box)),
            int(request.get("most", MOST_IMAGES)),
            float(request.get("seconds", MOST_SECONDS)),
        )
        return {"scored": len(made), "images": {image: vars(score) for image, score in made.items()}}


def _load(datastore: Datastore, image: str) -> Volume:
    modality = str(datastore.get_image_info(image).get("Modality", "")).lower()
    return load_volume(Path(datastore.get_image_uri(image)), modality if modality in MODALITY_NAMES else None)

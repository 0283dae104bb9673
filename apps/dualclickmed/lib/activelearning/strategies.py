"""Strategies for MONAI Label's "next sample": in order, at random, or by score."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from ..learning.record import Record
from ..learning.scoring import load_scores

logger = logging.getLogger(__name__)

HANDED_OUT_SECONDS = 3600
"""Seconds during which an image that was handed out is ranked after all others."""


class NextImage(Strategy):
    """Images without a final label; those handed out in the last hour come last.

    Args:
        record: whose folder holds the scores.
        description: shown to clients.
    """

    def __init__(self, record: Record, description: str) -> None:
        super().__init__(description)
        self.record = record

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """The id of the image to annotate next, with why; None if every image is labelled."""
        images = sorted(datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels")))
        if not images:
            return None
        now = time.time()
        fresh = [image for image in images if not self._handed_out(image, datastore, now)]
        found = self.choose(fresh or images)
        logger.info("Next image: %s", found)
        return found

    def choose(self, images: list[str]) -> dict[str, Any]:
        """One of the images, which are in order of id, under the key ``id``."""
        raise NotImplementedError

    @staticmethod
    def _handed_out(image: str, datastore: Datastore, now: float) -> bool:
        given = datastore.get_image_info(image).get("strategy", {})
        times = [entry.get("ts", 0) for entry in given.values() if isinstance(entry, Mapping)]
        return any(now - at < HANDED_OUT_SECONDS for at in times if isinstance(at, (int, float)))


class First(NextImage):
    """In order of id, but first those whose label was deleted, which are to be done again."""

    def __init__(self, record: Record) -> None:
        super().__init__(record, "The first image without a final label, one whose label was deleted first")

    def choose(self, images: list[str]) -> dict[str, Any]:
        once = {submission.image for submission in self.record.submissions()}
        return {"id": min(images, key=lambda image: (image not in once, image))}


class Random(NextImage):
    """At random."""

    def __init__(self, record: Record) -> None:
        super().__init__(record, "A random image without a final label")

    def choose(self, images: list[str]) -> dict[str, Any]:
        return {"id": random.choice(images)}


class ByScore(NextImage):
    """The image with the highest score; images without one come after those that have one.

    Scores are computed by ``POST /scoring/dualclickmed``; this class only reads them.

    Args:
        record: whose folder holds the scores.
        score: name of the score, an attribute of `learning.scoring.Score`.
        description: shown to clients.
    """

    def __init__(self, record: Record, score: str, description: str) -> None:
        super().__init__(record, description)
        self.score = score

    def choose(self, images: list[str]) -> dict[str, Any]:
        scores = {
            image: getattr(score, self.score) for image, score in load_scores(self.record.folder).items()
        }
        scored = [image for image in images if image in scores]
        if not scored:
            logger.info("No image has a score yet: POST /scoring/dualclickmed makes them")
            return {"id": images[0], self.score: None}
        best = max(scored, key=lambda image: scores[image])
        return {"id": best, self.score: scores[best]}


def strategies(record: Record) -> dict[str, Strategy]:
    """All strategies by name, as /info lists them."""
    return {
        "first": First(record),
        "random": Random(record),
        "disagreement": ByScore(
            record, "disagreement", "The image on which the global and the local expert disagree most"
        ),
        "expected_clicks": ByScore(
            record, "expected_clicks", "The image that is expected to need the most corrective clicks"
        ),
    }

"""The simulated annotator of a learning curve: which images come next, and when weights are retrained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..byte_cache import ByteCache
from ..errors import UserError
from ..experts.loading import load_experts
from ..training.sources import LabelledCase, load_case
from ..weights.files import default_path
from .prior import Prior
from .scoring import score_image
from .settings import ORDERS

CACHE_BYTES = 256 << 20


@dataclass(frozen=True)
class Annotator:
    """How a pool of cases is labelled.

    Attributes:
        at: numbers of labelled images after each of which weights are retrained, rising.
        order: one of `ORDERS`. Scores are made before the images of each retraining are labelled, from what
            was learned until then; without scores all strategies but `first` draw at random.
        seed: of the random order.
    """

    at: tuple[int, ...]
    order: str = ORDERS[0]
    seed: int = 0

    def checked(self, cases: int) -> Annotator:
        """Itself.

        Raises:
            UserError: the numbers do not rise, exceed the cases, or the order is unknown.
        """
        if not self.at or list(self.at) != sorted(set(self.at)) or self.at[0] < 1 or self.at[-1] > cases:
            raise UserError(
                f"Weights are retrained at rising numbers of labelled images from 1 to {cases}, the cases "
                f"that there are to label; but {', '.join(map(str, self.at)) or 'none'} came."
            )
        if self.order not in ORDERS:
            raise UserError(f"Images are labelled by one of {', '.join(ORDERS)}, but '{self.order}' came.")
        return self

    def arranged(self, pool: Sequence[LabelledCase]) -> list[LabelledCase]:
        """The pool in the order in which it is labelled where no image has a score."""
        if self.order == ORDERS[0]:
            return list(pool)
        return [pool[int(i)] for i in np.random.default_rng(self.seed).permutation(len(pool))]

    def chosen(
        self, left: Sequence[LabelledCase], count: int, prior: Prior, models: Path
    ) -> list[LabelledCase]:
        """The cases that are labelled next.

        Args:
            left: those without a label, arranged.
            count: how many.
            prior: learned positions and sizes of labels.
            models: folder of the weights that are served.
        """
        if self.order not in ORDERS[2:] or not prior.examples:
            return list(left[:count])
        paths = [default_path(kind, directory=models) for kind in ("global", "local")]
        expert = load_experts(paths[0], paths[1], "cpu", ByteCache(CACHE_BYTES))
        scores = [score_image(load_case(case)[0], prior, expert) for case in left]
        worth = [-1.0 if score is None else float(getattr(score, self.order)) for score in scores]
        return [left[i] for i in sorted(range(len(left)), key=lambda i: (-worth[i], i))[:count]]

"""Where a prediction is wrong, and the next clicks there."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from torch import Tensor

from ..errors import UserError
from ..simulation.clicks import STRATEGIES, Draws
from ..training.augment import plain
from ..training.pipeline import COUNT, DRAWS

DISCREPANCY = "discrepancy"


def one_channel(values: Any, key: Hashable) -> Tensor:
    """(1, D, H, W) -> (D, H, W).

    Raises:
        UserError: the array has another shape.
    """
    tensor = plain(values)
    if tensor.ndim != 4 or tensor.shape[0] != 1:
        raise UserError(
            f"'{key}' must be one channel of a volume, (1, D, H, W), but it is {tuple(tensor.shape)}."
        )
    return tensor[0]


class FindDiscrepancyd(MapTransform):
    """The false prediction map of a label: 1 where the prediction is wrong (paper, section 2.3).

    Args:
        keys: labels (1, D, H, W), foreground above 0.
        pred: key of the logits (1, D, H, W), foreground above 0.
        discrepancy: key of the map, as DeepEdit's transform calls it; the i-th label's after the first is
            this name with "_i".
    """

    def __init__(
        self,
        keys: KeysCollection = "label",
        pred: str = "pred",
        discrepancy: str = DISCREPANCY,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.pred, self.discrepancy = pred, discrepancy

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        done = dict(data)
        for number, key in enumerate(self.key_iterator(done)):
            truth = one_channel(done[key], key) > 0
            wrong = (one_channel(done[self.pred], self.pred) > 0) != truth
            done[self.discrepancy if number == 0 else f"{self.discrepancy}_{number}"] = wrong[None].float()
        return done


class AddClicksd(Randomizable, MapTransform):
    """Add simulated clicks where a prediction is wrong to those that are there already.

    Args:
        keys: the label (1, D, H, W), foreground above 0.
        pred: key of the logits (1, D, H, W); missing means that nothing is predicted yet.
        strategy: "boundary" or "balanced" (paper, section 2.3), "uniform" or "realistic".
        count: clicks to add.
        points, point_labels: keys of int64 (N, 3) voxels and (N,) labels, 1 foreground and 0 background. A
            prediction without errors adds none.
        valid: key of the voxels that can be clicked (None: all).

    Where the dictionary has a map of errors under `discrepancy`, as `FindDiscrepancyd` makes it, errors that
    it leaves out get no click. In a training `draws` and `count` of the dictionary go before this
    transform's own random state and number.

    Raises:
        UserError: the strategy is unknown.
    """

    def __init__(
        self,
        keys: KeysCollection = "label",
        pred: str = "pred",
        strategy: str = "boundary",
        count: int = 1,
        points: str = "points",
        point_labels: str = "point_labels",
        valid: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        if strategy not in STRATEGIES:
            raise UserError(f"Clicks are drawn by one of {', '.join(STRATEGIES)}, but '{strategy}' came.")
        self.pred, self.strategy, self.count = pred, strategy, count
        self.points, self.point_labels, self.valid = points, point_labels, valid
        self._seed = 0

    def randomize(self, data: Any = None) -> None:
        self._seed = int(self.R.randint(np.iinfo(np.int32).max))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        done = dict(data)
        for key in self.key_iterator(done):
            truth = one_channel(done[key], key) > 0
            logits = torch.full(truth.shape, -1.0)
            if self.pred in done:
                logits = one_channel(done[self.pred], self.pred).float()
            valid = torch.ones_like(truth)
            if self.valid is not None:
                valid = one_channel(done[self.valid], self.valid) > 0
            logits = logits.to(truth.device)
            if DISCREPANCY in done:
                found = one_channel(done[DISCREPANCY], DISCREPANCY) > 0
                passed_over = ((logits > 0) != truth) & ~found
                if bool(passed_over.any()):
                    logits = torch.where(passed_over, torch.where(truth, 1.0, -1.0), logits)
            clicks = STRATEGIES[self.strategy](
                logits[None], truth[None], valid[None], done.get(COUNT, self.count), self._draws(done, truth)
            )
            given = clicks.labels[0] >= 0
            new = clicks.points[0][given], clicks.labels[0][given]
            for name, values in zip((self.points, self.point_labels), new, strict=True):
                before = plain(done[name]) if name in done else values[:0]
                done[name] = torch.cat([before.to(values), values])
        return done

    def _draws(self, data: Mapping[Hashable, Any], like: Tensor) -> Draws:
        """The batch's random numbers in a training, else those of this transform's random state."""
        if DRAWS in data:
            return data[DRAWS]
        self.randomize()
        return Draws(torch.Generator(device=like.device).manual_seed(self._seed))

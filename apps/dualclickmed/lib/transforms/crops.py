"""The experts' regions of a volume: the global one about a box, the local window about a click."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from monai.utils import ensure_tuple_rep

from ..errors import UserError
from ..imaging.geometry import (
    GLOBAL_GRID,
    GLOBAL_SCALE,
    LOCAL_WINDOW,
    Box,
    Index,
    Roi,
    crop_to_grid,
    global_roi,
    window_at,
)
from ..training.augment import plain
from ..training.first_prompts import interior_voxel, simulated_box
from .clicks import one_channel


class _Drawing(Randomizable):
    """A transform that draws from a generator of NumPy's, which MONAI's random state seeds."""

    _rng: np.random.Generator

    def randomize(self, data: Any = None) -> None:
        self._rng = np.random.default_rng(self.R.randint(np.iinfo(np.int32).max))


class SimulateBoxd(_Drawing, MapTransform):
    """The box that a user would draw about a label: exact, of the middle slice, or a little off.

    Args:
        keys: the label (1, D, H, W), foreground above 0.
        box: key of the `Box`.
        exact: always enclose the label exactly.
    """

    def __init__(
        self,
        keys: KeysCollection = "label",
        box: str = "box",
        exact: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.box, self.exact = box, exact
        self._rng = np.random.default_rng(0)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        done = dict(data)
        for key in self.key_iterator(done):
            self.randomize()
            mask = (one_channel(done[key], key) > 0).numpy(force=True)
            if not mask.any():
                raise UserError(f"'{key}' has no foreground to draw a box about.")
            done[self.box] = Box.of_mask(mask) if self.exact else simulated_box(mask, self._rng)
        return done


class _Cropd(MapTransform):
    """Arrays cut to one region; labels are those cells that are more than half filled.

    Args:
        keys: arrays (1, D, H, W).
        labels: for each key, whether it is a label.
        roi: key that receives the `Roi`, with which `geometry.paste_from_grid` leads back.
        points: key of clicks (N, 3) that are to be counted in the region's grid from now on, if any.
    """

    def __init__(
        self,
        keys: KeysCollection,
        labels: bool | tuple[bool, ...],
        roi: str,
        points: str | None,
        allow_missing_keys: bool,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.labels = ensure_tuple_rep(labels, len(self.keys))
        self.roi, self.points = roi, points

    def region(self, data: Mapping[Hashable, Any]) -> Roi:
        raise NotImplementedError

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        done = dict(data)
        roi = self.region(done)
        for key, label in self.key_iterator(done, self.labels):
            array = one_channel(done[key], key).numpy(force=True)
            if array.dtype == np.bool_:
                array = array.astype(np.uint8)
            cut = crop_to_grid(array, roi)
            done[key] = ((cut > 0.5) if label else cut)[None]
        if self.points is not None and self.points in done:
            grid = roi.to_grid(plain(done[self.points]).numpy(force=True))
            done[self.points] = torch.from_numpy(grid).float()
        done[self.roi] = roi
        return done


class GlobalRoid(_Cropd):
    """The global expert's region: a box made 1.8 times larger, resampled to 64 voxels a side (section 2.2).

    Args:
        keys, labels, roi, points: arrays to cut, which of them are labels, where the region is put, clicks.
        box: key of a `Box`, as `SimulateBoxd` makes it.
        scale, grid: of the region.
    """

    def __init__(
        self,
        keys: KeysCollection = ("image", "label"),
        labels: bool | tuple[bool, ...] = (False, True),
        box: str = "box",
        roi: str = "roi",
        points: str | None = None,
        scale: float = GLOBAL_SCALE,
        grid: Index = GLOBAL_GRID,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, labels, roi, points, allow_missing_keys)
        self.box, self.scale, self.grid = box, scale, grid

    def region(self, data: Mapping[Hashable, Any]) -> Roi:
        return global_roi(data[self.box], self.scale, self.grid)


class LocalWindowd(_Cropd):
    """The local expert's region: a window about the last click, voxel by voxel (section 2.2).

    Args:
        keys, labels, roi: arrays to cut, which of them are labels, and where the region is put.
        points: key of the clicks (N, 3), the last one in the window's middle.
        size: of the window.
    """

    def __init__(
        self,
        keys: KeysCollection = ("image", "label"),
        labels: bool | tuple[bool, ...] = (False, True),
        points: str = "points",
        roi: str = "roi",
        size: Index = LOCAL_WINDOW,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, labels, roi, points, allow_missing_keys)
        self.size, self.clicks = size, points

    def region(self, data: Mapping[Hashable, Any]) -> Roi:
        clicks = plain(data[self.clicks])
        if len(clicks) == 0:
            raise UserError(f"A local window needs a click, but '{self.clicks}' is empty.")
        z, y, x = (round(float(v)) for v in clicks[-1])
        return window_at((z, y, x), self.size)


class RandObjectCropd(_Drawing, _Cropd):
    """A window about a voxel inside one object of a label map, each object as likely as any other.

    The label becomes that object's mask.

    Args:
        keys, labels, roi: arrays to cut, which of them are labels, and where the region is put.
        label: key of the label map (1, D, H, W) with a value above 0 for each object.
        size: of the window.
    """

    def __init__(
        self,
        keys: KeysCollection = ("image", "label"),
        labels: bool | tuple[bool, ...] = (False, True),
        label: str = "label",
        roi: str = "roi",
        size: Index = LOCAL_WINDOW,
        allow_missing_keys: bool = False,
    ) -> None:
        _Cropd.__init__(self, keys, labels, roi, None, allow_missing_keys)
        self.label, self.size = label, size
        self._rng = np.random.default_rng(0)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        self.randomize()
        values = one_channel(data[self.label], self.label)
        present = torch.unique(values)
        present = present[present > 0]
        if len(present) == 0:
            raise UserError(f"'{self.label}' has no foreground to cut a window about.")
        chosen = present[int(self._rng.integers(len(present)))]
        return super().__call__({**data, self.label: (values == chosen)[None]})

    def region(self, data: Mapping[Hashable, Any]) -> Roi:
        return window_at(interior_voxel(one_channel(data[self.label], self.label), self._rng), self.size)

"""The local expert: full resolution in a window around each click (section 2.2)."""

from __future__ import annotations

import logging
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from ..byte_cache import ByteCache
from ..errors import PromptError
from ..imaging.geometry import (
    Box,
    Index,
    Outside,
    Position,
    Roi,
    local_windows,
    paste_from_grid,
    window_at,
)
from ..imaging.intensity import IntensityMap
from ..imaging.prompts import Click, Prompts
from ..imaging.volume import Volume
from ..networks.local_network import LocalFeatures, LocalNetwork
from ..networks.segresnet import LAYOUT
from .base import NetworkExpert
from .inputs import MAX_CLICKS, local_input, map_at_points, point_prompts, thinned
from .prediction import NOWHERE, Prediction, enclosing_region, filled_region, intersection, within
from .timing import StageTimer

logger = logging.getLogger(__name__)

MAX_WINDOWS = 12
"""Most windows for one object in one request; each is a pass of the encoder when it is new."""
LOGIT_LIMIT = 12.0
"""Logits are cut to this range before windows are averaged, so that no window dominates the mean."""
OUTSIDE_LOGIT = 4.0
"""Logit of a voxel of the previous mask outside every window (probability 0.98)."""
UNEVEN = 1.5
"""Ratio of a voxel's longest to its shortest side from which on windows have cells that are cubes."""
WIDER_BY = 1.13
"""Ratio of edge strengths (`edge_strength`), wider view to narrow view, from which on the wider one is used.
Chosen on volumes that may train networks (docs/experiments.md)."""
_MAX_CENTRES = 256
_EDGE_WIDTH, _MARGIN, _LEAST_SLOPE = 0.7, 4, 1e-4


def click_windows(foreground: Sequence[Index], background: Sequence[Index], size: Index) -> list[Roi]:
    """The windows that one object's clicks open: `geometry.local_windows`, bounded.

    A window without a foreground click inside is left out: it holds no evidence of the object, and whatever
    is wrong there came from elsewhere (a previous mask) and is corrected at the click. When clicks would open
    more than `MAX_WINDOWS`, clicks further apart share a window (up to three eighths of its side); when that
    is not enough either, the windows that add most foreground clicks to those held are kept.

    More than `MAX_CLICKS` clicks are a scribble, which shows where the object is without a window around
    each part of it: its foreground alone opens windows, as few as hold it with a margin.
    """
    if len({*foreground, *background}) > MAX_CLICKS:
        return _scribble_windows(foreground, size)
    centres = thinned([*foreground, *background], _MAX_CENTRES)
    windows: list[Roi] = []
    for eighths in (1, 2, 3):
        merge = max(1, min(size) * eighths // 8)
        windows = _with_any(foreground, local_windows(centres, size, merge))
        if len(windows) <= MAX_WINDOWS:
            return windows
    logger.warning("%d windows are needed for the clicks; %d are computed", len(windows), MAX_WINDOWS)
    held = [{p for p in foreground if w.box.contains(p)} for w in windows]
    kept: list[int] = []
    left = set(foreground)
    for _ in range(MAX_WINDOWS):
        best = max((i for i in range(len(windows)) if i not in kept), key=lambda i: (len(held[i] & left), -i))
        kept.append(best)
        left -= held[best]
    return [windows[i] for i in sorted(kept)]


def windows_in_order(clicks: Sequence[Click], size: Index) -> list[Roi]:
    """The windows of clicks that came one after the other: those of the first ones stay where they are.

    So a further click finds its windows encoded, unless it is less than an eighth of a window's side from the
    edge of each (and then opens one), where it would see too little around it. Scribbles, and clicks that
    would open more than `MAX_WINDOWS`, have those of `click_windows`.
    """
    foreground = [c.index for c in clicks if c.positive]
    background = [c.index for c in clicks if not c.positive]
    if len(clicks) <= MAX_CLICKS:
        merge = max(1, min(size) * 3 // 8)
        windows = _with_any(foreground, local_windows([c.index for c in clicks], size, merge, in_order=True))
        if len(windows) <= MAX_WINDOWS:
            return windows
    return click_windows(foreground, background, size)


def last_window(clicks: Sequence[Click], size: Index) -> list[Roi]:
    """The window centred on the last click, as section 2.2 says.

    One without a foreground click inside would hold no evidence of the object; then it is that of the newest
    click whose window has some.
    """
    foreground = [c.index for c in clicks if c.positive]
    for click in reversed(clicks):
        if windows := _with_any(foreground, [window_at(click.index, size)]):
            return windows
    return []


def _with_any(clicked: Sequence[Index], windows: Sequence[Roi]) -> list[Roi]:
    """The windows that hold one of the clicks."""
    return [window for window in windows if any(window.box.contains(index) for index in clicked)]


def _scribble_windows(foreground: Sequence[Index], size: Index) -> list[Roi]:
    """Few windows that hold every foreground click at least an eighth of their side away from their edge.

    Greedy: each next window is centred on a remaining click, or on the middle of all remaining ones, wherever
    it holds most of them; ties go to the most central place. At most `MAX_WINDOWS`; what is left then is
    corrected at the clicks alone.
    """
    left = np.asarray(sorted(set(foreground)), dtype=np.int64)
    reach = max(1, min(size) * 3 // 8)
    windows: list[Roi] = []
    while len(left) and len(windows) < MAX_WINDOWS:
        centres = thinned([(z, y, x) for z, y, x in left.tolist()], _MAX_CENTRES)
        z, y, x = ((left.min(axis=0) + left.max(axis=0)) // 2).tolist()
        centres.append((z, y, x))
        away = np.zeros((len(centres), len(left)), dtype=np.int64)
        for axis, at in enumerate(np.asarray(centres).T):
            np.maximum(away, np.abs(left[:, axis] - at[:, None]), out=away)
        near = away < reach
        farthest = np.where(near, away, 0).max(axis=1)
        best = int(np.lexsort([farthest, -near.sum(axis=1)])[0])
        windows.append(window_at(centres[best], size))
        left = left[~near[best]]
    if len(left):
        logger.warning("%d clicks of a scribble are outside the %d windows computed", len(left), MAX_WINDOWS)
    return windows


@dataclass(frozen=True)
class View:
    """The grid on which windows sample an image.

    Attributes:
        cell: voxels along (z, y, x) that a cell of a window covers.
        outside: what windows hold beyond the image's faces.
    """

    cell: Position
    outside: Outside

    @property
    def nbytes(self) -> int:
        """Approximate memory in a cache."""
        return 256

    def windows_in_order(self, clicks: Sequence[Click], size: Index) -> list[Roi]:
        """`windows_in_order` on a grid of such cells over the image.

        Args:
            clicks: in voxels of the image.
            size: of a window, in cells.

        Returns:
            Windows in voxels of the image.
        """
        on_grid = [Click(self._cell_of(click.index), click.positive) for click in clicks]
        return [
            Roi(Box(self._voxels(window.box.lo), self._voxels(window.box.hi)), window.grid)
            for window in windows_in_order(on_grid, size)
        ]

    def _cell_of(self, index: Index) -> Index:
        z, y, x = (math.floor((p + 0.5) / side) for p, side in zip(index, self.cell, strict=True))
        return z, y, x

    def _voxels(self, corner: Position) -> Position:
        z, y, x = (p * side for p, side in zip(corner, self.cell, strict=True))
        return z, y, x


AS_STORED = View((1.0, 1.0, 1.0), "zeros")
"""Voxel by voxel, as in the paper, and as the networks are trained."""


def views(spacing: Sequence[float]) -> tuple[View, View]:
    """Two views of an image, the second one twice as wide.

    Cells are cubes where voxels are far from it (`UNEVEN`): the network knows objects about as wide as deep.
    Beyond its faces the image is mirrored. Zeros would be an edge, and an object that a face cuts ends there
    for a network that looks for edges.

    Args:
        spacing: millimetres of a voxel along (z, y, x).
    """
    cell = (1.0, 1.0, 1.0)
    if max(spacing) >= UNEVEN * min(spacing):
        side = math.sqrt(max(spacing) * min(spacing))
        cell = (side / spacing[0], side / spacing[1], side / spacing[2])
    return View(cell, "mirror"), View((2 * cell[0], 2 * cell[1], 2 * cell[2]), "mirror")


def cells_along(box: Box, volume: Volume) -> float:
    """The longest side of a box in cells of the narrow view."""
    narrow, _ = views(volume.spacing)
    return max(side / cell for side, cell in zip(box.sides, narrow.cell, strict=True))


@dataclass(frozen=True, eq=False)
class _Crop:
    """A window of an image, resampled when somebody asks for it and no more than once."""

    volume: Volume
    window: Roi
    intensity_map: IntensityMap
    outside: Outside

    @cached_property
    def image(self) -> Tensor:
        """float32 (1, 1, D, H, W) on the CPU, as the network takes it."""
        return local_input(self.volume, self.window, self.intensity_map, self.outside)


def edge_strength(image: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_]) -> float:
    """How much steeper an image is on the border of a mask than inside and just outside it.

    Args:
        image: (D, H, W).
        mask: of the same shape.

    Returns:
        Mean length of the gradient on the border, divided by that of the mask widened by two cells; 0 for
            an empty mask.
    """
    region = filled_region(mask)
    if region == NOWHERE:
        return 0.0
    z, y, x = (slice(max(0, s.start - _MARGIN), s.stop + _MARGIN) for s in region)
    mask = mask[z, y, x]
    slope = ndimage.gaussian_gradient_magnitude(image[z, y, x], _EDGE_WIDTH)
    widened = ndimage.binary_dilation(mask)
    border = widened & ~ndimage.binary_erosion(mask)
    around = ndimage.binary_dilation(widened)
    return float(slope[border].mean() / max(float(slope[around].mean()), _LEAST_SLOPE))


class LocalExpert(NetworkExpert[LocalNetwork]):
    """Segments one object in windows of full resolution around its clicks.

    Args:
        network, device, cache, precision: as for `NetworkExpert`.
        window: sides of a window in voxels (None: the network's own, `LocalConfig.window`).
    """

    def __init__(
        self,
        network: LocalNetwork,
        device: str | torch.device,
        cache: ByteCache,
        precision: str = "float32",
        window: Index | None = None,
    ) -> None:
        if torch.device(device).type == "cpu":
            # The layout of `networks.segresnet`; in any other each call would reorder the weights of wide
            # layers.
            network.to(memory_format=LAYOUT)  # type: ignore[call-overload]
        super().__init__(network, device, cache, precision)
        self.window = (network.config.window,) * 3 if window is None else window

    def expert_for(self, volume: Volume, prompts: Prompts) -> LocalExpert:
        """The expert that answers these prompts; see `scope` for experts that leave some to their origin."""
        return self

    @torch.inference_mode()
    def predict(
        self,
        volume: Volume,
        prompts: Prompts,
        intensity: str = "auto",
        stages: StageTimer | None = None,
        adaptive: bool = False,
        last: bool = False,
        narrow: bool = False,
    ) -> list[Prediction]:
        """Segment one object.

        Each window (`click_windows`) sees every click inside it. A voxel takes the mean logit of the windows
        that cover it: between windows that disagree the surer one decides, as it would not if signs or masks
        were counted, and one window alone passes through unchanged. Outside every window the previous mask
        holds, if one is given. With a box and no foreground click the box's centre stands for one, as it does
        for the global expert. Windows run one at a time: a batch may change the last bits of its members,
        and which windows are new depends on the cache.

        Memory is needed for one group of overlapping windows at a time, wherever they are in the volume.

        Args:
            volume: the image.
            prompts: checked for this volume.
            intensity: one of `intensity.CHOICES`.
            stages: receives seconds spent in crop, encode, decode and paste.
            adaptive: look at the image as `views` says, in the one that fits the first click best, instead of
                at voxels. The clicks are then in the order in which they came, and a further one moves no
                window (`windows_in_order`).
            last: open one window, about the last click (`last_window`).
            narrow: whether the object is known to fit in the narrow view; if `adaptive`, no other is tried.

        Returns:
            One prediction for each group of overlapping windows, and one for the previous mask.

        Raises:
            PromptError: with neither a foreground click nor a box.
            UserError: for an unknown intensity choice.
        """
        stages = StageTimer() if stages is None else stages
        clicks = _with_foreground(prompts, volume.shape)
        foreground = [c.index for c in clicks if c.positive]
        if adaptive:
            intensity_map = map_at_points(volume, foreground[:1], intensity)
            if narrow:
                view, _ = views(volume.spacing)
            else:
                view = self._best_view(volume, foreground[0], intensity_map, stages)
            windows = view.windows_in_order(clicks, self.window)
        else:
            intensity_map = map_at_points(volume, thinned(foreground, _MAX_CENTRES), intensity)
            view = AS_STORED
            if last:
                windows = last_window(clicks, self.window)
            else:
                windows = click_windows(foreground, prompts.background, self.window)

        found = []
        for group in _overlapping(windows):
            parts = [
                self._prediction(_Crop(volume, window, intensity_map, view.outside), clicks, stages)
                for window in group
            ]
            with stages.timed("paste"):
                found.append(_mean(parts).trimmed())
        if prompts.mask is not None:
            with stages.timed("paste"):
                found.append(_outside(prompts.mask, windows))
        return found

    def _best_view(
        self, volume: Volume, index: Index, intensity_map: IntensityMap, stages: StageTimer
    ) -> View:
        """The view in which the border of what one click finds lies on the clearest edges."""

        def choose() -> View:
            narrow, wide = views(volume.spacing)
            strength = {
                view: self._edge_strength(volume, index, view, intensity_map, stages)
                for view in (narrow, wide)
            }
            return wide if strength[wide] > WIDER_BY * strength[narrow] else narrow

        return self._cache.get((volume.key, self.weights_key, index, intensity_map), choose)

    def _edge_strength(
        self, volume: Volume, index: Index, view: View, intensity_map: IntensityMap, stages: StageTimer
    ) -> float:
        clicks = (Click(index, True),)
        (window,) = view.windows_in_order(clicks, self.window)
        crop = _Crop(volume, window, intensity_map, view.outside)
        logits = self._logits(crop, clicks, stages)
        with stages.timed("crop"):
            image = crop.image[0, 0].numpy()
        return edge_strength(image, (logits > 0).numpy())

    def _prediction(self, crop: _Crop, clicks: Sequence[Click], stages: StageTimer) -> Prediction:
        logits = self._logits(crop, clicks, stages)
        with stages.timed("paste"):
            region, values = paste_from_grid(logits, crop.window, crop.volume.shape)
            return Prediction(region, values.clamp(-LOGIT_LIMIT, LOGIT_LIMIT).numpy())

    def _logits(self, crop: _Crop, clicks: Sequence[Click], stages: StageTimer) -> Tensor:
        """float32 (D, H, W) of a window, on the CPU; not to be changed."""

        def decode() -> Tensor:
            features = self._encoded(crop, key, stages)
            points, labels = point_prompts(crop.window, clicks)
            with stages.timed("decode"), self._precision():
                logits = self.network.decode(features, points.to(self.device), labels.to(self.device))[0, 0]
                return logits.float().cpu()

        key = (crop.volume.key, self.weights_key, crop.window, crop.outside, crop.intensity_map)
        # The first click alone may be asked for twice: to choose the view, and for the first answer.
        return self._cache.get((*key, clicks[0]), decode) if len(clicks) == 1 else decode()

    def _encoded(self, crop: _Crop, key: Hashable, stages: StageTimer) -> LocalFeatures:
        def encode() -> LocalFeatures:
            with stages.timed("crop"):
                image = crop.image.to(self.device)
            with stages.timed("encode"), self._precision():
                return self.network.encode(image)

        return self._cache.get(key, encode)


def _with_foreground(prompts: Prompts, shape: Sequence[int]) -> tuple[Click, ...]:
    """The clicks, with the centre of the box when none of them is foreground."""
    if prompts.foreground:
        return prompts.clicks
    if prompts.box is None:
        raise PromptError(
            "The local expert needs at least one foreground click, but there are only "
            f"{len(prompts.background)} background clicks; click inside the object."
        )
    z, y, x = (min(int(p), n - 1) for p, n in zip(prompts.box.centre, shape, strict=True))
    if (z, y, x) in prompts.background:
        raise PromptError(
            f"The local expert needs a foreground click: the box's centre {(z, y, x)}, which would stand for "
            "one, was clicked as background."
        )
    return (Click((z, y, x), True), *prompts.clicks)


def _overlapping(windows: Sequence[Roi]) -> list[list[Roi]]:
    """Groups of windows that are connected through shared voxels."""
    groups: list[list[Roi]] = []
    for window in windows:
        touching = [g for g in groups if any(_overlap(window.box, w.box) for w in g)]
        groups = [g for g in groups if g not in touching]
        groups.append([*(w for g in touching for w in g), window])
    return groups


def _overlap(a: Box, b: Box) -> bool:
    return all(max(p, q) < min(r, s) for p, q, r, s in zip(a.lo, b.lo, a.hi, b.hi, strict=True))


def _mean(parts: Sequence[Prediction]) -> Prediction:
    """Mean logits where parts cover one another; 0, which is background, where none is."""
    if len(parts) == 1:
        return parts[0]
    region = enclosing_region([part.region for part in parts])
    shape = [s.stop - s.start for s in region]
    total = np.zeros(shape, dtype=np.float32)
    count = np.zeros(shape, dtype=np.uint8)
    for part in parts:
        target = within(part.region, region)
        total[target] += part.logits
        count[target] += 1
    total /= np.maximum(count, 1)
    return Prediction(region, total)


def _outside(mask: npt.NDArray[np.generic], windows: Sequence[Roi]) -> Prediction:
    """The part of a mask that no window covers."""
    region = filled_region(mask)
    logits = np.where(mask[region] != 0, np.float32(OUTSIDE_LOGIT), np.float32(-OUTSIDE_LOGIT))
    for window in windows:
        covered = intersection(window.box.centres(mask.shape), region)
        if covered is not None:
            logits[within(covered, region)] = -OUTSIDE_LOGIT
    return Prediction(region, logits).trimmed()

"""The global expert: the whole object in one region, encoded once, decoded for every click (section 2.1)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import PromptError
from ..imaging.geometry import Box, Roi, crop_to_grid, global_roi
from ..imaging.intensity import IntensityMap
from ..imaging.prompts import Click, Prompts
from ..imaging.volume import Volume
from ..networks.configs import outside_of
from ..networks.global_network import GlobalFeatures, RegionNetwork, box_centre_prompt
from .base import NetworkExpert
from .inputs import global_input, map_at_points, map_in_box, point_prompts
from .prediction import NOWHERE, Prediction, filled_region, paste_object
from .timing import StageTimer

WINDOW_SAMPLES = 2.0
"""Voxels along each axis that are read of a wide window's cell; all of them would be the whole volume."""
MASK_LOGIT = 4.0
"""Logit that stands for a voxel inside a given mask, and minus it for one outside (probability 0.98)."""


def box_logits(network: RegionNetwork, features: GlobalFeatures, device: torch.device) -> Tensor:
    """Logits (B, 1, M, M, M) of regions from their boxes alone, as in the first round of training."""
    centre, kind = box_centre_prompt(network, len(features), network.config.image_size, device)
    return network.decode(features, centre, kind, None)


def click_logits(
    network: RegionNetwork, features: GlobalFeatures, points: Tensor, labels: Tensor, mask: Tensor
) -> Tensor:
    """Logits of one region from all clicks and the mask of an earlier round.

    Args:
        network, features: of one region.
        points: (1, N, 3) clicks in grid voxels.
        labels: (1, N) 1 foreground, 0 background.
        mask: logits (1, 1, M, M, M).

    Returns:
        logits (1, 1, M, M, M).
    """
    centre, kind = box_centre_prompt(network, 1, network.config.image_size, points.device)
    return network.decode(
        features,
        torch.cat([centre, points], dim=1),
        torch.cat([kind, labels], dim=1),
        network.to_mask_prompt(mask),
    )


class GlobalExpert(NetworkExpert[RegionNetwork]):
    """Segments one object in the region around its prompts."""

    def expert_for(self, volume: Volume, prompts: Prompts) -> GlobalExpert:
        """The expert that answers these prompts; see `scope` for experts that leave some to their origin."""
        return self

    @torch.inference_mode()
    def predict(
        self, volume: Volume, prompts: Prompts, intensity: str = "auto", stages: StageTimer | None = None
    ) -> list[Prediction]:
        """Segment one object.

        Foreground clicks outside the box enlarge the region; background clicks outside the region have no
        effect here. Without a box that of the mask counts, without either the first two foreground clicks
        are opposite corners of one: they make the region and are not shown to the network. A mask in the
        prompts takes the place of the first round.
        Objects never share a batch, so that the answer does not depend on what else was asked.

        Args:
            volume: the image.
            prompts: checked for this volume.
            intensity: one of `intensity.CHOICES`.
            stages: receives seconds spent in crop, encode, decode and paste.

        Returns:
            One prediction.

        Raises:
            PromptError: without box and mask, and with fewer than two foreground clicks.
            UserError: for an unknown intensity choice.
        """
        stages = StageTimer() if stages is None else stages
        roi, logits = self.logits(volume, prompts, intensity, stages)
        with stages.timed("paste"):
            return [paste_object(logits, roi, volume.shape)]

    @torch.inference_mode()
    def logits(
        self,
        volume: Volume,
        prompts: Prompts,
        intensity: str,
        stages: StageTimer,
        corrected: bool = True,
        before: Callable[[Roi], Tensor] | None = None,
    ) -> tuple[Roi, Tensor]:
        """The network's own answer, on the grid of its region.

        Args:
            volume, prompts, intensity, stages: as for `predict`.
            corrected: whether clicks and mask count, or only the region that they and the box make.
            before: gives the mask that the clicks correct, as logits on the grid of a region; it takes the
                place of the one in the prompts.

        Returns:
            The region and float32 logits (M, M, M) on the CPU.

        Raises:
            As `predict`.
        """
        prompts = _boxed(prompts)
        assert prompts.box is not None
        roi = self._region(prompts.enclosing_box())
        intensity_map = map_in_box(volume, prompts.box, intensity)
        key = (volume.key, self.weights_key, roi, intensity_map)
        features = self._encoded(key, volume, roi, intensity_map, stages)
        points, labels = point_prompts(roi, prompts.clicks if corrected else ())
        with stages.timed("crop"):
            mask = None
            if before is not None:
                side = self.network.config.mask_size
                mask = before(Roi(roi.box, (side, side, side)))[None, None].to(self.device)
            elif corrected and prompts.mask is not None:
                mask = self._mask_logits(prompts.mask, roi)
        with stages.timed("decode"), self._precision():
            given = mask is not None
            if mask is None:
                # The mask from the box alone is the same for every click of the region: half of a click's
                # work.
                mask = self._cache.get((*key, "box"), lambda: box_logits(self.network, features, self.device))
            if given or points.shape[1] > 0:
                mask = click_logits(
                    self.network, features, points.to(self.device), labels.to(self.device), mask
                )
            logits = mask[0, 0].float().cpu()
        return Roi(roi.box, (logits.shape[0], logits.shape[1], logits.shape[2])), logits

    @torch.inference_mode()
    def window_logits(
        self, volume: Volume, windows: Sequence[Roi], click: Click, intensity: str, stages: StageTimer
    ) -> Tensor:
        """What a click means in windows, without a box, by a network with `answers_clicks_alone`.

        All windows are one batch, in which each costs half of what it would alone.

        Args:
            volume: the image.
            windows: at least one; their grids are that of the network.
            click: of the foreground.
            intensity, stages: as for `predict`.

        Returns:
            (N, M, M, M) float32 logits of each window's grid, on the CPU.
        """
        intensity_map = map_at_points(volume, [click.index], intensity)
        crops = [(window, intensity_map) for window in windows]
        features = self._encode(volume, crops, stages, WINDOW_SAMPLES)
        prompts = [point_prompts(window, (click,)) for window in windows]
        points, labels = (torch.cat(parts).to(self.device) for parts in zip(*prompts, strict=True))
        with stages.timed("decode"), self._precision():
            return self.network.decode(features, points, labels, None)[:, 0].float().cpu()

    @torch.inference_mode()
    def boxes_logits(
        self, volume: Volume, boxes: Sequence[Box], intensity: str, stages: StageTimer
    ) -> Tensor:
        """What boxes alone mean, each on the grid of its region, in one batch.

        Args:
            volume: the image.
            boxes: at least one, in voxel edges.
            intensity, stages: as for `predict`.

        Returns:
            (N, M, M, M) float32 logits, on the CPU.
        """
        # Nothing is kept for `logits`: a batch rounds differently, and an answer must not depend on what was
        # asked before.
        crops = [(self._region(box), map_in_box(volume, box, intensity)) for box in boxes]
        features = self._encode(volume, crops, stages)
        with stages.timed("decode"), self._precision():
            return box_logits(self.network, features, self.device)[:, 0].float().cpu()

    def _region(self, box: Box) -> Roi:
        size = self.network.config.image_size
        return global_roi(box, grid=(size, size, size))

    def _encode(
        self,
        volume: Volume,
        crops: Sequence[tuple[Roi, IntensityMap]],
        stages: StageTimer,
        samples: float | None = None,
    ) -> GlobalFeatures:
        with stages.timed("crop"):
            outside = outside_of(self.network.config.hold_edges)
            images = [global_input(volume, roi, values, outside, samples) for roi, values in crops]
            image = torch.cat(images).to(self.device)
        with stages.timed("encode"), self._precision():
            return self.network.encode(image)

    def _encoded(
        self, key: Hashable, volume: Volume, roi: Roi, intensity_map: IntensityMap, stages: StageTimer
    ) -> GlobalFeatures:
        return self._cache.get(key, lambda: self._encode(volume, [(roi, intensity_map)], stages))

    def _mask_logits(self, mask: npt.NDArray[np.generic], roi: Roi) -> Tensor | None:
        """A given mask as logits on the network's grid; None if no part of it is in the region."""
        filled = filled_region(mask)
        if filled == NOWHERE:
            return None
        # Only the part that is not empty is read: outside an array there are zeros as well.
        (z0, y0, x0), (z1, y1, x1) = (
            tuple(edge - s.start for edge, s in zip(edges, filled, strict=True))
            for edges in (roi.box.lo, roi.box.hi)
        )
        size = self.network.config.mask_size
        share = crop_to_grid(mask[filled], Roi(Box((z0, y0, x0), (z1, y1, x1)), (size, size, size)))
        if not bool(share.any()):
            return None
        return ((2 * share - 1) * MASK_LOGIT)[None, None].to(self.device)


def _boxed(prompts: Prompts) -> Prompts:
    """The prompts with a box: the one given, else the mask's, else the one that two clicks stand for."""
    if prompts.box is None and prompts.mask is not None and prompts.mask.any():
        return replace(prompts, box=Box.of_mask(prompts.mask))
    boxed = prompts.with_corner_box()
    if boxed.box is None:
        count = len(prompts.foreground)
        raise PromptError(
            "The global expert needs a box or two foreground clicks at opposite corners of one, but there is "
            f"no box and {count or 'no'} foreground click{'' if count == 1 else 's'}; "
            "draw a box, add a click, or use the local expert."
        )
    return boxed

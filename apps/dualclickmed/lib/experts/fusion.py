"""`strategy=fused`: a network's answer, refined by the image's edges and every click.

The paper routes each object to one expert and leaves joining the two as future work (section 4.5). Here an
expert says what the object may be, and `refinement` decides with the image and the clicks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from ..geometry import Box, Index, Region, Roi, axis_weights, crop_to_grid, paste_from_grid
from ..prompts import Click, Prompts
from ..volume import Volume
from .cache import ByteCache
from .global_expert import GlobalExpert
from .local_expert import OUTSIDE_LOGIT, LocalExpert
from .prediction import (
    NOWHERE,
    Prediction,
    enclosing_region,
    filled_region,
    intersection,
    paste_object,
    within,
)
from .refinement import NETWORK_LIMIT as LIMIT
from .refinement import CellClick, Scene, refined, said
from .stages import Stages
from .walk import Field

SCENE_BYTES = 128 << 20
"""Scenes and first masks that are kept between requests, in bytes."""
SURROUNDINGS = 1.5
"""How much longer than what the local expert found the region of an object without a box is, on each axis."""
LEAST_SIDE = 24.0
"""Shortest side of that region in voxels."""
HEARD = 0.05
"""What clicks must say about a voxel for a given mask to be reconsidered there (`refinement.said`)."""
PROBED = 0.15
"""Width of the part that `Refined.where_next` looks at, as a part of the object's size."""
_LEAST = 1e-4


@dataclass(frozen=True, eq=False)
class Refined:
    """One object's answer.

    Attributes:
        predictions: of the object, as an expert gives them.
        roi: the region that was refined.
        probability: float32 of the region's grid.
        clicked: the cells that were clicked.
    """

    predictions: list[Prediction]
    roi: Roi
    probability: Field
    clicked: list[Index]

    @property
    def uncertainty(self) -> Field:
        """Of each cell, in [0, 1]: 1 where the object is as likely as not, 0 where the answer is certain."""
        return 1 - np.abs(2 * np.clip(self.probability, 0, 1) - 1)

    def where_next(self) -> Index | None:
        """The voxel whose click would tell most: where a wide part of the object's surroundings is unsure.

        The surface of every object is unsure, so what counts is the mean over a part of the object's size.
        None where everything is certain, or clicked.
        """
        width = max(1.0, PROBED * float((self.probability > 0.5).sum()) ** (1 / 3))
        unsure = ndimage.gaussian_filter(self.uncertainty, width, mode="constant")
        unsure *= self.uncertainty
        for z, y, x in self.clicked:
            unsure[max(0, z - 1) : z + 2, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = 0
        best = int(unsure.argmax())
        if unsure.flat[best] < _LEAST:
            return None
        cell = np.asarray(np.unravel_index(best, unsure.shape))
        z, y, x = (int(p) for p in np.rint(self.roi.to_voxel(cell)[0]))
        return z, y, x


class Fusion:
    """Answers for one object at a time from what an expert says.

    Attributes:
        scenes: what was found out about regions, kept between requests.
    """

    def __init__(self) -> None:
        self.scenes = ByteCache(SCENE_BYTES)

    def predict(
        self,
        expert: GlobalExpert | LocalExpert,
        volume: Volume,
        prompts: Prompts,
        intensity: str,
        stages: Stages,
    ) -> Refined:
        """Segment one object.

        The global expert sees the box, the local one the clicks; corrections are the refinement's, which
        changes the mask only where they say something. A mask in the prompts is what clicks correct: away
        from them it stays as it is; without clicks the expert sees it.

        Args:
            expert: whose opinion is refined.
            volume: the image.
            prompts: checked for this volume.
            intensity: one of `intensity.CHOICES`.
            stages: receives seconds spent in crop, encode, decode, refine and paste.

        Raises:
            As the expert's `predict`.
        """
        source, first, opinion = _asked(expert, volume, prompts, intensity, stages)
        with stages.timed("refine"):
            scene = self.scenes.get((volume.key, source.box), lambda: Scene.of(volume, source.box))
            logits = resampled(opinion, source, scene.roi).numpy()
            clicks = _cell_clicks(scene, prompts.clicks)
            before = None
            if clicks and prompts.mask is not None:
                before = crop_to_grid(prompts.mask, scene.roi).numpy() >= 0.5
                logits = (logits + np.where(before, np.float32(LIMIT), np.float32(-LIMIT))) / 2
            elif clicks:
                alone = resampled(first, source, scene.roi).numpy()
                before = refined(scene, alone, prompts.box, (), None) > 0.5
            probability = refined(scene, logits, prompts.box, clicks, before)
        with stages.timed("paste"):
            sure = torch.logit(torch.from_numpy(probability).clamp(_LEAST, 1 - _LEAST))
            found = [paste_object(sure, scene.roi, volume.shape)]
            if before is not None and prompts.mask is not None:
                heard = torch.from_numpy(np.abs(said(scene, clicks, before, prompts.box)))
                found = _kept(prompts.mask, sure, heard, scene.roi)
        return Refined(found, scene.roi, probability, [c.cell for c in clicks])


def _asked(
    expert: GlobalExpert | LocalExpert, volume: Volume, prompts: Prompts, intensity: str, stages: Stages
) -> tuple[Roi, Tensor, Tensor]:
    """What an expert says: a region, its logits there before corrections, and the mean of these and of those
    with corrections. Either pass may be wrong where the other is right; a mean moves less with each click.
    """
    if isinstance(expert, GlobalExpert):
        seen = prompts.mask is not None and not prompts.clicks
        source, first = expert.logits(volume, prompts, intensity, stages, corrected=seen)
        first = first.clamp(-LIMIT, LIMIT)
        if not prompts.clicks:
            return source, first, first
        _, second = expert.logits(volume, prompts, intensity, stages)
        return source, first, (first + second.clamp(-LIMIT, LIMIT)) / 2
    found = expert.predict(volume, Prompts(prompts.clicks, prompts.box), intensity, stages)
    source, logits = _in_one_region(found, prompts.enclosing_box(), volume.shape)
    return source, logits, logits


def resampled(values: Tensor, source: Roi, target: Roi) -> Tensor:
    """Values (of shape ``source.grid``) at the cells of another region; outside the source as at its edge."""
    weights = []
    for count, lo, size, start, cell, cells in zip(
        target.grid, target.box.lo, target.spacing, source.box.lo, source.spacing, source.grid, strict=True
    ):
        centres = lo + (np.arange(count) + 0.5) * size
        weights.append(axis_weights((centres - start) / cell - 0.5, cells, hold_edges=True))
    z, y, x = weights
    part = values[z.start : z.stop, y.start : y.stop, x.start : x.stop]
    planes = y.matrix @ (part @ x.matrix.T)
    return (z.matrix @ planes.flatten(1)).reshape(target.grid)


def _in_one_region(parts: Sequence[Prediction], clicked: Box, shape: Index) -> tuple[Roi, Tensor]:
    """What the local expert found, with its surroundings: voxels of one region and their logits."""
    found = [part.trimmed() for part in parts]
    region = enclosing_region([part.region for part in found])
    box = clicked if region == NOWHERE else clicked.union(_box(region))
    voxels = box.scaled(SURROUNDINGS).at_least(LEAST_SIDE).centres(shape)
    logits = np.full([s.stop - s.start for s in voxels], -OUTSIDE_LOGIT, dtype=np.float32)
    for part in parts:
        shared = intersection(part.region, voxels)
        if shared is not None:
            logits[within(shared, voxels)] = part.logits[within(shared, part.region)]
    depth, height, width = logits.shape
    return Roi(_box(voxels), (depth, height, width)), torch.from_numpy(logits)


def _cell_clicks(scene: Scene, clicks: Sequence[Click]) -> list[CellClick]:
    """The clicks in a scene, at most one for each cell, none where a cell was clicked as both."""
    kinds: dict[Index, set[bool]] = {}
    for click in clicks:
        if scene.roi.box.contains(click.index):
            kinds.setdefault(scene.cell(click.index), set()).add(click.positive)
    return [CellClick(cell, kind.pop()) for cell, kind in sorted(kinds.items()) if len(kind) == 1]


def _kept(mask: npt.NDArray[np.generic], logits: Tensor, heard: Tensor, roi: Roi) -> list[Prediction]:
    """A given mask, with new logits where clicks said something."""
    region, values = paste_from_grid(logits, roi, mask.shape)
    _, said_there = paste_from_grid(heard, roi, mask.shape)
    whole = enclosing_region([region, filled_region(mask)])
    result = np.where(mask[whole] != 0, np.float32(OUTSIDE_LOGIT), np.float32(-OUTSIDE_LOGIT))
    inner = within(region, whole)
    result[inner] = np.where(said_there.numpy() > HEARD, values.numpy(), result[inner])
    return [Prediction(whole, result)]


def _box(region: Region) -> Box:
    z, y, x = region
    return Box((z.start, y.start, x.start), (z.stop, y.stop, x.stop))

"""What one click means where no box is drawn: the global expert looks at it in windows of many sizes.

A click says where an object is and not how large it is. The network was trained to answer a click in a
window of any size, and each size shows it another candidate: a vessel, the organ around it, the body. Two
things tell which of them is an object. It does not depend on the window, so that other windows find much the
same. And it fills its box, as the objects of the training did: shown the box of a candidate, the network is
surer of what is inside than where the box lies somewhere in even tissue.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from ...imaging.geometry import Box, Index, Roi, resampled
from ...imaging.prompts import Click
from ...imaging.volume import Volume
from ..global_expert import GlobalExpert
from ..timing import StageTimer

SMALLEST_WINDOW = 12.0
"""Side of the smallest window in shortest sides of a voxel."""
WINDOW_STEP = 2.0
"""Ratio of a window's side to that of the next smaller one."""
BEYOND_IMAGE = 1.3
"""The largest window is the first one with at least this times the image's longest side."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """An object that was found in a window.

    Attributes:
        window: cube in space about the click; its grid is the network's.
        mask: the part of what was found that holds the click, on that grid.
    """

    window: Roi
    mask: npt.NDArray[np.bool_]

    @property
    def volume(self) -> float:
        """In voxels of the image."""
        return float(self.mask.sum()) * math.prod(self.window.spacing)

    def box(self, shape: Index) -> Box:
        """Around the object, inside an image of that shape, in voxel edges."""
        around = self.window.box_to_voxel(Box.of_mask(self.mask))
        lo, hi = np.clip([around.lo, around.hi], 0, np.asarray(shape))
        return Box.between(lo, hi).at_least(1.0)

    def holds(self, index: Index) -> bool:
        """Whether a voxel of the image is in the object."""
        return self.window.box.contains(index) and bool(self.mask[self.window.cell(index)])

    def overlap(self, wider: Candidate) -> float:
        """Dice of this candidate and one of a wider window, compared on the grid of this one's window."""
        theirs = resampled(torch.from_numpy(wider.mask.astype(np.float32)), wider.window, self.window)
        shared = float((self.mask & (theirs.numpy() > 0.5)).sum()) * math.prod(self.window.spacing)
        return 2 * shared / (self.volume + wider.volume)


@dataclass(frozen=True)
class Candidates:
    """The result of a search.

    Attributes:
        candidates: the objects that windows show at the click, the most probable one first.
        boxes: around each of them, in voxel edges of the image.
    """

    candidates: tuple[Candidate, ...]
    boxes: tuple[Box, ...]

    def box(self, background: Sequence[Index] = ()) -> Box | None:
        """The box of the most probable object that holds none of some voxels; None if there is none."""
        for candidate, box in zip(self.candidates, self.boxes, strict=True):
            if not any(candidate.holds(index) for index in background):
                return box
        return None

    @property
    def nbytes(self) -> int:
        """Approximate memory in a cache."""
        return 256 + sum(candidate.mask.nbytes for candidate in self.candidates)


def windows(index: Index, volume: Volume, cells: int) -> list[Roi]:
    """Cubes in space about a voxel, each of `cells` cells along an axis, from the smallest to the largest."""
    spacing = np.asarray(volume.spacing)
    longest = BEYOND_IMAGE * max(n * s for n, s in zip(volume.shape, volume.spacing, strict=True))
    sides = [SMALLEST_WINDOW * min(volume.spacing)]
    while sides[-1] < longest:
        sides.append(WINDOW_STEP * sides[-1])
    found = []
    for side in sides:
        lo, hi = ((np.asarray(index) + 0.5 + end * side / spacing).tolist() for end in (-0.5, 0.5))
        found.append(Roi(Box.between(lo, hi), (cells, cells, cells)))
    return found


def candidates(
    expert: GlobalExpert, volume: Volume, click: Click, intensity: str, stages: StageTimer
) -> list[Candidate]:
    """What a foreground click finds in each window, by growing window.

    Args:
        expert: with a network that answers clicks alone.
        volume: the image.
        click: of the foreground.
        intensity, stages: as for `GlobalExpert.predict`.

    Returns:
        Without those of windows in which the clicked cell itself is background.
    """
    found = []
    looked = windows(click.index, volume, expert.network.config.image_size)
    for window, logits in zip(
        looked, expert.window_logits(volume, looked, click, intensity, stages), strict=True
    ):
        parts, _ = ndimage.label(logits.numpy() > 0)
        clicked = parts[window.cell(click.index)]
        if clicked:
            found.append(Candidate(window, parts == clicked))
    return found


def agreements(found: Sequence[Candidate]) -> npt.NDArray[np.float64]:
    """For candidates by growing window, the mean Dice of each with all, itself among them."""
    dice = np.eye(len(found))
    for i, one in enumerate(found):
        for j in range(i + 1, len(found)):
            dice[i, j] = dice[j, i] = one.overlap(found[j])
    return dice.sum(axis=1) / max(1, len(found))


def searched(
    expert: GlobalExpert, volume: Volume, click: Click, intensity: str, stages: StageTimer
) -> Candidates:
    """Look for the object that one foreground click means.

    Candidates are ordered by the sum of their agreement with all candidates and the mean probability inside
    what the network answers to their box alone.

    Args:
        expert, volume, click, intensity, stages: as for `candidates`.
    """
    found = candidates(expert, volume, click, intensity, stages)
    if not found:
        return Candidates((), ())
    boxes = [candidate.box(volume.shape) for candidate in found]
    worth = agreements(found)
    for number, logits in enumerate(expert.boxes_logits(volume, boxes, intensity, stages)):
        inside = torch.sigmoid(logits[logits > 0])
        worth[number] += float(inside.mean()) if len(inside) else 0.0
    order = np.argsort(-worth, kind="stable")
    return Candidates(tuple(found[i] for i in order), tuple(boxes[i] for i in order))

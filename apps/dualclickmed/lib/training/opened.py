"""Labelled cases in memory: loaded once, with a table of their objects, the least recently used dropped."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from ..byte_cache import ByteCache
from ..errors import UserError
from ..imaging.geometry import Region
from ..imaging.volume import Volume
from .recipes import Recipe
from .sources import LabelledCase, Labels, load_case

# A label that fills more of an image than this is its background or its frame, not an object.
HUGE_SHARE = 0.95
# An object that fills less of its box than this is described badly by it: vessels, shells, branches.
POINT_ONLY_FILL = 0.15
CACHE_BYTES = 2 << 30


@dataclass(frozen=True)
class Found:
    """One object of a case: label value, number of voxels, and its place in the volume."""

    value: int
    voxels: int
    region: Region


@dataclass
class OpenedCase:
    """A case in memory; `objects` are those that training may ask for."""

    volume: Volume
    labels: Labels
    objects: list[Found]

    @property
    def nbytes(self) -> int:
        """Memory of image and labels."""
        return self.volume.nbytes + self.labels.nbytes

    def mask(self, found: Found) -> npt.NDArray[np.bool_]:
        """The object's mask in its region."""
        return self.labels[found.region] == found.value


def find_objects(labels: Labels, smallest: int) -> list[Found]:
    """The objects of a label map (D, H, W): every value above 0 with at least `smallest` voxels that does not
    fill the image.
    """
    counts = np.bincount(labels.reshape(-1))
    regions = ndimage.find_objects(labels.astype(np.int32, copy=False))
    return [
        Found(value, int(counts[value]), region)
        for value, region in enumerate(regions, start=1)
        if region is not None and smallest <= counts[value] <= HUGE_SHARE * labels.size
    ]


def open_case(case: LabelledCase, recipe: Recipe) -> OpenedCase:
    """Load a case and list its objects.

    Raises:
        UserError: as `load_case` does, or the case has no object of the recipe's sizes.
    """
    volume, labels = load_case(case)
    objects = find_objects(labels, recipe.smallest)
    if not objects:
        raise UserError(
            f"Case '{case.id}': the label has no object of {recipe.smallest} voxels or more that leaves at "
            f"least {1 - HUGE_SHARE:.0%} of the image free."
        )
    if recipe.point_only:
        objects = [found for found in objects if is_point_only(case, found)]
        if not objects:
            raise UserError(
                f"Case '{case.id}': a box describes every object well, and only such objects were asked for "
                "that points describe better."
            )
    return OpenedCase(volume, labels, objects)


def is_point_only(case: LabelledCase, found: Found) -> bool:
    """Whether an object is one that users point at instead of drawing a box (paper, section 4.5).

    The challenge's files say so by having no boxes; elsewhere it is an object that fills little of its box.
    """
    if case.image.suffix == ".npz":
        with zipfile.ZipFile(case.image) as file:
            return "boxes.npy" not in file.namelist()
    sides = [s.stop - s.start for s in found.region]
    return found.voxels < POINT_ONLY_FILL * sides[0] * sides[1] * sides[2]


class OpenedCases:
    """Opens cases for a recipe and keeps the ones used last, up to `max_bytes`; one for each process.

    Args:
        recipe: its rules choose the objects.
        max_bytes: of memory.
    """

    def __init__(self, recipe: Recipe, max_bytes: int = CACHE_BYTES) -> None:
        self.recipe = recipe
        self._cache = ByteCache(max_bytes)

    def get(self, case: LabelledCase) -> OpenedCase:
        """The opened case.

        Raises:
            UserError: as `open_case` does.
        """
        return self._cache.get(case.id, lambda: open_case(case, self.recipe))

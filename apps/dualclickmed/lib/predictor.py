"""Segment from Python: make a predictor from weights, set an image, give prompts, get a mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .byte_cache import ByteCache
from .errors import PromptError
from .experts import DEFAULT_STRATEGY, DualExpert, Result
from .experts.devices import resolved_device
from .experts.loading import load_experts
from .imaging.geometry import Box, Index, ordered_corners
from .imaging.prompts import Click, Prompts, in_order, one_kind
from .imaging.volume import Volume, from_array, load_volume
from .weights.files import default_path

CACHE_BYTES = 2 << 30
"""Embeddings that a predictor keeps, in bytes."""
OBJECT = "object"
"""The label that `Predictor.predict` segments under."""


@dataclass(frozen=True)
class ObjectPrompts:
    """The prompts of one object in the image's own order; see `Predictor.predict` for their form."""

    points: Sequence[Sequence[int]] = ()
    background: Sequence[Sequence[int]] = ()
    box: Sequence[float] | None = None
    mask: npt.NDArray[np.generic] | None = None
    order: Sequence[str] | None = None


class Predictor:
    """Interactive segmentation of one image at a time.

    Voxels are counted in the image's own order: for a file or a `Volume` that is the file's (i, j, k), the
    order in which nibabel and MONAI give its array; for an array it is the array's.

    A prediction is a function of the image, the prompts and the weights. Nothing is remembered between
    calls but embeddings, which make the next one faster: to correct an object, give all of its prompts
    again with the new click among them; to undo, leave it out.

    Args:
        expert: what segments.

    Attributes:
        expert: what segments, for callers that hold their own volumes and prompts.
        result: everything about the last prediction, in canonical order; None before the first and after one
            that failed.
    """

    def __init__(self, expert: DualExpert) -> None:
        self.expert = expert
        self._volume: Volume | None = None
        self._is_array = False
        self.result: Result | None = None

    @classmethod
    def from_weights(
        cls,
        global_path: str | PathLike[str] | None = None,
        local_path: str | PathLike[str] | None = None,
        device: str | torch.device = "auto",
        model_dir: str | PathLike[str] | None = None,
        precision: str = "auto",
    ) -> Predictor:
        """A predictor with both experts.

        Args:
            global_path: weights of the global expert; by default those of `model_dir` that 'weights use'
                chose, else the compact ones.
            local_path: weights of the local expert; likewise.
            device: "cpu", "cuda", "cuda:N", or "auto" for a GPU if there is one.
            model_dir: the folder of weights; by default $DUALCLICKMED_MODEL_DIR or the repository's.
            precision: "float32", "bfloat16", or "auto" for bfloat16 where the processor computes in it and a
                check of the loaded network finds the masks unchanged (`experts.precision`).

        Raises:
            WeightsError: weights are missing, damaged, or of another network.
            UserError: the device is not there.
        """
        device = resolved_device(str(device))
        box_path = global_path or default_path("global", directory=model_dir)
        click_path = local_path or default_path("local", directory=model_dir)
        return cls(load_experts(Path(box_path), Path(click_path), device, ByteCache(CACHE_BYTES), precision))

    @property
    def volume(self) -> Volume:
        """The image that is set.

        Raises:
            PromptError: none is.
        """
        if self._volume is None:
            raise PromptError("An image must be set before prompts are given, but none is; call set_image.")
        return self._volume

    def set_image(
        self, image: str | PathLike[str] | Volume | npt.NDArray[np.generic], modality: str | None = None
    ) -> None:
        """Choose the image that the next predictions are about.

        Args:
            image: a file, a DICOM folder, a loaded volume, or an array (z, y, x), taken to have cubic voxels;
                for other spacings pass ``volume.from_array(...)``, which counts voxels as (x, y, z).
            modality: "ct", "mr", "pt", "us", "microscopy" or None to guess; ignored for a `Volume`.

        Raises:
            VolumeError: the image cannot be used.
            UserError: the modality's name is unknown.
        """
        self._is_array = isinstance(image, np.ndarray)
        if isinstance(image, Volume):
            self._volume = image
        elif isinstance(image, np.ndarray):
            self._volume = from_array(image, modality=modality or "unknown")
        else:
            self._volume = load_volume(Path(image), modality)
        self.result = None

    def predict(
        self,
        points: Sequence[Sequence[int]] = (),
        background: Sequence[Sequence[int]] = (),
        box: Sequence[float] | None = None,
        mask: npt.NDArray[np.generic] | None = None,
        strategy: str = DEFAULT_STRATEGY,
        intensity: str = "auto",
        order: Sequence[str] | None = None,
    ) -> npt.NDArray[np.bool_]:
        """Segment one object.

        Args:
            points: voxels (i, j, k) inside the object.
            background: voxels (i, j, k) outside it.
            box: (i0, i1, j0, j1, k0, k1) around the object, half-open: voxels i0 to i1 - 1, and so on; each
                pair in either order.
            mask: the object so far, of the image's shape; non-zero is inside.
            strategy: "fused", "paper", "global" or "local" (`DualExpert.segment`).
            intensity: "auto", a CT window's name, or "none" (`intensity.CHOICES`).
            order: "fg" or "bg" for every click in the order in which they were made, where there are both
                kinds and ``paper`` is to look at the last one.

        Returns:
            The mask, bool, in the image's own order.

        Raises:
            PromptError: prompts that do not fit the image, contradict one another or do not suffice.
            WeightsError: the expert that is needed is not loaded.
            UserError: an unknown intensity choice.
        """
        labels = self.predict_labels(
            {OBJECT: ObjectPrompts(points, background, box, mask, order)}, strategy, intensity
        )
        return labels.astype(np.bool_)

    def predict_labels(
        self, prompts: Mapping[str, ObjectPrompts], strategy: str = DEFAULT_STRATEGY, intensity: str = "auto"
    ) -> npt.NDArray[np.uint8]:
        """Segment several objects; overlaps go to the higher foreground probability (`DualExpert.segment`).

        Args:
            prompts: label to prompts.
            strategy, intensity: as for `predict`.

        Returns:
            uint8 in the image's own order: 0 background, n for the n-th label of `prompts`.

        Raises:
            As `predict`.
        """
        canonical = {label: self._canonical(given) for label, given in prompts.items()}
        # Not held while the next one is made: a label map can be as large as the image.
        self.result = None
        self.result = self.expert.segment(self.volume, canonical, strategy, intensity)
        return self._own_order(self.result.labels)

    @property
    def _shape(self) -> Index:
        """Of the image in its own order."""
        return self.volume.shape if self._is_array else self.volume.raw_shape

    def _canonical(self, given: ObjectPrompts) -> Prompts:
        inside, outside = self._voxels(given.points), self._voxels(given.background)
        # In the caller's order, which the checks further down no longer know.
        both = set(inside) & set(outside)
        if both:
            raise PromptError(f"A voxel is either in the object or not, but {min(both)} was given as both.")
        clicks = [Click(index, True) for index in self._indices(inside)]
        clicks += [Click(index, False) for index in self._indices(outside)]
        known = given.order is not None or one_kind(clicks)
        if given.order is not None:
            clicks = in_order(clicks, given.order)
        return Prompts(tuple(clicks), self._box(given.box), self._mask(given.mask), known)

    def _voxels(self, points: Sequence[Sequence[int]]) -> list[Index]:
        """Points in the image's own order, checked."""
        if len(points) == 0:
            return []
        try:
            array = np.asarray(points, dtype=np.float64)
        except (TypeError, ValueError):
            array = np.zeros(0)
        if array.ndim != 2 or array.shape[1] != 3 or not np.array_equal(array, np.rint(array)):
            raise PromptError(f"Points must be triples of whole numbers, but {points} came.")
        voxels = [(int(i), int(j), int(k)) for i, j, k in array]
        for voxel in voxels:
            if not all(0 <= p < n for p, n in zip(voxel, self._shape, strict=True)):
                raise PromptError(
                    f"Points must lie inside the image of shape {self._shape}, but {voxel} lies outside."
                )
        return voxels

    def _indices(self, voxels: list[Index]) -> list[Index]:
        if self._is_array or not voxels:
            return voxels
        return [(z, y, x) for z, y, x in self.volume.to_canonical(voxels).tolist()]

    def _box(self, box: Sequence[float] | None) -> Box | None:
        if box is None:
            return None
        edges = np.asarray(box, dtype=np.float64)
        if edges.shape != (6,) or not np.isfinite(edges).all() or (edges[::2] == edges[1::2]).any():
            raise PromptError(f"A box must be (i0, i1, j0, j1, k0, k1) with i0 < i1, ..., but {box} came.")
        lo, hi = ordered_corners(edges.tolist())
        if not self._is_array:
            return self.volume.box_to_canonical(lo, hi)
        return Box.between(lo, hi)

    def _mask(self, mask: npt.NDArray[np.generic] | None) -> npt.NDArray[Any] | None:
        if mask is not None and mask.shape != self._shape:
            raise PromptError(f"The mask must have the image's shape {self._shape}, but its is {mask.shape}.")
        return mask if mask is None or self._is_array else self.volume.from_raw_array(mask)

    def _own_order(self, labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return labels if self._is_array else self.volume.to_raw_array(labels)

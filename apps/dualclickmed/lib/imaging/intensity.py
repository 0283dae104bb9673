"""From an image's own values to [0, 255], and from there to each expert's input (section 3.2).

Which CT window to use is left open by the paper. A fixed soft tissue window turns lung, air and bone flat,
so the four windows are offered by name, and ``auto`` picks one by the intensities under the prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..errors import UserError

Values = TypeVar("Values", Tensor, np.ndarray)

MAX_GREY = 255.0
"""Upper end of the common intensity range (section 3.2)."""
CT_WINDOWS: dict[str, tuple[float, float]] = {
    "soft tissue": (400, 40),
    "lung": (1500, -160),
    "brain": (80, 40),
    "bone": (1800, 400),
}
"""Width and level of the CT windows in Hounsfield units (section 3.2)."""
CHOICES = ("auto", *CT_WINDOWS, "none")
"""What a user may ask for; the first is the default."""
CLIP_PERCENTILES = (0.5, 99.5)
"""Where the intensities of other modalities are clipped (section 3.2)."""
LOCAL_PERCENTILES = (1.0, 99.0)
"""The volume's percentiles that become 0 and 1 in the local expert's input, as VISTA3D's weights expect."""
MIN_STD = 1.0
"""Least deviation, in grey levels, that `normalise_global` divides by, so that flat regions stay quiet."""


@dataclass(frozen=True)
class IntensityMap:
    """A linear map of [lo, hi] to [0, 255], clipped; lo and hi are in the image's own units (HU for CT).

    Raises:
        ValueError: unless lo < hi.
    """

    lo: float
    hi: float

    def __post_init__(self) -> None:
        if not self.lo < self.hi:
            raise ValueError(f"an intensity map needs lo < hi, got lo={self.lo} and hi={self.hi}")

    @classmethod
    def of_window(cls, name: str) -> IntensityMap:
        """The CT window of that name."""
        width, level = CT_WINDOWS[name]
        return cls(level - width / 2, level + width / 2)

    def __call__(self, values: Values) -> Values:
        """Values of any shape to float32 grey levels of the same shape and kind; the input is not changed."""
        if isinstance(values, Tensor):
            grey = values.float() - self.lo
            return grey.mul_(MAX_GREY / (self.hi - self.lo)).clamp_(0, MAX_GREY)
        mapped = self(torch.from_numpy(np.asarray(values, dtype=np.float32)))
        return mapped.numpy()


IDENTITY = IntensityMap(0.0, MAX_GREY)
"""Leaves grey levels as they are."""


def choose_map(
    choice: str,
    modality: str,
    percentiles: Callable[[float], float],
    sample: npt.NDArray[np.generic],
    value_range: tuple[float, float],
) -> IntensityMap:
    """The map to [0, 255] for one image and its prompts.

    Values that already fill [0, 255] stay as they are, in every modality. For CT, ``auto`` keeps the soft
    tissue window unless the median under the prompts falls outside it: below, the lung window; above, the
    bone window. Images other than CT have no Hounsfield scale: any window's name means their percentiles.

    Args:
        choice: one of `CHOICES`.
        modality: "ct" or another of `volume`'s names.
        percentiles: q in [0, 100] to the volume's value there, in real units; called only when needed.
        sample: real values under the prompts, any shape; may be empty.
        value_range: the volume's least and greatest real value.

    Raises:
        UserError: if `choice` is not one of `CHOICES`.
    """
    if choice not in CHOICES:
        raise UserError(f"The intensity choice must be one of {', '.join(CHOICES)}, but it is {choice!r}.")
    low, high = value_range
    in_grey_levels = low >= 0 and high <= MAX_GREY
    if choice == "none":
        return IDENTITY if in_grey_levels else _spanning(low, high)
    # An image that ends at 1 or below is a fraction or a mask, not grey levels.
    if in_grey_levels and high > 1:
        return IDENTITY
    if modality == "ct":
        return IntensityMap.of_window(_window_for(sample) if choice == "auto" else choice)
    clip_low, clip_high = (percentiles(q) for q in CLIP_PERCENTILES)
    # A few bright voxels on an even background: the percentiles coincide, the extremes do not.
    return IntensityMap(clip_low, clip_high) if clip_low < clip_high else _spanning(low, high)


def normalise_global(values: Tensor) -> Tensor:
    """The global expert's input: z-score by the voxels above 0, as SAM-Med3D's weights expect.

    Args:
        values: (..., D, H, W) grey levels in [0, 255]; each volume of a batch is normalised on its own.

    Returns:
        float32 of the same shape. Voxels that are 0 go through the same map; a region of zeros stays zero.
    """
    values = values.float()
    axes = (-3, -2, -1)
    counted = values > 0
    count = counted.sum(dim=axes, keepdim=True).clamp(min=1)
    mean = values.where(counted, 0).sum(dim=axes, keepdim=True) / count
    variance = (values - mean).square().where(counted, 0).sum(dim=axes, keepdim=True) / count
    return (values - mean) / variance.sqrt().clamp(min=MIN_STD)


def normalise_local(values: Tensor, p1: float, p99: float) -> Tensor:
    """The local expert's input: real values to [0, 1] between the volume's percentiles 1 and 99, clipped.

    Where the two percentiles coincide, values above them become 1 and the others 0.
    """
    values = values.float()
    if not p1 < p99:
        return (values > p1).float()
    return ((values - p1) / (p99 - p1)).clamp_(0, 1)


def _window_for(sample: npt.NDArray[np.generic]) -> str:
    if sample.size == 0:
        return "soft tissue"
    median = float(np.median(np.asarray(sample, dtype=np.float32)))
    soft_tissue = IntensityMap.of_window("soft tissue")
    if median < soft_tissue.lo:
        return "lung"
    return "bone" if median > soft_tissue.hi else "soft tissue"


def _spanning(low: float, high: float) -> IntensityMap:
    return IntensityMap(low, high if low < high else low + 1)

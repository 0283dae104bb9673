"""Voxels held with 8 or 16 bits: exactly where they fit, else in 65,536 steps of their range."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import VolumeError

QUANTILES = (0.05, 99.95)
"""Percentiles that bound the 16-bit range of an image with outliers."""
OUTLIER_STRETCH = 16.0
"""Outliers are cut off where the full range is this many times wider than `QUANTILES`: 12 bits are left."""
MAX_SAMPLE = 2_000_000
"""Voxels that percentiles are computed from, at most."""

_COMPACT = tuple(np.dtype(name) for name in ("uint8", "int8", "int16", "uint16"))
_SLAB_VOXELS = 1 << 22
"""Voxels that are looked at in floating point at once, so that no full-size temporary arises."""


def compact(
    source: npt.NDArray[Any], slope: float, intercept: float, name: str
) -> tuple[npt.NDArray[np.integer], float, float, list[str]]:
    """A copy of 8 or 16 bits, the slope and intercept that lead back to the source, and notes.

    Args:
        source: stored numbers, of any axis order.
        slope, intercept: ``real = source * slope + intercept``.
        name: of the file, for messages.

    Returns:
        A C-contiguous array, ``source = array * step + offset``, and what had to be cut off.

    Raises:
        VolumeError: values are not finite, or too large for 32 bits.
    """
    native = source.dtype.newbyteorder("=")
    low, high = float(source.min()), float(source.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        count = sum(int(np.count_nonzero(~np.isfinite(source[part]))) for part in _slabs(source))
        raise VolumeError(
            f"An image's voxels must be finite, but {name} has {count} that are NaN or infinite."
        )
    _require_range(name, *sorted((low * slope + intercept, high * slope + intercept)))
    if native in _COMPACT:
        return np.array(source, dtype=native, order="C"), 1.0, 0.0, []
    for dtype in (np.dtype("uint8"), np.dtype("int16"), np.dtype("uint16")):
        limits = np.iinfo(dtype)
        if limits.min <= low and high <= limits.max and _is_whole(source):
            return np.array(source, dtype=dtype, order="C"), 1.0, 0.0, []
    least, most = _without_outliers(source, low, high)
    step = (most - least) / np.iinfo(np.uint16).max or 1.0
    array = np.empty(source.shape, dtype=np.uint16)
    cut = 0
    for part in _slabs(source):
        values = source[part].astype(np.float64)
        if (least, most) != (low, high):
            cut += int(np.count_nonzero((values < least) | (values > most)))
        array[part] = np.rint((np.clip(values, least, most) - least) / step)
    if not cut:
        return array, step, least, []
    ends = [f"{value * slope + intercept:.4g}" for value in (low, high, least, most)]
    note = (
        f"The values of {name} reach from {ends[0]} to {ends[1]}, but nearly all lie between {ends[2]} and "
        f"{ends[3]}: the other {cut} voxels were set to these two, because an image is held with 16 bits."
    )
    return array, step, least, [note]


def _without_outliers(source: npt.NDArray[Any], low: float, high: float) -> tuple[float, float]:
    inner_low, inner_high = np.percentile(strided_sample(source).astype(np.float64), QUANTILES)
    if inner_low < inner_high and high - low > OUTLIER_STRETCH * (inner_high - inner_low):
        return float(inner_low), float(inner_high)
    return low, high


def _is_whole(source: npt.NDArray[Any]) -> bool:
    if source.dtype.kind in "biu":
        return True
    return all(bool((np.rint(source[part]) == source[part]).all()) for part in _slabs(source))


def _slabs(array: npt.NDArray[Any]) -> Iterator[slice]:
    step = max(1, _SLAB_VOXELS // max(1, array[0].size))
    return (slice(start, start + step) for start in range(0, array.shape[0], step))


def strided_sample(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """At most `MAX_SAMPLE` of an array's values, flat."""
    stride = max(1, math.ceil(array.size / MAX_SAMPLE))
    # A stride that shares a factor with the row length would see the same columns of every row.
    while math.gcd(stride, array.size) != 1:
        stride += 1
    return array.flat[::stride]


def _require_range(name: str, low: float, high: float) -> None:
    """Real values have 32 bits wherever they are computed with."""
    most = float(np.finfo(np.float32).max)
    if not (math.isfinite(low) and math.isfinite(high) and max(-low, high) <= most):
        raise VolumeError(
            f"An image's values must fit into 32 bits (at most {most:.3g}), but those of {name} reach from "
            f"{low:.3g} to {high:.3g}."
        )

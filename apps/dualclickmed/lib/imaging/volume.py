"""Loaded images: one compact array in canonical orientation, and the way back to the file's own order.

Raw order is what MONAI's ``LoadImage`` returns, and so what clients count their clicks in: ``array[i, j,
k]`` with the axes as the file stores them, x first. Canonical order is (z, y, x) with each index growing
towards Superior, Posterior and Left: the order that SimpleITK gives for an identity direction. Going
between them is a permutation with flips of the axes that lie nearest to the patient's; nothing is
resampled, so oblique and sheared images keep their voxels.

Voxels are held once, with 8 or 16 bits; ``real = array * slope + intercept``.
"""

from __future__ import annotations

import hashlib
import logging
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..byte_cache import ByteCache
from ..errors import UserError, VolumeError
from . import native
from .compact import compact, strided_sample
from .facts import ReadLimits
from .geometry import Box, Index, Position, Region, as_index, as_position
from .headers import META_SUFFIXES, NRRD_SUFFIXES, check_header, reading
from .placing import RAS_FROM_LPS, FileAffine, Placing
from .reading import Read, read_volume

logger = logging.getLogger(__name__)

MODALITIES = ("ct", "mr", "pt", "us", "microscopy", "unknown")
"""What `Volume.modality` may be."""
MODALITY_NAMES = {
    **{name: name for name in MODALITIES},
    "mri": "mr",
    "pet": "pt",
    "ultrasound": "us",
    "sm": "microscopy",
    "gm": "microscopy",
}
"""Other names, in lower case, among them the codes of DICOM's Modality tag (0008,0060) that mean an image."""
CT_AIR_BELOW = -500.0
CT_TISSUE_ABOVE = 100.0
"""An image of unknown modality with values below the one and above the other is taken for CT (HU)."""
SINGULAR = 1e-6
"""Volume of the unit axes' parallelepiped below which an affine's axes coincide."""

_TOWARDS = ((2, 1), (1, -1), (0, -1))
"""For each canonical axis (S, P, L): its world axis in RAS, and whether it runs with or against that axis."""


@dataclass(eq=False)
class Volume:
    """A 3D image in canonical order (z, y, x), read-only.

    Attributes:
        array: (D, H, W), C-contiguous, 8 or 16 bits.
        slope: real units per stored unit; ``real = array * slope + intercept``. Never 0, may be negative.
        intercept: real value of a stored 0.
        spacing: millimetres between voxels along (z, y, x).
        modality: one of `MODALITIES`.
        key: identity of the content and its reading; equal keys mean equal volumes.
        affine: (4, 4), from raw indices (i, j, k) to RAS millimetres.
        raw_shape: extent along the raw axes (i, j, k).
        meta: where the volume came from, for messages: "name", "format", and for DICOM "series".
        notes: sentences about what had to be decided when it was read.
        placing: where programs place the voxels; by default where `affine` does.
    """

    array: npt.NDArray[np.integer]
    slope: float
    intercept: float
    spacing: Position
    modality: str
    key: str
    affine: npt.NDArray[np.float64]
    raw_shape: Index
    meta: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    placing: Placing | None = None

    def __post_init__(self) -> None:
        placing = self.placing or Placing.plain(self.affine)
        self.placing, self.affine = placing, FileAffine(placing)

    @property
    def shape(self) -> Index:
        """Extent along (z, y, x)."""
        depth, height, width = self.array.shape
        return depth, height, width

    @property
    def nbytes(self) -> int:
        """Memory of the voxels."""
        return self.array.nbytes

    @cached_property
    def value_range(self) -> tuple[float, float]:
        """Least and greatest real value."""
        ends = [float(end) * self.slope + self.intercept for end in (self.array.min(), self.array.max())]
        return min(ends), max(ends)

    def percentile(self, q: float) -> float:
        """The real value at percentile `q` in [0, 100], from at most `MAX_SAMPLE` evenly strided voxels.

        Raises:
            ValueError: if `q` is outside [0, 100].
        """
        if not 0 <= q <= 100:
            raise ValueError(f"a percentile must lie in [0, 100], got {q}")
        rank = (q if self.slope > 0 else 100 - q) / 100 * (self._sorted_sample.size - 1)
        below, above = self._sorted_sample[[math.floor(rank), math.ceil(rank)]].astype(np.float64)
        return float((below + (above - below) * (rank % 1)) * self.slope + self.intercept)

    @cached_property
    def _sorted_sample(self) -> npt.NDArray[np.integer]:
        return np.sort(strided_sample(self.array))

    def to_real(self, values: Tensor) -> Tensor:
        """Stored values of any shape to real ones, as float32; the same tensor where they are alike."""
        real = values.float()
        if (self.slope, self.intercept) == (1, 0):
            return real
        return real * self.slope + self.intercept

    def region(self, slices: Region) -> Tensor:
        """The real values of a part of the array, as a float32 tensor of its own."""
        return self.to_real(torch.from_numpy(self.array[slices].astype(np.float32)))

    def to_canonical(self, points: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Raw voxel indices (N, 3) = (i, j, k) to canonical ones (z, y, x); nothing is clipped."""
        axes, flips = self._orientation
        moved = np.asarray(points, dtype=np.int64).reshape(-1, 3)[:, axes]
        return np.where(flips, np.asarray(self.shape) - 1 - moved, moved)

    def to_raw(self, points: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Canonical voxel indices (N, 3) = (z, y, x) to raw ones (i, j, k): the inverse of `to_canonical`."""
        axes, flips = self._orientation
        moved = np.asarray(points, dtype=np.int64).reshape(-1, 3)
        return np.where(flips, np.asarray(self.shape) - 1 - moved, moved)[:, np.argsort(axes)]

    def box_to_canonical(self, lo: npt.ArrayLike, hi: npt.ArrayLike) -> Box:
        """A half-open box ``[lo, hi)`` in raw voxel edges (i, j, k) to a canonical one; nothing is clipped.

        Raises:
            ValueError: unless lo < hi along every axis.
        """
        axes, flips = self._orientation
        start, stop = (np.asarray(edges, dtype=np.float64).reshape(3)[axes] for edges in (lo, hi))
        size = np.asarray(self.shape)
        return Box.between(np.where(flips, size - stop, start), np.where(flips, size - start, stop))

    def to_raw_array(self, array: npt.NDArray[np.generic]) -> npt.NDArray[Any]:
        """A canonical array (D, H, W), such as a mask, in raw order (i, j, k).

        The copy is in Fortran order, which is how image files store it.

        Raises:
            ValueError: if the array does not have the volume's shape.
        """
        _require_shape(array, self.shape)
        axes, flips = self._orientation
        return np.array(_flipped(array, flips).transpose(np.argsort(axes)), order="F")

    def from_raw_array(self, array: npt.NDArray[np.generic]) -> npt.NDArray[Any]:
        """An array in raw order (i, j, k), such as a label map on the image's grid, in canonical order.

        The result is a C-contiguous copy.

        Raises:
            ValueError: if the array does not have the raw shape.
        """
        _require_shape(array, self.raw_shape)
        return np.array(_oriented(array, self._orientation), order="C")

    @cached_property
    def _orientation(self) -> _Orientation:
        return _orientation(self.affine)


class VolumeCache:
    """The volumes used last, at most `max_bytes` of them; safe to share between threads.

    A file that has changed since it was loaded is loaded again. Threads that ask for the same image share one
    loading; others need not wait for it.
    """

    def __init__(self, max_bytes: int) -> None:
        self._cache = ByteCache(max_bytes)

    @property
    def nbytes(self) -> int:
        """Memory of the voxels that are kept."""
        return self._cache.nbytes

    def get(self, path: str | Path, modality: str | None = None) -> Volume:
        """`load_volume`, or the volume that it gave before for the same unchanged file and modality.

        Raises:
            VolumeError: as `load_volume` does.
            UserError: as `load_volume` does.
        """
        path = Path(path)
        name = (str(path.absolute()), modality)
        key = (name, _identity(path))
        if key not in self._cache:
            self._cache.drop(name)
        return self._cache.get(key, lambda: load_volume(path, modality))


@native.reader
def load_volume(path: str | Path, modality: str | None = None, limits: ReadLimits | None = None) -> Volume:
    """Load a 3D image: NIfTI, NRRD, MetaImage, or a folder with one DICOM series, see `reading`.

    Args:
        path: the file or the folder.
        modality: one of `MODALITIES` or another of `MODALITY_NAMES`. Where it is None or "unknown", DICOM's
            Modality tag decides; failing that, an image with values of both air and tissue in HU counts as
            CT.
        limits: how much reading it may take.

    Raises:
        VolumeError: if the image is missing, unreadable or damaged, is not one 3D scalar volume (a fourth
            axis of length 1 is accepted, and so is a single slice), holds values that are not finite, or
            has an affine whose axes coincide.
        TooLargeError: if it would take more memory than the limits give it.
        UserError: if the modality's name is unknown.
    """
    path = Path(path)
    named = _modality(modality)
    identity = _identity(path)
    stored = read_volume(path, limits)
    told = MODALITY_NAMES.get(stored.modality.lower(), "unknown")
    return _volume(stored, path.name, identity, named if named != "unknown" else told)


@native.reader
def image_notes(path: str | Path) -> list[str]:
    """Read an image and return its notes only.

    Raises:
        VolumeError: as `load_volume` does.
        TooLargeError: as `load_volume` does.
    """
    return list(load_volume(path).notes)


def from_array(
    array: npt.NDArray[np.generic], spacing: Position = (1.0, 1.0, 1.0), modality: str = "unknown"
) -> Volume:
    """A volume from an array that is in canonical order already.

    The array is copied. Its raw order is (x, y, z), as if a file with an identity direction had been loaded.

    Args:
        array: (D, H, W), any real dtype.
        spacing: millimetres between voxels along (z, y, x).
        modality: one of `MODALITIES` or another of `MODALITY_NAMES`; "unknown" is guessed as `load_volume`
            does.

    Raises:
        VolumeError: if the array is not 3D or holds values that are not finite, or a spacing is not positive.
        UserError: if the modality's name is unknown.
    """
    z, y, x = (float(step) for step in spacing)
    if not all(math.isfinite(step) and step > 0 for step in (z, y, x)):
        raise VolumeError(f"An array's spacing must be positive, but it is {(z, y, x)}.")
    return from_grid(array.T, RAS_FROM_LPS @ np.diag([x, y, z, 1.0]), modality)


def from_grid(
    array: npt.NDArray[np.generic], affine: npt.NDArray[np.float64], modality: str = "unknown"
) -> Volume:
    """A volume from an array in raw order and the place of its voxels.

    The array is copied.

    Args:
        array: (i, j, k), any real dtype.
        affine: (4, 4), from raw indices to RAS millimetres.
        modality: as for `from_array`.

    Raises:
        VolumeError: if the array is not 3D or holds values that are not finite, or the axes of the
            affine coincide.
        UserError: if the modality's name is unknown.
    """
    named = _modality(modality)
    _require_scalar_3d("the array", array.shape, array.dtype)
    digest = hashlib.blake2b(np.ascontiguousarray(array.T).reshape(-1).data, digest_size=16)
    digest.update(repr((array.dtype.str, array.shape, affine.tolist())).encode())
    stored = Read(array, Placing.plain(affine), "array")
    return _volume(stored, "the array", f"array:{digest.hexdigest()}", named)


_Orientation = tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]
"""For each canonical axis: the raw axis that it comes from, and whether that axis is reversed."""


def _volume(stored: Read, name: str, identity: str, modality: str) -> Volume:
    _require_scalar_3d(name, stored.array.shape, stored.array.dtype)
    spacing = _require_axes(name, stored.affine)
    orientation = _orientation(stored.affine)
    array, step, offset, cut = compact(
        _oriented(stored.array, orientation), stored.slope, stored.intercept, name
    )
    array.flags.writeable = False
    volume = Volume(
        array=array,
        slope=step * stored.slope,
        intercept=offset * stored.slope + stored.intercept,
        spacing=as_position(spacing[orientation[0]]),
        modality=modality,
        key="",
        affine=stored.affine,
        raw_shape=as_index(stored.array.shape),
        meta={"name": name, "format": stored.format, **stored.meta},
        notes=(*stored.notes, *cut),
        placing=stored.placing,
    )
    if modality == "unknown":
        low, high = volume.value_range
        volume.modality = "ct" if low < CT_AIR_BELOW and high > CT_TISSUE_ABOVE else "unknown"
    # The modality decides how intensities are mapped, so what is computed from the volume depends on it.
    volume.key = f"{identity}:{volume.modality}"
    logger.debug("loaded %s: shape %s, %s, %s", name, volume.shape, array.dtype, volume.modality)
    return volume


def _orientation(affine: npt.NDArray[np.float64]) -> _Orientation:
    world = nib.io_orientation(affine)
    axes, flips = [], []
    for world_axis, sign in _TOWARDS:
        raw_axis = int(np.flatnonzero(world[:, 0] == world_axis)[0])
        axes.append(raw_axis)
        flips.append(world[raw_axis, 1] != sign)
    return np.asarray(axes, dtype=np.intp), np.asarray(flips, dtype=np.bool_)


def _oriented(array: npt.NDArray[Any], orientation: _Orientation) -> npt.NDArray[Any]:
    axes, flips = orientation
    return _flipped(array.transpose(axes), flips)


def _flipped(array: npt.NDArray[Any], flips: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    return array[tuple(slice(None, None, -1 if flip else 1) for flip in flips)]


def _identity(path: Path) -> str:
    """Changes with the image's files: their path, sizes and modification times."""
    with reading(path.name):
        if not path.exists():
            raise VolumeError(f"An image must be an existing file or folder, but there is no {path.name}.")
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.is_file())
        elif path.name.lower().endswith(NRRD_SUFFIXES + META_SUFFIXES):
            # The header may name the file of the voxels, which lies beside it.
            files = sorted({path, check_header(path).block.file})
        found = [(file.name, file.stat()) for file in files]
    states = [(name, status.st_mtime_ns, status.st_size) for name, status in found]
    return f"{path.absolute()}:{hashlib.blake2b(repr(states).encode(), digest_size=16).hexdigest()}"


def _modality(name: str | None) -> str:
    if name is None:
        return "unknown"
    try:
        return MODALITY_NAMES[name.lower()]
    except KeyError:
        raise UserError(
            f"The modality must be one of {', '.join(MODALITY_NAMES)}, but it is {name!r}."
        ) from None


def _require_scalar_3d(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "biuf":
        raise VolumeError(f"An image must have one real number in each voxel, but {name} has {dtype}.")
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise VolumeError(
            f"An image must have three axes, but {name} has {len(shape)}, of lengths {tuple(shape)}."
        )
    if 0 in shape:
        raise VolumeError(f"An image must have voxels, but {name} has the empty shape {tuple(shape)}.")


def _require_axes(name: str, affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The spacing along the raw axes, in millimetres."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and spacing.min() > 0):
        volume = 0.0
    else:
        volume = abs(float(np.linalg.det(affine[:3, :3] / spacing)))
    if volume < SINGULAR:
        raise VolumeError(
            f"An image's axes must have three directions, but the affine of {name} is {affine.tolist()}."
        )
    return spacing


def _require_shape(array: npt.NDArray[Any], shape: Index) -> None:
    if array.shape != shape:
        raise ValueError(f"the array must have shape {shape}, got {array.shape}")

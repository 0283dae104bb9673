"""The one loader: every image and every label is read here, whatever its source.

First the header is looked at by code of this project (`headers`, `dicom_files`), within limits that hold
before anything is allocated; then the voxels are read to their last checksum; then their positions,
intensities and notes are added.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import VolumeError
from .facts import HeaderFacts, ReadLimits, default_limits
from .headers import check_header, reading
from .placing import Placing, nifti_placing, place_notes
from .voxels import read_voxels


@dataclass(frozen=True, eq=False)
class Read:
    """What a file holds.

    Attributes:
        array: stored numbers; (i, j, k) in raw order, or (i, j, k, channels) where a voxel has several.
        placing: where they lie.
        format: "nifti", "nrrd", "metaimage" or "dicom".
        slope, intercept: ``real = array * slope + intercept``.
        modality: DICOM's code; empty where the file has none.
        fields: entries of a text header, such as the segments of 3D Slicer.
        meta: where it came from: for DICOM "series".
        notes: sentences about everything that had to be decided.
    """

    array: npt.NDArray[Any]
    placing: Placing
    format: str
    slope: float = 1.0
    intercept: float = 0.0
    modality: str = ""
    fields: dict[str, str] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def affine(self) -> npt.NDArray[np.float64]:
        """(4, 4), raw indices to RAS millimetres."""
        return self.placing.affine


def read_volume(path: Path, limits: ReadLimits | None = None) -> Read:
    """Read an image of one number in each voxel: a file, or a folder with one DICOM series.

    Raises:
        VolumeError: it is missing, damaged, incomplete or irregular, or has several numbers in each voxel.
        TooLargeError: it would take more memory than the limit.
    """
    found = read_channels(path, limits)
    if found.array.ndim != 3:
        raise VolumeError(
            f"An image must have three axes, with one real number in each voxel, but {path.name} has 4, of "
            f"lengths {found.array.shape}: {found.array.shape[3]} numbers in each voxel."
        )
    return found


def read_channels(path: Path, limits: ReadLimits | None = None) -> Read:
    """As `read_volume`, also with several numbers in each voxel.

    Raises:
        VolumeError: as `read_volume`.
        TooLargeError: as `read_volume`.
    """
    limits = limits or default_limits()
    with reading(path.name):
        if path.is_dir():
            return _read_folder(path, limits)
        facts = check_header(path, limits)
        array = read_voxels(facts)
        if facts.channel_axis is not None:
            array = np.moveaxis(array, facts.channel_axis, -1)
        placing = _placing(facts)
        return Read(
            array,
            placing,
            facts.format,
            facts.slope,
            facts.intercept,
            fields=dict(facts.fields),
            notes=[*facts.notes, *place_notes(placing, facts.space, facts.name)],
        )


def _placing(facts: HeaderFacts) -> Placing:
    return nifti_placing(facts.header, facts.name) if facts.affine is None else Placing.plain(facts.affine)


def _read_folder(folder: Path, limits: ReadLimits) -> Read:
    # Late, because the challenge's container reads no DICOM and has no pydicom.
    from .dicom_series import look_at_series, read_series

    series = look_at_series(folder, limits)
    array, slope, intercept = read_series(series, limits)
    return Read(
        array,
        Placing.plain(series.affine),
        "dicom",
        slope,
        intercept,
        series.modality,
        meta={"series": series.uid},
        notes=series.notes,
    )

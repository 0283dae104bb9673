"""Volumes as DICOM series of any orientation and modality: the demo's study, and the tests'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    UltrasoundImageStorage,
    generate_uid,
)

CLASSES: dict[str, UID] = {
    "CT": CTImageStorage,
    "MR": MRImageStorage,
    "PT": PositronEmissionTomographyImageStorage,
    "US": UltrasoundImageStorage,
}


@dataclass(frozen=True)
class Layout:
    """How slices lie in the patient: for columns, rows and slices the axis (0 L, 1 P, 2 S) and its sign."""

    columns: tuple[int, int]
    rows: tuple[int, int]
    slices: tuple[int, int]

    @property
    def axes(self) -> tuple[tuple[int, int], ...]:
        """In the order of the voxel index (i, j, k)."""
        return self.columns, self.rows, self.slices


LAYOUTS = {
    "axial": Layout((0, 1), (1, 1), (2, 1)),
    "reversed": Layout((0, 1), (1, 1), (2, -1)),
    "sagittal": Layout((1, 1), (2, -1), (0, 1)),
    "coronal": Layout((0, 1), (2, -1), (1, 1)),
}


@dataclass(frozen=True)
class WrittenSeries:
    """A series that was written."""

    folder: Path
    study: str
    uid: str
    shape: tuple[int, int, int]
    """Extent along (i, j, k): columns, rows, slices."""
    affine: npt.NDArray[np.float64]
    """From (i, j, k) to LPS millimetres."""


def write_series(
    folder: Path,
    array: npt.NDArray[np.integer],
    spacing: Sequence[float],
    layout: Layout = LAYOUTS["axial"],
    modality: str = "CT",
    slope: float = 1.0,
    turn: npt.NDArray[np.float64] | None = None,
    description: str = "generated",
) -> WrittenSeries:
    """Write a volume as one file for each slice, with names that say nothing about their order.

    Args:
        folder: made if missing.
        array: (x, y, z), whose indices grow towards Left, Posterior and Superior.
        spacing: millimetres along (x, y, z).
        layout: which of these axes are columns, rows and slices.
        modality: a key of `CLASSES`.
        slope: RescaleSlope; `array` holds stored values.
        turn: (3, 3), a rotation of the whole volume in the patient.
        description: of the series.
    """
    folder.mkdir(parents=True, exist_ok=True)
    turn = np.eye(3) if turn is None else turn
    stored = array.transpose([axis for axis, _ in layout.axes])
    stored = stored[tuple(slice(None, None, sign) for _, sign in layout.axes)]
    directions = np.stack([turn[:, axis] * sign for axis, sign in layout.axes], axis=1)
    steps = np.asarray([spacing[axis] for axis, _ in layout.axes])
    first = np.asarray([0 if sign > 0 else array.shape[axis] - 1 for axis, sign in layout.axes], float)
    corner = np.zeros(3)
    for (axis, _), index in zip(layout.axes, first, strict=True):
        corner[axis] = index * spacing[axis]
    centre = (np.asarray(array.shape) - 1) * np.asarray(spacing) / 2
    affine = np.eye(4)
    affine[:3, :3] = directions * steps
    affine[:3, 3] = turn @ (corner - centre)

    study, uid, frame = generate_uid(), generate_uid(), generate_uid()
    numbers = np.random.default_rng(0).permutation(stored.shape[2])
    for k in range(stored.shape[2]):
        data = _described(modality, description)
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, uid, frame
        data.InstanceNumber = k + 1
        data.RescaleIntercept, data.RescaleSlope = 0, slope
        data.Rows, data.Columns = stored.shape[1], stored.shape[0]
        data.PixelSpacing = [float(steps[1]), float(steps[0])]
        data.SliceThickness = float(steps[2])
        data.ImageOrientationPatient = [round(v, 10) for v in directions[:, :2].T.ravel().tolist()]
        position = affine[:3, 3] + k * affine[:3, 2]
        data.ImagePositionPatient = [round(v, 8) for v in position.tolist()]
        data.PixelData = np.ascontiguousarray(stored[:, :, k].T.astype("<i2")).tobytes()
        data.save_as(folder / f"{numbers[k]:04d}.dcm", enforce_file_format=True)
    return WrittenSeries(folder, study, uid, tuple(stored.shape), affine)


def _described(modality: str, description: str) -> FileDataset:
    """A slice without its place and voxels."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CLASSES[modality]
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Modality, data.SeriesDescription, data.StudyDescription = modality, description, "generated study"
    data.PatientID, data.PatientName, data.PatientSex = "GENERATED", "Generated^Volume", "O"
    data.PatientBirthDate, data.StudyDate, data.StudyTime = "20000101", "20260101", "120000"
    data.StudyID, data.AccessionNumber, data.ReferringPhysicianName = "1", description[:16], ""
    data.SeriesNumber = 1
    data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
    data.WindowCenter, data.WindowWidth = 40, 400
    return data

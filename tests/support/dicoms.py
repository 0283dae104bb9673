"""DICOM series of any orientation and modality, and an archive with DICOMweb to hold them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import requests
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

from tests.support.live import START_SECONDS, free_port, stop

CLASSES: dict[str, UID] = {
    "CT": CTImageStorage,
    "MR": MRImageStorage,
    "PT": PositronEmissionTomographyImageStorage,
    "US": UltrasoundImageStorage,
}
ORTHANC_PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


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
class Series:
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
) -> Series:
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
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CLASSES[modality]
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, uid, frame
        data.Modality, data.SeriesDescription, data.StudyDescription = (
            modality,
            description,
            "generated study",
        )
        data.PatientID, data.PatientName, data.PatientSex = "GENERATED", "Generated^Volume", "O"
        data.PatientBirthDate, data.StudyDate, data.StudyTime = "20000101", "20260101", "120000"
        data.StudyID, data.AccessionNumber, data.ReferringPhysicianName = "1", description, ""
        data.SeriesNumber, data.InstanceNumber = 1, k + 1
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.Rows, data.Columns = stored.shape[1], stored.shape[0]
        data.PixelSpacing = [float(steps[1]), float(steps[0])]
        data.SliceThickness = float(steps[2])
        data.ImageOrientationPatient = [round(v, 10) for v in directions[:, :2].T.ravel().tolist()]
        position = affine[:3, 3] + k * affine[:3, 2]
        data.ImagePositionPatient = [round(v, 8) for v in position.tolist()]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleIntercept, data.RescaleSlope = 0, slope
        data.WindowCenter, data.WindowWidth = 40, 400
        data.PixelData = np.ascontiguousarray(stored[:, :, k].T.astype("<i2")).tobytes()
        data.save_as(folder / f"{numbers[k]:04d}.dcm", enforce_file_format=True)
    return Series(folder, study, uid, tuple(stored.shape), affine)


@dataclass
class Archive:
    """A running Orthanc."""

    url: str

    @property
    def dicomweb(self) -> str:
        return f"{self.url}/dicom-web"

    def __post_init__(self) -> None:
        self.http = requests.Session()
        # No proxy between the tests and the loopback address.
        self.http.trust_env = False

    def add(self, folder: Path) -> None:
        """Store every file of a folder."""
        for path in sorted(folder.iterdir()):
            self.http.post(f"{self.url}/instances", data=path.read_bytes(), timeout=60).raise_for_status()

    def segmentations(self, study: str) -> list[bytes]:
        """The files of a study's DICOM SEG objects."""
        query = {"Level": "Series", "Query": {"StudyInstanceUID": study, "Modality": "SEG"}, "Expand": True}
        found = self.http.post(f"{self.url}/tools/find", data=json.dumps(query), timeout=60).json()
        instances = [instance for series in found for instance in series["Instances"]]
        return [self.http.get(f"{self.url}/instances/{id}/file", timeout=60).content for id in instances]


@contextmanager
def orthanc(folder: Path) -> Iterator[Archive]:
    """Debian's Orthanc with its DICOMweb plugin on a port of its own; skips where it is not installed."""
    program = shutil.which("Orthanc", path=os.pathsep.join([os.environ["PATH"], "/usr/sbin"]))
    if program is None or not ORTHANC_PLUGIN.exists():
        pytest.skip("needs Debian's packages orthanc and orthanc-dicomweb")
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    settings = {
        "Name": "tests",
        "HttpPort": port,
        "DicomServerEnabled": False,
        "AuthenticationEnabled": False,
        "RemoteAccessAllowed": False,
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [str(ORTHANC_PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "orthanc.log").open("wb") as log:
        command = [program, str(folder / "orthanc.json")]
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        archive = Archive(f"http://127.0.0.1:{port}")
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                try:
                    archive.http.get(f"{archive.dicomweb}/studies", timeout=5).raise_for_status()
                    break
                except requests.RequestException:
                    assert process.poll() is None and time.monotonic() < deadline, (
                        f"Orthanc did not start:\n{(folder / 'orthanc.log').read_text()[-4000:]}"
                    )
                    time.sleep(0.2)
            yield archive
        finally:
            stop(process)

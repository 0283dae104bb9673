"""A small generated DICOM series and a segmentation of it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from highdicom.content import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentDescription
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

SIZE = (20, 18, 10)


def make_series(folder: Path) -> Path:
    """A CT of `SIZE` voxels (i, j, k)."""
    folder.mkdir()
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    voxels = np.random.default_rng(2).integers(0, 1000, SIZE).astype(np.int16)
    for k in range(SIZE[2]):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, frame
        data.Modality, data.PatientID, data.PatientName = "CT", "generated", "Generated^Volume"
        data.PatientBirthDate, data.PatientSex, data.AccessionNumber = "", "", ""
        data.StudyID, data.ReferringPhysicianName = "1", ""
        data.StudyDate = data.SeriesDate = datetime.date(2020, 1, 1).strftime("%Y%m%d")
        data.StudyTime = data.SeriesTime = "120000"
        data.SeriesNumber, data.InstanceNumber = 1, k + 1
        data.ImagePositionPatient = [-7.0, 3.0, 12.0 + 2.5 * k]
        data.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.SliceThickness = [1.1, 0.8], 2.5
        data.Rows, data.Columns = SIZE[1], SIZE[0]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleIntercept, data.RescaleSlope = 0, 1
        data.PixelData = voxels[:, :, k].T.tobytes()
        data.save_as(folder / f"{k:03d}.dcm", enforce_file_format=True)
    return folder


def make_segmentation(
    series: Path,
    mask: np.ndarray,
    names: Sequence[str],
    path: Path,
    kind: str = "BINARY",
    omit_empty: bool = True,
) -> Path:
    """A DICOM SEG by highdicom.

    Args:
        series: folder of the source images.
        mask: a label map (i, j, k), or (i, j, k, segments) of masks that may overlap or be fractions.
        names: of the segments.
        path: to write.
        kind: BINARY, FRACTIONAL or LABELMAP.
        omit_empty: whether slices without a voxel have no frame.
    """
    sources = [pydicom.dcmread(p) for p in sorted(series.iterdir())]
    algorithm = AlgorithmIdentificationSequence("generated", codes.DCM.ArtificialIntelligence, "1")
    segments = [
        SegmentDescription(number, name, codes.SCT.AnatomicalStructure, codes.SCT.Tissue, "MANUAL", algorithm)
        for number, name in enumerate(names, start=1)
    ]
    Segmentation(
        sources,
        np.ascontiguousarray(mask.transpose(2, 1, 0, *range(3, mask.ndim))),
        kind,
        segments,
        generate_uid(),
        300,
        generate_uid(),
        1,
        "DualClickMed",
        "generated",
        "1",
        "1",
        omit_empty_frames=omit_empty,
    ).save_as(path)
    return path


def read_segments(dataset: pydicom.Dataset) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Each segment of a DICOM SEG by its name, by highdicom: a mask (i, j, k) and its affine (LPS)."""
    segmentation = Segmentation.from_dataset(dataset)
    found = {}
    for number in segmentation.segment_numbers:
        volume = segmentation.get_volume(segment_numbers=[number])
        name = str(segmentation.get_segment_description(number).SegmentLabel)
        mask = np.asarray(volume.array)[..., 0].transpose(2, 1, 0) != 0
        found[name] = mask, np.asarray(volume.affine)[:, [2, 1, 0, 3]]
    return found

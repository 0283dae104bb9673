"""A small generated DICOM series and a segmentation of it."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
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
        data.save_as(folder / f"{k:03d}.dcm", write_like_original=False)
    return folder


def make_segmentation(
    pydicom_seg: Any, series: Path, mask: np.ndarray, names: Sequence[str], path: Path
) -> Path:
    """A DICOM SEG that leaves empty slices out, as MONAI Label's converter does."""
    segments = [
        {
            "labelID": number,
            "SegmentLabel": name,
            "SegmentDescription": name,
            "SegmentAlgorithmType": "MANUAL",
            "SegmentedPropertyCategoryCodeSequence": {
                "CodeValue": "123037004",
                "CodingSchemeDesignator": "SCT",
                "CodeMeaning": "Anatomical Structure",
            },
            "SegmentedPropertyTypeCodeSequence": {
                "CodeValue": "78961009",
                "CodingSchemeDesignator": "SCT",
                "CodeMeaning": name,
            },
        }
        for number, name in enumerate(names, start=1)
    ]
    template = pydicom_seg.template.from_dcmqi_metainfo(
        {
            "ContentCreatorName": "Reader",
            "SeriesDescription": "Segmentation",
            "SeriesNumber": "300",
            "InstanceNumber": "1",
            "segmentAttributes": [segments],
            "ContentLabel": "SEGMENTATION",
            "ContentDescription": "Generated",
        }
    )
    writer = pydicom_seg.MultiClassWriter(
        template=template, inplane_cropping=False, skip_empty_slices=True, skip_missing_segment=False
    )
    sources = [pydicom.dcmread(p, stop_before_pixels=True) for p in sorted(series.iterdir())]
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(p) for p in sorted(series.iterdir())])
    reference = reader.Execute()
    image = sitk.GetImageFromArray(np.ascontiguousarray(mask.T))
    image.CopyInformation(reference)
    writer.write(image, sources).save_as(path)
    return path

"""Labels of a DICOM series as a DICOM SEG object (PS3.3 A.51), frame by frame on the slices of the series.

MONAI Label 0.8.5 names segments by the rank of their values, so that a missing label shifts the names of all
that follow, and gives all of them the code of the spleen. Here a name goes by what the file or the request
says (`label_files.read_labels`), and each frame takes orientation and position from the slice that it lies
on. Slices without a voxel of a segment have no frame. Texts are in UTF-8 whatever the series' are in.
"""

from __future__ import annotations

import datetime
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as Items
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage, generate_uid
from pydicom.valuerep import format_number_as_ds

from ..errors import UserError
from .dicom_series import Series, look_at_series
from .facts import ReadLimits, default_limits
from .headers import reading
from .label_files import NamedLabels, read_labels
from .label_map import Colour, LabelMap, colour_of
from .planes import Plane
from .seg_frames import plain_label
from .volume import Volume, load_volume

SERIES_NUMBER = 300
MAKER = "DualClickMed"
_COPIED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "PatientAge", "PatientWeight"),
    *("StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "StudyDescription", "AccessionNumber"),
    *("ReferringPhysicianName", "FrameOfReferenceUID", "PositionReferenceIndicator"),
)
"""Tags that are copied from the series: patient, study and frame of reference."""
_EMPTY = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime")
_STRUCTURE = ("123037004", "SCT", "Anatomical Structure")
_TISSUE = ("85756007", "SCT", "Tissue")


def converted(
    series: str | Path,
    label: str | Path,
    label_info: Sequence[Mapping[str, Any]] | None,
    known: LabelMap,
    limits: ReadLimits | None = None,
) -> str:
    """Write a label file as a DICOM SEG object to a new temporary file, which the caller removes.

    Args:
        series: the folder of the series' files.
        label: NIfTI, NRRD or 3D Slicer's segmentation NRRD.
        label_info: what was submitted with it, see `label_files.read_labels`.
        known: the server's labels.
        limits: how much reading may take.

    Returns:
        The path.

    Raises:
        LabelError: the label cannot be used.
        VolumeError: the series cannot be read.
    """
    volume = load_volume(Path(series), None, limits)
    labels = read_labels(label, volume, {"label_info": list(label_info or ())}, known, limits)
    dataset = segmentation(labels, volume, Path(series), limits)
    handle, name = tempfile.mkstemp(prefix="dualclickmed-", suffix=".dcm")
    os.close(handle)
    try:
        dataset.save_as(name, enforce_file_format=True)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return name


def segmentation(
    labels: NamedLabels, volume: Volume, series: Path, limits: ReadLimits | None = None
) -> FileDataset:
    """The DICOM SEG object of some labels, segments in the order of the layers and their values.

    Args:
        labels: on the volume's grid.
        volume: the series, loaded from its folder.
        series: that folder.
        limits: how much reading it may take.

    Raises:
        UserError: the series has no positions of its slices.
    """
    with reading(series.name):
        found = look_at_series(series, limits or default_limits())
    _require_places(found, series.name)
    source = found.headers[0]
    dataset = _header(source)
    frames: list[npt.NDArray[np.bool_]] = []
    groups: list[Dataset] = []
    segments: list[Dataset] = []
    organization = generate_uid()
    for layer, names in zip(labels.layers, labels.names, strict=True):
        raw = volume.to_raw_array(layer)
        for value, name in names.items():
            number = len(segments) + 1
            segments.append(_segment(number, name))
            mask = raw == value
            for k in np.flatnonzero(mask.any(axis=(0, 1))).tolist():
                frames.append(mask[:, :, k].T)
                groups.append(_frame(number, k, found))
    dataset.SegmentSequence = Items(segments)
    dataset.DimensionOrganizationSequence = Items([_item(DimensionOrganizationUID=organization)])
    dataset.DimensionIndexSequence = Items(
        [
            _item(
                DimensionOrganizationUID=organization,
                DimensionIndexPointer=pointer,
                FunctionalGroupPointer=group,
                DimensionDescriptionLabel=text,
            )
            for pointer, group, text in (
                (0x0062000B, 0x0062000A, "ReferencedSegmentNumber"),
                (0x00200032, 0x00209113, "ImagePositionPatient"),
            )
        ]
    )
    dataset.SharedFunctionalGroupsSequence = Items([_shared(found)])
    dataset.PerFrameFunctionalGroupsSequence = Items(groups)
    dataset.ReferencedSeriesSequence = Items([_referenced(found)])
    dataset.NumberOfFrames = len(frames)
    # Frames follow one another without padding, bit by bit.
    bits = np.packbits(np.concatenate([frame.ravel() for frame in frames]), bitorder="little").tobytes()
    dataset.PixelData = bits + b"\0" * (len(bits) % 2)
    return dataset


def _header(source: Dataset) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SegmentationStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    for keyword in _EMPTY:
        setattr(dataset, keyword, "")
    dataset.SpecificCharacterSet = "ISO_IR 192"
    for keyword in _COPIED:
        if keyword in source:
            # As text, because the bytes may be in another character set.
            value = source[keyword].value
            parts = [str(part) for part in value] if isinstance(value, MultiValue) else str(value or "")
            setattr(dataset, keyword, parts)
    if "FrameOfReferenceUID" not in dataset:
        dataset.FrameOfReferenceUID = generate_uid()
    now = datetime.datetime.now()
    dataset.SOPClassUID, dataset.SOPInstanceUID = SegmentationStorage, meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID, dataset.SeriesNumber, dataset.InstanceNumber = generate_uid(), SERIES_NUMBER, 1
    dataset.Modality, dataset.SeriesDescription = "SEG", f"{MAKER} segmentation"
    dataset.ContentDate = dataset.SeriesDate = now.strftime("%Y%m%d")
    dataset.ContentTime = dataset.SeriesTime = now.strftime("%H%M%S.%f")
    dataset.Manufacturer = dataset.ManufacturerModelName = MAKER
    dataset.DeviceSerialNumber, dataset.SoftwareVersions = "0", MAKER
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.ContentLabel, dataset.ContentDescription = "SEGMENTATION", "Interactive segmentation"
    dataset.ContentCreatorName = ""
    dataset.SegmentationType, dataset.SegmentsOverlap = "BINARY", "UNDEFINED"
    dataset.LossyImageCompression = "00"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = source.Rows, source.Columns
    dataset.BitsAllocated = dataset.BitsStored = 1
    dataset.HighBit = dataset.PixelRepresentation = 0
    return dataset


def _segment(number: int, name: str) -> Dataset:
    return _item(
        SegmentNumber=number,
        SegmentLabel=plain_label(name),
        SegmentDescription=name,
        SegmentAlgorithmType="SEMIAUTOMATIC",
        SegmentAlgorithmName=MAKER,
        SegmentedPropertyCategoryCodeSequence=Items([_code(*_STRUCTURE)]),
        # A label's name does not tell reliably what it is.
        SegmentedPropertyTypeCodeSequence=Items([_code(*_TISSUE)]),
        RecommendedDisplayCIELabValue=_cielab(colour_of(name)),
    )


def _require_places(series: Series, name: str) -> None:
    """Check that the slices have positions, which a segmentation's frames repeat."""
    missing = [
        keyword
        for keyword, absent in (
            ("ImagePositionPatient", any(plane.position is None for plane in series.planes)),
            ("ImageOrientationPatient", any(plane.directions is None for plane in series.planes)),
            ("PixelSpacing", any(plane.spacing is None for plane in series.planes)),
        )
        if absent
    ]
    if missing:
        raise UserError(
            f"A DICOM SEG lies on the slices of its series, but those of {name} have no "
            f"{', '.join(missing)}: "
            "ask for another kind of file."
        )


def _frame(segment: int, k: int, series: Series) -> Dataset:
    plane = series.planes[k]
    source = series.headers[0 if series.frames else k]
    image = _item(
        ReferencedSOPClassUID=source.SOPClassUID,
        ReferencedSOPInstanceUID=source.SOPInstanceUID,
        **({"ReferencedFrameNumber": plane.number + 1} if series.frames else {}),
        SpatialLocationsPreserved="YES",
        PurposeOfReferenceCodeSequence=Items(
            [_code("121322", "DCM", "Source image for image processing operation")]
        ),
    )
    derivation = _item(
        SourceImageSequence=Items([image]),
        DerivationCodeSequence=Items([_code("113076", "DCM", "Segmentation")]),
    )
    return _item(
        FrameContentSequence=Items([_item(DimensionIndexValues=[segment, k + 1])]),
        PlanePositionSequence=Items([_item(ImagePositionPatient=_decimals(plane.position))]),
        SegmentIdentificationSequence=Items([_item(ReferencedSegmentNumber=segment)]),
        DerivationImageSequence=Items([derivation]),
    )


def _shared(series: Series) -> Dataset:
    plane: Plane = series.planes[0]
    thickness = float(np.linalg.norm(series.affine[:3, 2]))
    measures = _item(
        PixelSpacing=_decimals(plane.spacing),
        SliceThickness=f"{thickness:.10g}",
        SpacingBetweenSlices=f"{thickness:.10g}",
    )
    orientation = _item(ImageOrientationPatient=_decimals(plane.directions))
    return _item(
        PixelMeasuresSequence=Items([measures]),
        PlaneOrientationSequence=Items([orientation]),
    )


def _referenced(series: Series) -> Dataset:
    instances = [
        _item(ReferencedSOPClassUID=source.SOPClassUID, ReferencedSOPInstanceUID=source.SOPInstanceUID)
        for source in series.headers
    ]
    return _item(SeriesInstanceUID=series.uid, ReferencedInstanceSequence=Items(instances))


def _decimals(values: npt.NDArray[np.float64] | None) -> list[str]:
    """Decimal strings of at most 16 characters (PS3.5, value representation DS)."""
    return [] if values is None else [format_number_as_ds(float(value)) for value in values.ravel()]


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    return _item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _item(**elements: Any) -> Dataset:
    item = Dataset()
    for keyword, value in elements.items():
        setattr(item, keyword, value)
    return item


def _cielab(colour: Colour) -> list[int]:
    """sRGB to CIELab as DICOM stores it: three 16-bit numbers (PS3.3 C.10.7.1.1)."""
    levels = np.asarray(colour) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    # The matrix of sRGB and its white point, D65 adapted to D50 as DICOM wants.
    matrix = [
        [0.4360747, 0.3850649, 0.1430804],
        [0.2225045, 0.7168786, 0.0606169],
        [0.0139322, 0.0971045, 0.7141733],
    ]
    x, y, z = np.asarray(matrix) @ linear / (0.9642, 1.0, 0.8249)
    fx, fy, fz = (v ** (1 / 3) if v > 216 / 24389 else (24389 / 27 * v + 16) / 116 for v in (x, y, z))
    lightness, a, b = 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)
    scaled = (lightness / 100 * 65535, (a + 128) / 255 * 65535, (b + 128) / 255 * 65535)
    return [int(np.clip(round(v), 0, 65535)) for v in scaled]

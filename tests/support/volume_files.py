"""One volume as the files that programs write: every format, byte order, packing and way to tell a place."""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

Array = npt.NDArray[np.generic]
Affine = npt.NDArray[np.float64]

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
_NRRD_TYPES = {"float32": "float", "float64": "double"}
_META_TYPES = {
    **{"int8": "MET_CHAR", "uint8": "MET_UCHAR", "int16": "MET_SHORT", "uint16": "MET_USHORT"},
    **{"int32": "MET_INT", "uint32": "MET_UINT", "int64": "MET_LONG_LONG", "uint64": "MET_ULONG_LONG"},
    **{"float32": "MET_FLOAT", "float64": "MET_DOUBLE"},
}


def nifti(
    array: Array,
    lps: Affine,
    *,
    version: int = 1,
    codes: tuple[int, int] = (1, 1),
    unit: int = 2,
    big: bool = False,
    slope: float = 1.0,
    qform: Affine | None = None,
) -> bytes:
    """A NIfTI file.

    Args:
        array: (i, j, k). lps: where it lies, in the file's unit.
        version: 1 or 2. codes: of sform and qform. unit: NIfTI's code. big: byte order. slope: of the values.
        qform: another place for the qform (LPS).
    """
    kind = nib.Nifti1Image if version == 1 else nib.Nifti2Image
    header = kind.header_class(endianness=">" if big else "<")
    header.set_data_dtype(array.dtype.newbyteorder(">" if big else "<"))
    image = kind(array, None, header)
    image.header.set_data_dtype(array.dtype)
    affine = RAS_FROM_LPS @ lps
    image.set_sform(affine, codes[0])
    # Of a sheared grid what is nearest to it; sizes of voxels have to be there in any case.
    image.set_qform(affine if qform is None else RAS_FROM_LPS @ qform, codes[1], strip_shears=True)
    image.header["xyzt_units"] = unit
    image.header.set_slope_inter(slope, 0)
    return image.to_bytes()


def nrrd(
    array: Array, lps: Affine, *, encoding: str = "gzip", big: bool = False, space: str = "LPS"
) -> tuple[bytes, bytes]:
    """The header and the voxels of a NRRD file; an attached header ends with an empty line."""
    signs = {"LPS": (1, 1, 1), "RAS": (-1, -1, 1), "LAS": (1, -1, 1)}[space]
    name = {
        "LPS": "left-posterior-superior",
        "RAS": "right-anterior-superior",
        "LAS": "left-anterior-superior",
    }[space]
    vectors = [f"({','.join(repr(float(v)) for v in column * signs)})" for column in lps[:3].T]
    lines = [
        "NRRD0004",
        "# as some program writes it",
        f"type: {_NRRD_TYPES.get(array.dtype.name, array.dtype.name)}",
        "dimension: 3",
        f"space: {name}",
        f"sizes: {' '.join(map(str, array.shape))}",
        f"space directions: {' '.join(vectors[:3])}",
        "kinds: domain domain domain",
        f"endian: {'big' if big else 'little'}",
        f"encoding: {encoding}",
        f"space origin: {vectors[3]}",
    ]
    raw = array.astype(array.dtype.newbyteorder(">" if big else "<")).tobytes(order="F")
    packed = {
        "raw": lambda: raw,
        "gzip": lambda: gzip.compress(raw),
        "bzip2": lambda: bz2.compress(raw),
        "hex": lambda: raw.hex().encode(),
        "ascii": lambda: " ".join(map(repr, array.ravel(order="F").tolist())).encode(),
    }[encoding]()
    return ("\n".join(lines) + "\n").encode(), packed


def meta(
    array: Array, lps: Affine, *, packed: bool = False, big: bool = False, data: str = "LOCAL"
) -> tuple[bytes, bytes]:
    """The header and the voxels of a MetaImage."""
    steps = np.linalg.norm(lps[:3, :3], axis=0)
    raw = array.astype(array.dtype.newbyteorder(">" if big else "<")).tobytes(order="F")
    voxels = zlib.compress(raw) if packed else raw

    def numbers(values: npt.ArrayLike) -> str:
        return " ".join(repr(float(v)) for v in np.ravel(values))

    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        f"BinaryDataByteOrderMSB = {big}",
        f"CompressedData = {packed}",
        *([f"CompressedDataSize = {len(voxels)}"] if packed else []),
        # One axis after the other.
        f"TransformMatrix = {numbers((lps[:3, :3] / steps).T)}",
        f"Offset = {numbers(lps[:3, 3])}",
        "CenterOfRotation = 0 0 0",
        "AnatomicalOrientation = LPS",
        f"ElementSpacing = {numbers(steps)}",
        f"DimSize = {' '.join(map(str, array.shape))}",
        f"ElementType = {_META_TYPES[array.dtype.name]}",
        f"ElementDataFile = {data}",
    ]
    return ("\n".join(lines) + "\n").encode(), voxels


def dicom_slices(
    array: Array,
    lps: Affine,
    *,
    syntax: str = ExplicitVRLittleEndian,
    positions: Sequence[npt.NDArray[np.float64]] | None = None,
    **tags: object,
) -> list[Dataset]:
    """A series of CT slices, one dataset for each k.

    Args:
        array: (i, j, k) of 8 or 16 bits.
        lps: where it lies; i and j at right angles.
        syntax: transfer syntax; pixels are not packed.
        positions: of the slices, instead of equal steps.
        tags: for all of them.
    """
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    made: list[Dataset] = []
    for k in range(array.shape[2]):
        data = _dicom(array, lps, CTImageStorage, syntax)
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = study, series, frame
        data.InstanceNumber = k + 1
        data.ImagePositionPatient = _texts(
            lps[:3] @ [0, 0, k, 1] if positions is None else np.asarray(positions[k])
        )
        data.ImageOrientationPatient = _texts((lps[:3, :2] / np.linalg.norm(lps[:3, :2], axis=0)).T)
        steps = np.linalg.norm(lps[:3, :3], axis=0)
        data.PixelSpacing = _texts([steps[1], steps[0]])
        data.SliceThickness = _texts([steps[2]])[0]
        data.RescaleSlope, data.RescaleIntercept = 1, 0
        data.PixelData = _even(array[:, :, k].T.tobytes())
        for name, value in tags.items():
            setattr(data, name, value)
        made.append(data)
    return made


def dicom_frames(
    array: Array, lps: Affine, places: Sequence[float] | None = None, slopes: Sequence[float] | None = None
) -> Dataset:
    """An enhanced CT: one file whose frames lie at lps @ (0, 0, place, 1), in the order of the array's k."""
    data = _dicom(array, lps, ENHANCED_CT, ExplicitVRLittleEndian)
    data.StudyInstanceUID, data.SeriesInstanceUID = generate_uid(), generate_uid()
    data.FrameOfReferenceUID, data.InstanceNumber = generate_uid(), 1
    data.NumberOfFrames = array.shape[2]
    steps = np.linalg.norm(lps[:3, :3], axis=0)
    measures, plane = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = _texts([steps[1], steps[0]]), _texts([steps[2]])[0]
    plane.ImageOrientationPatient = _texts((lps[:3, :2] / steps[:2]).T)
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    groups = []
    for k in range(array.shape[2]):
        position, values, group = Dataset(), Dataset(), Dataset()
        place = k if places is None else places[k]
        position.ImagePositionPatient = _texts(lps[:3] @ [0, 0, place, 1])
        values.RescaleSlope, values.RescaleIntercept = (1 if slopes is None else slopes[k]), 0
        values.RescaleType = "HU"
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [position], [values]
        groups.append(group)
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = [shared], groups
    data.PixelData = _even(array.transpose(2, 1, 0).tobytes())
    return data


def save_dicom(folder: Path, *datasets: Dataset) -> Path:
    """A folder with these datasets, one file each."""
    folder.mkdir(exist_ok=True)
    for number, data in enumerate(datasets):
        data.save_as(folder / f"{number:03d}.dcm", enforce_file_format=True)
    return folder


def dicom_bytes(dataset: Dataset) -> bytes:
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _dicom(array: Array, lps: Affine, kind: str, syntax: str) -> FileDataset:
    meta_data = FileMetaDataset()
    meta_data.MediaStorageSOPClassUID, meta_data.MediaStorageSOPInstanceUID = UID(kind), generate_uid()
    meta_data.TransferSyntaxUID = UID(syntax)
    data = FileDataset(
        "",
        {},
        file_meta=meta_data,
        preamble=b"\0" * 128,
        is_implicit_VR=UID(syntax).is_implicit_VR,
        is_little_endian=UID(syntax).is_little_endian,
    )
    data.SOPClassUID, data.SOPInstanceUID = kind, meta_data.MediaStorageSOPInstanceUID
    data.Modality, data.PatientID, data.PatientName = "CT", "generated", "Generated"
    data.PatientBirthDate = data.PatientSex = data.AccessionNumber = data.ReferringPhysicianName = ""
    data.StudyID, data.SeriesNumber, data.StudyDate, data.StudyTime = "1", 1, "20200101", "120000"
    data.Rows, data.Columns = array.shape[1], array.shape[0]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    bits = 8 * array.dtype.itemsize
    data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
    data.PixelRepresentation = int(array.dtype.kind == "i")
    return data


def _texts(values: npt.ArrayLike) -> list[str]:
    """Numbers in the 16 characters that DICOM gives a decimal string."""
    return [pydicom.valuerep.format_number_as_ds(float(v)) for v in np.ravel(values)]


def _even(pixels: bytes) -> bytes:
    return pixels + b"\0" * (len(pixels) % 2)

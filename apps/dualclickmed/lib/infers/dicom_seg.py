"""Lets `imaging.dicom_seg` write MONAI Label's DICOM SEG objects."""

from __future__ import annotations

from typing import Any

from monailabel.datastore import dicom
from monailabel.endpoints import infer

from ..imaging.dicom_seg import converted
from ..imaging.label_map import LabelMap


def install(known: LabelMap) -> None:
    """Replace MONAI Label's conversion to DICOM SEG, for results and for submitted labels."""

    def nifti_to_dicom_seg(
        series_dir: str, label: str, label_info: Any, file_ext: str = "*", use_itk: bool = True
    ) -> str:
        return converted(series_dir, label, label_info, known)

    infer.nifti_to_dicom_seg = dicom.nifti_to_dicom_seg = nifti_to_dicom_seg

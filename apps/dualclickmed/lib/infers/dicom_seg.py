"""MONAI Label's DICOM SEG objects are written by `imaging.dicom_seg`."""

from __future__ import annotations

from typing import Any

from monailabel.datastore import dicom
from monailabel.endpoints import infer

from ..imaging.dicom_seg import converted
from ..imaging.label_map import LabelMap


def install(known: LabelMap) -> None:
    """Let MONAI Label make its DICOM SEG objects here: of results, and of labels that are submitted."""

    def nifti_to_dicom_seg(
        series_dir: str, label: str, label_info: Any, file_ext: str = "*", use_itk: bool = True
    ) -> str:
        return converted(series_dir, label, label_info, known)

    infer.nifti_to_dicom_seg = dicom.nifti_to_dicom_seg = nifti_to_dicom_seg

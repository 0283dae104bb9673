"""Stands in for pydicom-seg, whose last release needs pydicom 2 and numpy 1.

MONAI Label imports it where it converts DICOM SEG objects; this app reads and writes those with its own code.
"""


def __getattr__(name: str) -> object:
    raise AttributeError(
        f"pydicom_seg.{name} is not here: DualClickMed reads and writes DICOM SEG itself. "
        "For another app install the real package: pip install --force-reinstall pydicom-seg==0.4.1"
    )

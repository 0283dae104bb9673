"""Stands in for pydicom-seg, whose last release needs pydicom 2 and numpy 1.

MONAI Label imports it where it converts DICOM SEG objects; this app reads and writes those with its own code.
"""


def __getattr__(name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(name)
    raise ImportError(
        f"pydicom_seg.{name} is not here: this is the stand-in that comes with DualClickMed, which reads DICOM SEG "
        "itself. For another app, install the real one: pip install pydicom-seg"
    )

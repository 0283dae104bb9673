"""Whether the slices of a DICOM series belong to one image, by their tags other than position."""

from __future__ import annotations

from collections.abc import Sequence

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from ..errors import VolumeError
from .facts import some_of

_IMAGES = {
    "EchoNumbers": "echo",
    "EchoTime": "echo time",
    "EffectiveEchoTime": "echo time",
    "TemporalPositionIdentifier": "time point",
    "TemporalPositionIndex": "time point",
    "DiffusionBValue": "b-value",
    "NominalPercentageOfCardiacPhase": "cardiac phase",
}
"""Tags that tell which of several images of one place a slice or frame belongs to."""
_ONE = {"PatientID": "patient", "FrameOfReferenceUID": "frame of reference"}
"""Tags that slices of one image share."""
_USUALLY_ONE = {"ImageType": "types of image", "ConvolutionKernel": "kernels"}


def text_of(header: Dataset, key: str) -> str:
    """A tag's text; empty where there is none."""
    try:
        value = header.get(key)
    except (ValueError, TypeError, OverflowError):
        return ""
    # A backslash separates two values.
    if isinstance(value, MultiValue):
        return "/".join(map(str, value))
    return "" if value is None else str(value).strip()


def kind_of(groups: Sequence[Dataset | None]) -> str:
    """Echo, time point, diffusion weighting and cardiac phase, as far as the datasets tell them."""
    told = {
        word: f"{word} {text_of(group, key)}"
        for key, word in _IMAGES.items()
        for group in groups
        if group is not None and text_of(group, key)
    }
    return ", ".join(told.values())


def slice_notes(headers: Sequence[tuple[str, Dataset]], name: str) -> list[str]:
    """Notes about slices that are not all alike.

    Args:
        headers: of the slices, with their files' names.
        name: of the series, for messages.

    Raises:
        VolumeError: they are of several patients or frames of reference.
    """
    for key, word in _ONE.items():
        found = sorted({text_of(header, key) for _, header in headers} - {""})
        if len(found) > 1:
            raise VolumeError(
                f"The slices of a DICOM series must have one {word}, but those of {name} have {len(found)} "
                f"({key})."
            )
    notes = []
    for key, word in _USUALLY_ONE.items():
        kinds = list(dict.fromkeys(text_of(header, key) for _, header in headers))
        if len(kinds) > 1:
            shown = some_of([kind or "none" for kind in kinds])
            notes.append(
                f"The slices of {name} are of several {word} ({shown}): they were read as one image."
            )
    bare = [file for file, header in headers if not text_of(header, "RescaleSlope")]
    if 0 < len(bare) < len(headers):
        notes.append(
            f"Some slices of {name} have no RescaleSlope, as others do ({some_of(bare)}): their values were "
            "taken as they are stored."
        )
    if all(not text_of(h, "PixelSpacing") and text_of(h, "ImagerPixelSpacing") for _, h in headers):
        notes.append(
            f"The files of {name} tell the size of a pixel at the detector alone (ImagerPixelSpacing): it "
            "was taken for that in the patient."
        )
    return notes

"""Where a file's voxels lie: as nibabel reads it, and as ITK does.

3D Slicer, MITK and ITK-SNAP read files with ITK, most Python programs read NIfTI with nibabel. Both agree on
NRRD, MetaImage and DICOM. Of a NIfTI they may use different forms (sform, qform); ITK refuses sheared ones,
applies units, and lets a file without forms start at the origin. An answer has to lie on its image for both.
"""

from __future__ import annotations

import logging
import math
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from nibabel.spatialimages import HeaderDataError

from ..errors import VolumeError
from .nifti_header import SIZES

NOTED = 0.1
"""Voxels by which the two readings of a file may differ without a note."""
RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_UNITS = {1: 1000.0, 2: 1.0, 3: 0.001}
"""Millimetres in the units of a NIfTI: metre, millimetre, micrometre."""
_UNIT_NAMES = {1: "metres", 3: "micrometres"}
_FORM_OFFSETS = {348: (252, 2, "h"), 540: (344, 2, "i")}
"""For each version: where the codes of qform and sform are, and as which numbers."""

_SILENT = logging.getLogger(f"{__name__}.fixed")
_SILENT.addHandler(logging.NullHandler())
_SILENT.propagate = False
_NEVER = 1000
"""Level of a header's fault from which on nibabel raises it: never, as `headers` has checked it before."""

Affine = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Placing:
    """Where the voxels of a file lie.

    Attributes:
        affine: (4, 4), raw indices to RAS millimetres; of the forms of a NIfTI the one that nibabel takes.
        itk: the same as ITK reads the file; None where it cannot.
        unit: millimetres in a unit of the file, which nibabel does not count in.
        header: of a NIfTI; empty for other formats.
    """

    affine: Affine
    itk: Affine | None
    unit: float = 1.0
    header: bytes = b""

    @property
    def nibabel(self) -> Affine:
        """What nibabel gives: the numbers of the file."""
        return np.diag([1 / self.unit] * 3 + [1.0]) @ self.affine

    @property
    def is_nifti2(self) -> bool:
        """Whether the header is that of NIfTI-2, which ITK 5.4 cannot read."""
        return SIZES.get(len(self.header)) == 2

    @classmethod
    def plain(cls, affine: Affine) -> Placing:
        """The placing of a file that all programs read alike."""
        return cls(affine, affine)


def nifti_placing(header: bytes, name: str) -> Placing:
    """The place of a NIfTI file by its header.

    Raises:
        VolumeError: it has no place that could be read.
    """
    order = _order(header)
    units = header[123] if len(header) == 348 else struct.unpack_from(order + "i", header, 500)[0]
    unit = _UNITS.get(int(units) & 7, 1.0)
    kind = nib.Nifti1Header if SIZES[len(header)] == 1 else nib.Nifti2Header
    try:
        read = kind(header, endianness=order, check=False)
        # Corrections that nibabel makes when it loads a file, such as a qfac of 0, which means 1.
        read.check_fix(_SILENT, _NEVER)
        found = np.asarray(read.get_best_affine(), dtype=np.float64)
    except (HeaderDataError, ValueError, np.linalg.LinAlgError) as error:
        raise VolumeError(f"The header of {name} does not tell where its voxels lie: {error}.") from error
    if not np.isfinite(found).all():
        raise VolumeError(
            f"An image's axes must have three directions, but the affine of {name} is {found.tolist()}."
        )
    scaled = np.diag([unit] * 3 + [1.0]) @ found
    return Placing(scaled, itk_reading(header), unit, header)


def itk_reading(header: bytes) -> Affine | None:
    """Raw indices to RAS millimetres as ITK takes them from a NIfTI header; None where ITK refuses it.

    ITK reads a file of eight voxels that has only the header's fields about position.
    """
    bare = _bare(header)
    if bare is None:
        return None
    with tempfile.TemporaryDirectory(prefix="dualclickmed-") as folder:
        path = Path(folder) / "place.nii"
        path.write_bytes(bare)
        reader = sitk.ImageFileReader()
        reader.SetImageIO("NiftiImageIO")
        reader.SetFileName(str(path))
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            return None
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * np.asarray(reader.GetSpacing())
        affine[:3, 3] = reader.GetOrigin()
    return RAS_FROM_LPS @ affine if np.isfinite(affine).all() else None


def _bare(header: bytes) -> bytes | None:
    """A NIfTI file of 2 x 2 x 2 voxels at the place that a header gives; None where that is not finite."""
    order = _order(header)
    if SIZES[len(header)] == 1:
        made = bytearray(348)
        parts = ((76, 108), (123, 124), (252, 328))
        numbers = struct.unpack_from(order + "8f", header, 76) + struct.unpack_from(
            order + "18f", header, 256
        )
        struct.pack_into(order + "i", made, 0, 348)
        struct.pack_into(order + "8h", made, 40, 3, 2, 2, 2, 1, 1, 1, 1)
        struct.pack_into(order + "2h", made, 70, 2, 8)
        struct.pack_into(order + "f", made, 108, 352)
        made[344:348] = b"n+1\0"
    else:
        made = bytearray(540)
        parts = ((104, 168), (344, 500), (500, 504))
        numbers = struct.unpack_from(order + "8d", header, 104) + struct.unpack_from(
            order + "18d", header, 352
        )
        struct.pack_into(order + "i", made, 0, 540)
        made[4:12] = b"n+2\0\r\n\x1a\n"
        struct.pack_into(order + "2h", made, 12, 2, 8)
        struct.pack_into(order + "8q", made, 16, 3, 2, 2, 2, 1, 1, 1, 1)
        struct.pack_into(order + "q", made, 168, 544)
    if not all(math.isfinite(number) for number in numbers):
        return None
    for start, stop in parts:
        made[start:stop] = header[start:stop]
    return bytes(made) + bytes(4 + 8)


def apart(first: Affine, second: Affine, shape: Sequence[int]) -> float:
    """The largest distance between a grid's corners in two readings, in voxels of the first."""
    corners = np.stack(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij"), axis=-1).reshape(-1, 3)
    try:
        moved = np.linalg.inv(first) @ second
    except np.linalg.LinAlgError:
        return math.inf
    found = np.abs(corners @ moved[:3, :3].T + moved[:3, 3] - corners).max()
    return float(found) if math.isfinite(found) else math.inf


def place_notes(placing: Placing, shape: Sequence[int], name: str) -> list[str]:
    """Notes where programs place one file differently."""
    if not placing.header:
        return []
    if placing.itk is None and placing.is_nifti2:
        return [
            f"{name} is a NIfTI-2 file, which ITK and what is built on it (3D Slicer, MITK) cannot read: its "
            "place is nibabel's, and answers in NIfTI are NIfTI-1."
        ]
    if placing.itk is None:
        return [
            f"The grid of {name} is sheared or damaged, so that ITK and what is built on it (3D Slicer, "
            "MITK) "
            "cannot read it: its place is nibabel's."
        ]
    far = apart(placing.nibabel, placing.itk, shape)
    if far <= NOTED:
        return []
    if placing.unit != 1.0 and apart(placing.affine, placing.itk, shape) <= NOTED:
        unit = next(name for code, name in _UNIT_NAMES.items() if _UNITS[code] == placing.unit)
        return [
            f"The header of {name} counts in {unit}, which ITK (3D Slicer) heeds and nibabel does not: "
            "answers "
            "in NIfTI count in the same unit, others in millimetres."
        ]
    forms = (
        "has neither sform nor qform" if not any(_codes(placing.header)) else "has two places (sform, qform)"
    )
    return [
        f"The header of {name} {forms}, so that ITK (3D Slicer) and nibabel put it {far:.3g} voxels apart: "
        "answers "
        "in NIfTI carry the same header, those in NRRD lie where ITK puts the image."
    ]


def _codes(header: bytes) -> tuple[int, ...]:
    start, count, kind = _FORM_OFFSETS[len(header)]
    return struct.unpack_from(f"{_order(header)}{count}{kind}", header, start)


def _order(header: bytes) -> str:
    return "<" if struct.unpack_from("<i", header)[0] in SIZES else ">"


class FileAffine(npt.NDArray[np.float64]):
    """An affine that carries the `Placing` of its file, so that a mask lies on its image in every program.

    Copies and results of arithmetic carry none. It is read-only.
    """

    placing: Placing | None

    def __new__(cls, placing: Placing) -> FileAffine:
        made = np.array(placing.affine, dtype=np.float64).view(cls)
        made.placing = placing
        made.flags.writeable = False
        return made

    def __array_finalize__(self, obj: object) -> None:
        self.placing = None


def placing_of(affine: Affine) -> Placing:
    """The placing of voxels with this affine: that of its file, if it carries one."""
    known = affine.placing if isinstance(affine, FileAffine) else None
    return Placing.plain(np.asarray(affine, dtype=np.float64)) if known is None else known

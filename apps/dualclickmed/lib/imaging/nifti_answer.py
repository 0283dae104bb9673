"""NIfTI files of masks, which lie on their image in ITK and in nibabel alike.

A mask of a NIfTI image carries the image's own sform, qform, codes and unit; so each program puts both at the
same place, whichever that is.
"""

from __future__ import annotations

import struct

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.spatialimages import HeaderDataError

from ..errors import UserError
from .nifti_header import SIZES
from .placing import NOTED, Affine, Placing, apart, itk_reading

_KEPT = (
    *("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


def nifti_image(array: npt.NDArray[np.generic], placing: Placing) -> nib.Nifti1Image:
    """A mask as a NIfTI image.

    Args:
        array: (i, j, k), or (i, j, k, layers) where labels overlap.
        placing: where the image's voxels lie.

    Raises:
        UserError: ITK could not read it, or would place it elsewhere than the image.
    """
    if max(array.shape) > np.iinfo(np.int16).max:
        raise UserError(f"A NIfTI file has axes of at most 32767 voxels, not {array.shape}: ask for .nrrd.")
    image = _like(array, placing.header) if placing.header else nifti_of_affine(array, placing.affine)
    found = itk_reading(image.header.binaryblock)
    # Of a file that ITK cannot read for its version alone, the answer can still lie where nibabel puts it.
    wanted = placing.affine if placing.itk is None and placing.is_nifti2 else placing.itk
    if found is None or wanted is None:
        raise UserError(
            "A NIfTI file that ITK (3D Slicer, MITK) can read holds no sheared grid, but the image's is: "
            "ask for the mask as .nrrd or .seg.nrrd."
        )
    if apart(wanted, found, array.shape[:3]) > NOTED:
        raise UserError(
            "A NIfTI file of this mask would lie at another place in ITK (3D Slicer, MITK) than the image: "
            "ask for the mask as .nrrd or .seg.nrrd."
        )
    return image


def _like(array: npt.NDArray[np.generic], header: bytes) -> nib.Nifti1Image:
    """Copy the fields about position from a header, number by number."""
    order = "<" if struct.unpack_from("<i", header)[0] in SIZES else ">"
    kind = nib.Nifti1Header if SIZES[len(header)] == 1 else nib.Nifti2Header
    known = kind(header, endianness=order, check=False)
    image = nib.Nifti1Image(array, None, dtype=array.dtype)
    made = image.header
    for key in _KEPT:
        made[key] = known[key]
    made["pixdim"][4:] = 1
    # The unit of space; a mask has no time.
    made["xyzt_units"] = int(known["xyzt_units"]) & 7
    return image


def nifti_of_affine(array: npt.NDArray[np.generic], affine: Affine) -> nib.Nifti1Image:
    """An image in millimetres with sform and qform; a sheared grid has no qform."""
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    try:
        image.set_qform(affine, code="scanner", strip_shears=False)
    except HeaderDataError:
        # A sheared grid has no qform.
        image.set_qform(None)
    return image

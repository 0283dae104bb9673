"""Voxels as the page sends and gets them: a JSON header and the changed boxes of some arrays, packed.

A frame is the header's length (four bytes, little-endian), the header (JSON, UTF-8), and the parts one after
the other. The header's ``parts`` names each with its ``box`` and its length in bytes. A part is the gzip of
uint8 voxels, x fastest.

The page counts voxels (x, y, z) towards Right, Anterior and Superior, because that is the order in which it
draws them; boxes are half-open, ``[x0, x1, y0, y1, z0, z1]``. Canonical indices (z, y, x) run towards
Superior, Posterior and Left (`imaging.volume`): each of the two is the other with y and x counted from the
other end.
"""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from ..errors import UserError
from ..imaging.geometry import Index, Region
from ..imaging.volume import Volume

MEDIA_TYPE = "application/vnd.dualclickmed.frame"
_LEVEL = 1
"""Masks are long runs of equal values: higher levels take longer and gain next to nothing."""
_SLAB_BYTES = 1 << 23

PageBox = tuple[int, int, int, int, int, int]
Voxels = npt.NDArray[np.uint8]


def packed(header: Mapping[str, Any], parts: Mapping[str, tuple[Region, Voxels]], shape: Index) -> bytes:
    """A frame.

    Args:
        header: what goes with the voxels; ``parts`` is added.
        parts: name to a region of the volume and the voxels (D, H, W) in it, in canonical order.
        shape: the volume's (D, H, W).
    """
    told, bodies = [], []
    for name, (region, voxels) in parts.items():
        body = gzip.compress(turned(voxels).tobytes(), _LEVEL, mtime=0) if voxels.size else b""
        told.append({"name": name, "box": box_of(region, shape), "bytes": len(body)})
        bodies.append(body)
    text = json.dumps({**header, "parts": told}, allow_nan=False).encode()
    return b"".join([struct.pack("<I", len(text)), text, *bodies])


def unpacked(body: bytes, box: Sequence[int], shape: Index) -> tuple[Region, Voxels]:
    """A part that the page sent: the region of the volume and its voxels in canonical order.

    Raises:
        UserError: the box lies outside the image, or the voxels are not as many as it holds.
    """
    region = region_of(box, shape)
    sides = tuple(s.stop - s.start for s in region)
    wanted = int(np.prod(sides))
    reader = zlib.decompressobj(wbits=31)
    try:
        # One byte more than there may be tells a bomb from a box.
        found = reader.decompress(body, wanted + 1)
    except zlib.error as error:
        raise UserError("The voxels that were sent are no gzip.") from error
    if len(found) != wanted or not reader.eof:
        raise UserError(f"The box {list(box)} holds {wanted} voxels, but others were sent.")
    return region, turned(np.frombuffer(found, np.uint8).reshape(sides))


def turned(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """An array (D, H, W) of the one order in the other, as a view."""
    return array[:, ::-1, ::-1]


def to_canonical(point: Sequence[int], shape: Index) -> Index:
    """A voxel (x, y, z) of the page as a canonical index (z, y, x)."""
    x, y, z = point
    return z, shape[1] - 1 - y, shape[2] - 1 - x


def to_page(index: Sequence[int], shape: Index) -> tuple[int, int, int]:
    """A canonical index (z, y, x) as a voxel (x, y, z) of the page."""
    z, y, x = index
    return shape[2] - 1 - x, shape[1] - 1 - y, z


def box_of(region: Region, shape: Index) -> PageBox:
    """A region of the volume as a box of the page."""
    z, y, x = region
    _, height, width = shape
    return width - x.stop, width - x.start, height - y.stop, height - y.start, z.start, z.stop


def region_of(box: Sequence[int], shape: Index) -> Region:
    """A box of the page as a region of the volume.

    Raises:
        UserError: it is no box, is empty, or reaches outside the image.
    """
    whole = len(box) == 6 and all(isinstance(edge, int) and not isinstance(edge, bool) for edge in box)
    depth, height, width = shape
    if whole:
        x0, x1, y0, y1, z0, z1 = box
        if 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height and 0 <= z0 < z1 <= depth:
            return slice(z0, z1), slice(height - y1, height - y0), slice(width - x1, width - x0)
    raise UserError(
        f"A box must be [x0, x1, y0, y1, z0, z1] inside the image of {width} x {height} x {depth} voxels, "
        f"but it is {str(list(box))[:100]}."
    )


def page_affine(volume: Volume) -> npt.NDArray[np.float64]:
    """(4, 4), from the page's voxels (x, y, z) to RAS millimetres."""
    corners = [to_canonical(point, volume.shape) for point in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    raw = np.c_[volume.to_raw(corners).astype(np.float64), np.ones(4)]
    world = raw @ volume.affine[:3].T
    affine = np.eye(4)
    affine[:3, :3] = (world[1:] - world[0]).T
    affine[:3, 3] = world[0]
    return affine


def nifti_size(volume: Volume) -> int:
    """Bytes of `nifti`."""
    return 352 + volume.nbytes


def nifti(volume: Volume) -> Iterator[bytes]:
    """The volume as an uncompressed NIfTI file in the page's order, piece by piece."""
    header = nib.Nifti1Header()
    header.set_data_dtype(volume.array.dtype)
    header.set_data_shape(volume.shape[::-1])
    header.set_slope_inter(volume.slope, volume.intercept)
    affine = page_affine(volume)
    header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    header.set_sform(affine, code=1)
    header.set_qform(None, code=0)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    yield header.binaryblock + bytes(4)
    step = max(1, _SLAB_BYTES // max(1, volume.nbytes // volume.shape[0]))
    for start in range(0, volume.shape[0], step):
        yield turned(volume.array[start : start + step]).tobytes()

"""Masks as the server sends them: NRRD files in memory."""

from __future__ import annotations

import io
from typing import Any

import nrrd
import numpy as np
import numpy.typing as npt


def read_nrrd(data: bytes) -> tuple[npt.NDArray[Any], dict[str, Any]]:
    stream = io.BytesIO(data)
    header = nrrd.read_header(stream)
    return nrrd.read_data(header, stream), header


def affine_of(header: dict[str, Any]) -> npt.NDArray[np.float64]:
    """RAS affine of a NRRD header in left-posterior-superior space."""
    assert header["space"] == "left-posterior-superior"
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = header["space directions"].T, header["space origin"]
    return np.diag([-1, -1, 1, 1]) @ affine

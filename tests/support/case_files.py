"""Writes case files as the challenge does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from dualclickmed.imaging.case_files import save_arrays
from dualclickmed.imaging.geometry import Box, Position
from dualclickmed.imaging.prompts import Click


def write_case(
    path: Path,
    image: npt.NDArray[Any],
    spacing: Position,
    boxes: Sequence[Box] | None = None,
    clicks: Sequence[Sequence[Click]] | None = None,
    truth: npt.NDArray[np.integer] | None = None,
) -> None:
    """Write a case file as the challenge does.

    Args:
        path: ends in ``.npz``.
        image: (D, H, W).
        spacing: (x, y, z).
        boxes: of each class in order, of whole voxels; their in-plane part stands for that of the middle
        slice. clicks: of each class, in the order in which they were given.
        truth: (D, H, W).
    """
    arrays: dict[str, Any] = {"imgs": image, "spacing": np.asarray(spacing, dtype=np.float64)}
    if truth is not None:
        arrays["gts"] = truth
    if boxes is not None:
        arrays["boxes"] = object_array([box_dict(box) for box in boxes])
    if clicks is not None:
        arrays["clicks"] = object_array(
            [
                {kind: [list(c.index) for c in own if c.positive == (kind == "fg")] for kind in ("fg", "bg")}
                for own in clicks
            ]
        )
        arrays["clicks_order"] = object_array([["fg" if c.positive else "bg" for c in own] for own in clicks])
    save_arrays(path, arrays)


def box_dict(box: Box) -> dict[str, int]:
    (z0, y0, x0), (z1, y1, x1) = (tuple(int(v) for v in edge) for edge in (box.lo, box.hi))
    return {
        "z_min": z0, "z_max": z1 - 1, "z_mid": (z0 + z1) // 2,
        "z_mid_x_min": x0, "z_mid_y_min": y0, "z_mid_x_max": x1 - 1, "z_mid_y_max": y1 - 1,
    }  # fmt: skip


def object_array(entries: Sequence[Any]) -> npt.NDArray[np.object_]:
    array = np.empty(len(entries), dtype=object)
    array[:] = entries
    return array

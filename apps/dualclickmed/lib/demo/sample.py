"""The sample study: a generated CT of a trunk whose organs are known exactly.

``make serve`` offers it to click in without any patient data. Anatomy is written as distances in
millimetres: ellipsoids and tubes in a patient frame (x to the left, y to the back, z up), bent by one smooth
random warp, painted in order of priority with the attenuation of a portal-venous contrast phase, blurred, and
given noise as a scanner would. The same seed gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from ..imaging.placing import RAS_FROM_LPS
from .anatomy import paint_all
from .trunk import ORGANS, ORIGIN, SPACING, Trunk, value_of

STEM = "trunk_ct"


@dataclass(frozen=True)
class SampleFiles:
    """What :func:`write_sample` wrote."""

    image: Path
    truth: Path
    names: Path


def write_sample(folder: Path, seed: int = 0) -> SampleFiles:
    """Write the study into ``folder`` and its true labels into the sibling ``<folder>-truth``.

    The labels stay outside because MONAI Label takes an image whose final label lies in its studies for done.

    Args:
        folder: made if missing; files of the same name are replaced.
        seed: of everything random.
    """
    truth = folder.with_name(folder.name + "-truth")
    files = SampleFiles(folder / f"{STEM}.nii.gz", truth / f"{STEM}.nii.gz", truth / "labels.json")
    _write_trunk(seed, files.image, files.truth)
    _write_json(files.names, _names())
    return files


def write_cases(folder: Path, count: int, seed: int = 0) -> None:
    """Write labelled cases as the Medical Segmentation Decathlon lays them out: `imagesTr`, `labelsTr` and
    `dataset.json`, to evaluate, to train, and to simulate an annotator on.

    Args:
        folder: made if missing; files of the same name are replaced.
        count: of cases.
        seed: of the first case; each further one has the next seed.
    """
    for number in range(count):
        name = f"trunk_{number:03d}.nii.gz"
        _write_trunk(seed + number, folder / "imagesTr" / name, folder / "labelsTr" / name)
    _write_json(folder / "dataset.json", {"modality": {"0": "CT"}, "labels": {"background": 0, **_names()}})


def _write_trunk(seed: int, image: Path, labels: Path) -> None:
    volume, truth, affine = make_trunk(seed)
    for path, array in ((image, volume), (labels, truth)):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = nib.Nifti1Image(array, affine)
        file.set_qform(affine, code=1)
        file.set_sform(affine, code=1)
        file.header.set_xyzt_units("mm", "sec")
        nib.save(file, path)


def _names() -> dict[str, int]:
    return {organ: value_of(organ) for organ in ORGANS}


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def make_trunk(
    seed: int = 0,
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8], npt.NDArray[np.float64]]:
    """Generate the volume.

    Args:
        seed: of everything random.

    Returns:
        The CT in Hounsfield units, its labels (i + 1 stands for ``ORGANS[i]``) and their affine (RAS). Both
        arrays are in file order (i, j, k), which run to the left, to the back and up: 192 x 160 x 128 voxels
        of 2 x 2 x 3 mm.
    """
    trunk = Trunk(np.random.default_rng(seed))
    paint_all(trunk)
    trunk.tidy()
    volume = trunk.scan()
    z, y, x = ORIGIN
    dz, dy, dx = SPACING
    lps = np.array([[dx, 0, 0, x], [0, dy, 0, y], [0, 0, dz, z], [0, 0, 0, 1]], dtype=np.float64)
    return (
        np.ascontiguousarray(volume.transpose(2, 1, 0)),
        np.ascontiguousarray(trunk.labels.transpose(2, 1, 0)),
        RAS_FROM_LPS @ lps,
    )

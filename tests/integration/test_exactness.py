"""A voxel that a client sees is the voxel that is set: 48 axis orders and signs, 3 formats, every dialect.

Each image holds one bright voxel. A client finds it as clients do, in the array that MONAI's LoadImage gives;
clicked in each dialect, it comes back as the one voxel of the mask, at the same place of the patient.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk
from dualclickmed.configs.options import ServerOptions
from dualclickmed.experts import Result
from dualclickmed.imaging.label_map import LabelMap
from dualclickmed.imaging.volume import Volume, load_volume
from dualclickmed.infers.segmenter import Answer, SegmentRequest
from dualclickmed.infers.tasks import LabelsTask, ObjectTask
from monai.transforms import LoadImage
from monailabel.datastore.utils.convert import dicom_to_nifti
from nibabel.eulerangles import euler2mat

from tests.support.dicoms import Layout, write_series

ORDERS = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
SHAPE, BRIGHT = (4, 5, 6), (1, 3, 4)
"""Along Left, Posterior and Superior, before the axes are ordered; the voxel is in no symmetric place."""
SPACING = (0.7, 1.3, 4.0)
TURN = euler2mat(0.1, 0.2, 0.3)
"""Oblique: every axis leaves its direction by several degrees."""
LABELS = LabelMap(("liver", "spleen"))


def bright_image() -> npt.NDArray[np.int16]:
    image = np.random.default_rng(0).integers(0, 100, SHAPE).astype(np.int16)
    image[BRIGHT] = 1000
    return image


def in_patient(index: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """LPS millimetres, as `write_series` places voxels."""
    return TURN @ ((np.asarray(index) - (np.asarray(SHAPE) - 1) / 2) * SPACING)


def ordered(
    axes: tuple[int, ...], signs: tuple[int, ...]
) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float64]]:
    """The image with its axes in another order, and its affine (LPS)."""
    array = bright_image().transpose(axes)[tuple(slice(None, None, sign) for sign in signs)]
    first = np.zeros(3)
    affine = np.eye(4)
    for at, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        affine[:3, at] = TURN[:, axis] * SPACING[axis] * sign
        first[axis] = 0 if sign > 0 else SHAPE[axis] - 1
    affine[:3, 3] = in_patient(tuple(first))
    return np.ascontiguousarray(array), affine


def as_nifti(folder: Path, axes: tuple[int, ...], signs: tuple[int, ...]) -> Path:
    array, affine = ordered(axes, signs)
    path = folder / "image.nii.gz"
    nib.save(nib.Nifti1Image(array, np.diag([-1, -1, 1, 1]) @ affine), path)
    return path


def as_nrrd(folder: Path, axes: tuple[int, ...], signs: tuple[int, ...]) -> Path:
    array, affine = ordered(axes, signs)
    image = sitk.GetImageFromArray(array.T)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    sitk.WriteImage(image, str(folder / "image.nrrd"))
    return folder / "image.nrrd"


def as_dicom(folder: Path, axes: tuple[int, ...], signs: tuple[int, ...]) -> Path:
    """As the server keeps a series of an archive."""
    layout = Layout(*zip(axes, signs, strict=True))
    series = write_series(folder / "series", bright_image(), SPACING, layout, turn=TURN)
    converted = Path(dicom_to_nifti(str(series.folder)))
    return converted.rename(folder / "image.nii.gz")


class OneVoxelSegmenter:
    """Stands for the experts: a label is its first foreground click, or its box."""

    def __init__(self, volume: Volume) -> None:
        self.volume = volume
        self.options = ServerOptions(LABELS)

    def segment(self, request: SegmentRequest) -> Answer:
        labels = np.zeros(self.volume.shape, np.uint8)
        values = {}
        no_expert: Any = None
        for value, (label, given) in enumerate(request.find(self.volume, no_expert).items(), start=1):
            values[label] = value
            labels[given.box.voxels(labels.shape) if given.box else given.foreground[0]] = value
        return Answer(self.volume, Result(labels, values, dict.fromkeys(values, "local"), [], {}), {})


def dialects(point: list[int]) -> dict[str, tuple[type, dict[str, Any]]]:
    i, j, k = point
    return {
        "OHIF and Slicer": (LabelsTask, {"spleen": [point]}),
        "deepgrow": (ObjectTask, {"foreground": [point]}),
        "deepgrow with a label": (LabelsTask, {"foreground": [point], "label": "spleen"}),
        "VISTA-3D": (LabelsTask, {"points": [point], "point_labels": [1], "label_prompt": [2]}),
        "a box": (LabelsTask, {"roi": [i, i, j, j, k, k], "label": "spleen"}),
        "corners": (LabelsTask, {"spleen": [point, point], "clicks": "corners"}),
    }


@pytest.mark.parametrize("write", [as_nifti, as_nrrd, as_dicom])
@pytest.mark.parametrize(("axes", "signs"), ORDERS)
def test_the_voxel_that_was_seen_is_set(
    write: Any, axes: tuple[int, ...], signs: tuple[int, ...], tmp_path: Path
) -> None:
    path = write(tmp_path, axes, signs)
    seen = np.asarray(LoadImage(image_only=True)(path))
    point = [int(n) for n in np.unravel_index(seen.argmax(), seen.shape)]
    segmenter = OneVoxelSegmenter(load_volume(path))
    expected = np.zeros(seen.shape, dtype=bool)
    expected[tuple(point)] = True
    for name, (task, params) in dialects(point).items():
        for extension in (".nrrd", ".nii.gz"):
            answer, _ = task(segmenter)({"image": str(path), "result_extension": extension, **params})
            try:
                image = sitk.ReadImage(answer)
            finally:
                Path(answer).unlink()
            np.testing.assert_array_equal(sitk.GetArrayFromImage(image).T != 0, expected, err_msg=name)
            place = image.TransformIndexToPhysicalPoint(point)
            np.testing.assert_allclose(place, in_patient(BRIGHT), atol=1e-3, err_msg=name)

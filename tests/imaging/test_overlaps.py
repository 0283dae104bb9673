"""Labels that overlap: a mask file holds a label map for each layer, and lies where the image lies."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dualclickmed.imaging.label_files import read_labels
from dualclickmed.imaging.label_map import LabelMap
from dualclickmed.imaging.mask_files import LabelledMask, Segment, write
from dualclickmed.imaging.volume import load_volume

SHAPE = (14, 12, 10)
AFFINE = np.array([[-0.8, 0, 0, 5], [0, -0.8, 0, 7], [0, 0, 2.5, -40], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("extension", [".nii.gz", ".nii", ".seg.nrrd"])
def test_both_labels_come_back_whole(tmp_path: Path, extension: str) -> None:
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.int16), AFFINE), tmp_path / "image.nii.gz")
    volume = load_volume(tmp_path / "image.nii.gz")
    liver, lesion = np.zeros(SHAPE, np.uint8), np.zeros(SHAPE, np.uint8)
    liver[2:9, 3:9, 1:8], lesion[6:11, 5:11, 4:9] = 1, 2
    assert (liver * lesion).any()
    segments = [Segment("liver", 1, (1, 2, 3)), Segment("lesion", 2, (4, 5, 6), 1)]
    path = write(LabelledMask(liver, volume.affine, segments, [lesion]), extension)
    try:
        info = {"label_names": {"liver": 1, "lesion": 2}}
        found = read_labels(path, volume, info, LabelMap(("liver", "lesion")))
    finally:
        path.unlink()
    assert found.voxels == {"liver": int((liver > 0).sum()), "lesion": int((lesion > 0).sum())}
    whole = {}
    for values, names in zip(found.layers, found.names, strict=True):
        whole |= {name: volume.to_raw_array(values == value) for value, name in names.items()}
    assert np.array_equal(whole["liver"], liver > 0)
    assert np.array_equal(whole["lesion"], lesion > 0)

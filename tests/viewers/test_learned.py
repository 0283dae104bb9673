"""Masks of other viewers as labels of the studies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from dualclickmed.imaging.label_files import read_labels
from dualclickmed.imaging.volume import from_grid, load_volume
from dualclickmed.server.studies import Studies
from dualclickmed.viewers.learned import CLIENT, Keeper


def test_an_image_and_its_masks_come_back_from_the_studies(tmp_path: Path) -> None:
    studies = Studies(str(tmp_path), extensions=["*.nii.gz"], auto_reload=False)
    values = np.random.default_rng(0).normal(size=(9, 12, 15)).astype(np.float32)
    volume = from_grid(values, np.diag([-1.0, 2.0, 3.0, 1.0]))
    first, second = np.zeros(volume.shape, dtype=np.bool_), np.zeros(volume.shape, dtype=np.bool_)
    first[2:6, 3:8, 2:5] = True
    second[4:9, 5:10, 4:7] = True
    image = Keeper(studies).keep(volume, [first, second])
    stored = load_volume(studies.get_image_uri(image))
    assert np.array_equal(stored.array, volume.array) and np.allclose(stored.affine, volume.affine)
    assert np.isclose(stored.slope, volume.slope) and np.isclose(stored.intercept, volume.intercept)
    labels = read_labels(studies.get_label_uri(image, "final"), stored)
    assert np.array_equal(labels.mask("object 1"), first & ~second)
    assert np.array_equal(labels.mask("object 2"), second)
    assert studies.get_label_info(image, "final")["client_id"] == CLIENT
    assert Keeper(studies).keep(volume, [second]) == image

"""Small labelled cases on disk for the tests of training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import nibabel as nib
import numpy as np
from dualclickmed.networks.configs import COMPACT_LOCAL, TRANSFORMER_GLOBAL

SMALL = {
    "global": dataclasses.replace(
        TRANSFORMER_GLOBAL,
        embed_dim=32,
        depth=1,
        heads=2,
        stem_channels=(2, 4, 8),
        prompt_dim=24,
        decoder_heads=2,
        decoder_mlp=32,
        upscaling=(8, 4),
    ),
    "local": dataclasses.replace(COMPACT_LOCAL, init_filters=8, blocks_down=(1, 1, 1), feature_size=16),
}


SPACING = (0.8, 0.8, 2.0)


def volume_and_labels(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An image (x, y, z) in HU with two bright blocks, and labels 1 and 3 there."""
    rng = np.random.default_rng(seed)
    shape = (30, 40, 44)
    labels = np.zeros(shape, dtype=np.uint8)
    labels[5:14, 8:20, 10:24] = 1
    labels[18:27, 22:36, 12:38] = 3
    image = rng.normal(-20, 10, shape) + 90.0 * (labels == 1) + 150.0 * (labels == 3)
    return image.astype(np.int16), labels


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([*SPACING, 1.0]) if affine is None else affine), path)
    return path


def decathlon(root: Path, count: int) -> Path:
    """A folder with imagesTr and labelsTr."""
    for number in range(count):
        image, labels = volume_and_labels(number)
        write_nifti(root / "imagesTr" / f"case_{number:02}.nii.gz", image)
        write_nifti(root / "labelsTr" / f"case_{number:02}.nii.gz", labels)
    return root


def challenge_file(path: Path, seed: int = 0, boxes: bool = True) -> Path:
    """imgs and gts (z, y, x) of the challenge, with an object array beside them."""
    image, labels = volume_and_labels(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        "imgs": np.clip(image.T + 60, 0, 255).astype(np.uint8),
        "gts": labels.T.copy(),
        "spacing": np.array(SPACING),
    }
    if boxes:
        arrays["boxes"] = np.array([{"z_min": 1}], dtype=object)
    np.savez(path, **arrays)
    return path

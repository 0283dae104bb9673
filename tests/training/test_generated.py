"""Generated scenes: values, labels, determinism and variety."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dualclickmed.training.canvas import blur_matrix
from dualclickmed.training.generated import MIN_TARGET_VOXELS, make_scene
from dualclickmed.training.looks import LOOKS
from scipy import ndimage


@pytest.mark.parametrize("look", LOOKS)
def test_a_scene_is_a_plausible_volume(look) -> None:
    rng = np.random.default_rng(11)
    for _ in range(3):
        scene = make_scene(rng, 48, look)
        assert scene.image.shape == scene.labels.shape
        assert scene.image.dtype == torch.float32 and scene.labels.dtype == torch.int16
        assert bool(torch.isfinite(scene.image).all())
        assert float(scene.image.min()) >= 0 and float(scene.image.max()) <= 255
        assert float(scene.image.std()) > 1
        for target in scene.targets:
            voxels = int(scene.mask(target).sum())
            assert MIN_TARGET_VOXELS <= voxels <= 0.5 * scene.labels.numel()


def test_the_same_seed_gives_the_same_scene() -> None:
    first, second = (make_scene(np.random.default_rng(4), 40) for _ in range(2))
    assert torch.equal(first.image, second.image) and torch.equal(first.labels, second.labels)
    assert first.targets == second.targets


def test_scenes_vary() -> None:
    rng = np.random.default_rng(0)
    scenes = [make_scene(rng, 40) for _ in range(60)]
    assert {s.look for s in scenes} == set(LOOKS)
    assert sum(s.spacing[0] > 1.5 for s in scenes) >= 10
    # Objects from a few dozen voxels to a large part of the volume, and parents with parts.
    sizes = [int(s.mask(t).sum()) for s in scenes for t in s.targets]
    assert min(sizes) < 60 and max(sizes) > 8000
    assert any(len(t) > 1 for s in scenes for t in s.targets)


def test_contrast_reaches_from_none_to_strong() -> None:
    """Some targets can be seen in the mean intensity, some cannot: the box must then be enough."""
    rng = np.random.default_rng(1)
    contrasts = []
    while len(contrasts) < 80:
        scene = make_scene(rng, 40)
        mask = scene.mask(scene.targets[0]).numpy()
        image = scene.image.numpy()
        ring = ndimage.binary_dilation(mask, iterations=2) & ~mask
        if ring.any():
            spread = float(image[mask].std()) + float(image[ring].std()) + 1.0
            contrasts.append(abs(float(image[mask].mean() - image[ring].mean())) / spread)
    assert np.quantile(contrasts, 0.2) < 0.4
    assert np.quantile(contrasts, 0.8) > 0.9


def testblur_matrix_is_a_gaussian_filter() -> None:
    signal = np.zeros(41)
    signal[20] = 1.0
    ours = (blur_matrix(41, 2.0, torch.device("cpu")) @ torch.from_numpy(signal).float()).numpy()
    assert np.allclose(ours, ndimage.gaussian_filter1d(signal, 2.0, truncate=8), atol=1e-5)

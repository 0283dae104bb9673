"""Label maps dressed in generated looks."""

from __future__ import annotations

import numpy as np
import torch
from dualclickmed.training.canvas import Canvas
from dualclickmed.training.dressed import _cut, dressed_scene
from dualclickmed.training.first_prompts import interior_voxel
from dualclickmed.training.generated import MIN_TARGET_VOXELS
from dualclickmed.training.regions import window_about
from dualclickmed.training.scene_samples import one_component

SPACING = (2.0, 1.0, 0.5)


def balls() -> np.ndarray:
    """A label map (30, 60, 120) of 2 x 1 x 0.5 mm with two balls of 12 and 6 mm radius, in millimetres."""
    z, y, x = (np.arange(n).reshape(s) for n, s in ((30, (-1, 1, 1)), (60, (-1, 1)), (120, (-1,))))
    z, y, x = ((v + 0.5) * s for v, s in zip((z, y, x), SPACING, strict=True))  # type: ignore[assignment]
    labels = np.zeros((30, 60, 120), dtype=np.uint16)
    labels[(z - 30) ** 2 + (y - 30) ** 2 + (x - 20) ** 2 < 12**2] = 7
    labels[(z - 30) ** 2 + (y - 30) ** 2 + (x - 42) ** 2 < 6**2] = 300
    return labels


def test_a_piece_has_the_nearest_label_of_each_of_its_voxels() -> None:
    labels = balls()
    canvas = Canvas(
        shape=(8, 16, 16),
        spacing=(2.0, 1.0, 1.0),
        rng=np.random.default_rng(0),
        torch_rng=torch.Generator().manual_seed(0),
        device=torch.device("cpu"),
    )
    canvas.warp = [torch.zeros(canvas.shape)] * 3
    found = _cut(labels, np.array(SPACING), canvas, np.array([30.0, 30.0, 20.0]), 2.0, np.eye(3))
    for index in ((0, 0, 0), (4, 8, 8), (7, 15, 15), (3, 2, 13)):
        at = (
            np.array([30.0, 30.0, 20.0])
            + ((np.array(index) + 0.5) * canvas.spacing - np.array(canvas.extent) / 2) * 2.0
        )
        voxel = np.floor(at / SPACING).astype(int)
        inside = bool(((voxel >= 0) & (voxel < labels.shape)).all())
        assert found[index] == (labels[tuple(voxel)] if inside else 0)


def test_the_same_state_gives_the_same_scene_and_every_target_is_there() -> None:
    labels = balls()
    regions = [(slice(9, 21), slice(18, 42), slice(16, 64))]
    seen = 0
    for seed in range(8):
        first, second = (
            dressed_scene(labels, SPACING, regions, np.random.default_rng(seed)) for _ in range(2)
        )
        if first is None or second is None:
            assert first is second
            continue
        seen += 1
        torch.testing.assert_close(first.image, second.image)
        assert float(first.image.min()) >= 0 and float(first.image.max()) <= 255
        for target in first.targets:
            assert int(first.mask(target).sum()) >= MIN_TARGET_VOXELS
    assert seen >= 6


def test_an_empty_map_gives_no_scene() -> None:
    empty = np.zeros((20, 20, 20), dtype=np.uint8)
    region = (slice(5, 10), slice(5, 10), slice(5, 10))
    assert dressed_scene(empty, (1.0, 1.0, 1.0), [region], np.random.default_rng(0)) is None


def test_one_component_is_a_connected_part() -> None:
    mask = np.zeros((20, 20, 20), dtype=bool)
    mask[2:6, 2:6, 2:6] = True
    mask[10:18, 10:18, 10:18] = True
    mask[0, 19, 19] = True
    sizes = {int(one_component(mask, np.random.default_rng(seed)).sum()) for seed in range(30)}
    assert sizes == {64, 512}


def test_windows_about_a_click_are_cubes_in_space_about_it() -> None:
    mask = balls() == 7
    for seed in range(20):
        rng = np.random.default_rng(seed)
        click = interior_voxel(torch.from_numpy(mask), rng)
        assert mask[click]
        roi = window_about(mask, click, SPACING, 32, rng)
        sides = np.array(roi.box.sides) * SPACING
        np.testing.assert_allclose(sides, sides[0], rtol=1e-6)
        assert 1.15 * 23 <= sides[0] <= 5.0 * 25
        assert roi.box.contains(click)
        off = (np.array(roi.box.centre) - np.array(click) - 0.5) * SPACING
        assert np.abs(off).max() <= 0.1 * sides[0] + 1e-6

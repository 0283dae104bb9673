"""Samples of generated scenes: on the grid that serving uses, around boxes that users draw."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from dualclickmed.geometry import Box
from dualclickmed.training.generated import Scene
from dualclickmed.training.recipes import COMPACT
from dualclickmed.training.samples import Samples, global_samples, simulated_box

GLOBAL = dataclasses.replace(COMPACT["global"], scenes=1, targets=2)
ONE = dataclasses.replace(GLOBAL, targets=1)


def block_scene() -> Scene:
    """A block of 20 x 10 x 10 voxels that is brighter than its surroundings, in the middle of 40³."""
    labels = torch.zeros(40, 40, 40, dtype=torch.int16)
    labels[10:30, 15:25, 15:25] = 1
    image = 50.0 + 100.0 * labels.float()
    return Scene(image, labels, [(1,)], (1.0, 1.0, 1.0), "ct")


def test_the_truth_of_an_exact_box_fills_the_middle_of_the_grid() -> None:
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(40):
        [(image, truth, valid, _)] = global_samples(
            block_scene(), rng, dataclasses.replace(GLOBAL, targets=1)
        )
        assert image.shape == truth.shape == valid.shape == (64, 64, 64)
        # Bright inside, dark outside: image and truth are cut and turned alike.
        assert float(image[truth].min()) > float(image[~truth & valid].mean())
        extent = Box.of_mask(truth.numpy())
        # A box of 1 / 1.8 of the RoI covers 35.6 of 64 voxels about the middle.
        if np.allclose(extent.lo, 14, atol=1) and np.allclose(extent.hi, 50, atol=1):
            found += 1
    # Half of the boxes are exact, and the block's middle slice gives the exact box too.
    assert found >= 20


def test_boxes_are_exact_of_the_middle_slice_or_sloppy() -> None:
    mask = np.zeros((21, 30, 30), bool)
    mask[:, 10:20, 10:20] = True
    mask[10] = False
    mask[10, 13:16, 12:18] = True
    exact = Box.of_mask(mask)
    middle = Box((0.0, 13.0, 12.0), (21.0, 16.0, 18.0))
    rng = np.random.default_rng(1)
    boxes = [simulated_box(mask, rng) for _ in range(300)]
    shares = [sum(b == kind for b in boxes) / 300 for kind in (exact, middle)]
    assert shares[0] == pytest.approx(0.5, abs=0.12)
    assert shares[1] == pytest.approx(0.2, abs=0.1)
    sloppy = [b for b in boxes if b not in (exact, middle)]
    assert all(abs(b.lo[1] - 10) <= 4 and abs(b.hi[1] - 20) <= 4 for b in sloppy)


def test_global_batches_depend_on_seed_and_number_alone() -> None:
    source = Samples(GLOBAL, seed=5)
    first = source[3].batch
    source[0]
    again = source[3].batch
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = Samples(GLOBAL, seed=6)[3].batch
    assert first.image.shape != other.image.shape or not torch.equal(first.image, other.image)


def test_local_clicks_are_inside_their_objects() -> None:
    source = Samples(dataclasses.replace(COMPACT["local"], scenes=2, targets=2, size=48), seed=2)
    batch = source[0].batch
    assert batch.image.shape[1:] == (1, 48, 48, 48)
    assert float(batch.image.min()) >= 0 and float(batch.image.max()) <= 1
    assert sorted(set(batch.owner.tolist())) == [0, 1]
    for sample in range(len(batch.truth)):
        z, y, x = batch.first[sample, 0].tolist()
        assert bool(batch.truth[sample, z, y, x])
        assert not bool((batch.truth[sample] & ~batch.valid[sample]).any())

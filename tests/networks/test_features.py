"""Encoded images as batches of one: values, and gradients in one piece."""

from __future__ import annotations

import pytest
import torch
from dualclickmed.networks.features import Features


def features(skips: int) -> Features:
    maps = [torch.randn(3, c, 4, 4, 4, requires_grad=True) for c in range(1, skips + 2)]
    return Features(maps[0], tuple(maps[1:]))


@pytest.mark.parametrize("skips", [0, 1, 2])
def test_split_gives_what_index_gives(skips: int) -> None:
    torch.manual_seed(0)
    whole = features(skips)
    alone = whole.split()
    assert len(alone) == 3
    for i, one in enumerate(alone):
        same = whole.index(i)
        for a, b in zip((one.embedding, *one.skips), (same.embedding, *same.skips), strict=True):
            assert a.shape[0] == 1 and torch.equal(a, b)


def test_gradients_of_a_split_reach_every_image() -> None:
    torch.manual_seed(0)
    whole = features(1)
    sums = [one.embedding.sum() + one.skips[0].sum() for one in whole.split()]
    (sums[0] + 2 * sums[1] + 3 * sums[2]).backward()
    for tensor in (whole.embedding, *whole.skips):
        expected = torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1, 1, 1).expand_as(tensor)
        assert tensor.grad is not None and torch.equal(tensor.grad, expected)

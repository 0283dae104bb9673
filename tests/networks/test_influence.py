"""The clicks' influence maps against a literal form, and what they promise."""

from __future__ import annotations

import math

import pytest
import torch
from dualclickmed.networks.influence import INTENSITY_WIDTH, POWER, REST, click_influence
from torch import Tensor

SIZE = (4, 5, 6)


def unit(*points: tuple[float, float, float]) -> Tensor:
    """Voxels of the map as positions in (0, 1)."""
    return (torch.tensor(points, dtype=torch.float32)[None] + 0.5) / torch.tensor(SIZE)


def kinds(*values: bool) -> Tensor:
    return torch.tensor([values])


def test_a_literal_form_gives_the_same() -> None:
    torch.manual_seed(0)
    image = torch.randn(1, 1, *SIZE)
    points = [(0.0, 1.0, 2.0), (3.0, 4.0, 5.0), (1.0, 1.0, 1.0)]
    positive, negative = (True, False, False), (False, True, False)
    found = click_influence(unit(*points), kinds(*positive), kinds(*negative), image)
    assert found.shape == (1, 2, *SIZE)
    for z in range(SIZE[0]):
        for y in range(SIZE[1]):
            for x in range(SIZE[2]):
                for at, by_intensity in enumerate((False, True)):
                    pull = {True: 0.0, False: 0.0}
                    for (a, b, c), fore, back in zip(points, positive, negative, strict=True):
                        if not fore and not back:
                            continue
                        force = (1 + (z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2) ** -POWER
                        if by_intensity:
                            here, there = image[0, 0, z, y, x], image[0, 0, int(a), int(b), int(c)]
                            force *= math.exp(-0.5 * float((here - there) / INTENSITY_WIDTH) ** 2)
                        pull[fore] += force
                    resistance = (1 + REST**2) ** -POWER
                    expected = (pull[True] - pull[False]) / (pull[True] + pull[False] + resistance)
                    assert float(found[0, at, z, y, x]) == pytest.approx(expected, abs=1e-5)


def test_without_clicks_nothing_pulls() -> None:
    image = torch.randn(2, 1, *SIZE)
    points = unit((1.0, 1.0, 1.0)).expand(2, -1, -1)
    nothing = torch.zeros(2, 1, dtype=torch.bool)
    assert not click_influence(points, nothing, nothing, image).any()
    assert not click_influence(points[:, :0], nothing[:, :0], nothing[:, :0], image).any()


def test_kinds_are_opposite_and_their_order_plays_no_part() -> None:
    torch.manual_seed(1)
    image = torch.randn(1, 1, *SIZE)
    points = unit((0.0, 1.0, 2.0), (3.0, 2.0, 4.0))
    first = click_influence(points, kinds(True, False), kinds(False, True), image)
    swapped = click_influence(points, kinds(False, True), kinds(True, False), image)
    turned = click_influence(points.flip(1), kinds(False, True), kinds(True, False), image)
    torch.testing.assert_close(first, -swapped)
    torch.testing.assert_close(first, turned)


def test_half_way_between_two_clicks_none_wins_and_an_edge_moves_the_border() -> None:
    image = torch.zeros(1, 1, 1, 1, 7)
    image[..., 2:] = 1.0
    points = (torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, 6.0]]]) + 0.5) / torch.tensor([1, 1, 7])
    distance, both = click_influence(points, kinds(True, False), kinds(False, True), image)[0, :, 0, 0]
    assert distance.sign().tolist() == [1, 1, 1, 0, -1, -1, -1]
    assert both.sign().tolist() == [1, 1, -1, -1, -1, -1, -1]

"""Rectangles that become the box of an object."""

from __future__ import annotations

import math

import pytest
from dualclickmed.imaging.geometry import Box
from dualclickmed.imaging.plane_boxes import THICKNESS, joined

UNIT = (1.0, 1.0, 1.0)


def test_a_box_stays_as_it_is() -> None:
    box = Box((3, 4, 5), (9, 12, 20))
    assert joined([box], (3.0, 1.0, 1.0)) == box


def test_the_third_side_of_a_rectangle_goes_by_the_mean_of_the_two_that_were_drawn() -> None:
    box = joined([Box((20, 10, 10), (21, 18, 42))], UNIT)
    assert box.lo[1:] == (10, 10) and box.hi[1:] == (18, 42)
    assert box.sides[0] == pytest.approx(THICKNESS * math.sqrt(8 * 32), abs=2)
    assert box.centre[0] == 20.5


def test_sides_are_compared_in_millimetres() -> None:
    thin = joined([Box((20, 0, 0), (21, 40, 40))], (1.0, 0.5, 0.5))
    thick = joined([Box((20, 0, 0), (21, 40, 40))], (4.0, 0.5, 0.5))
    assert thin.sides[0] == pytest.approx(20 * THICKNESS, abs=2)
    assert thick.sides[0] == pytest.approx(5 * THICKNESS, abs=2)


def test_edges_are_whole() -> None:
    box = joined([Box((20, 3, 3), (21, 10, 14))], (1.3, 0.7, 0.7))
    assert all(edge == int(edge) for edge in (*box.lo, *box.hi))


def test_a_rectangle_in_another_plane_tells_the_third_side() -> None:
    axial, coronal = Box((20, 10, 12), (21, 30, 40)), Box((14, 20, 10), (33, 21, 38))
    assert joined([axial, coronal], UNIT) == Box((14, 10, 10), (33, 30, 40))
    assert joined([coronal, axial], UNIT) == joined([axial, coronal], UNIT)


def test_a_rectangle_in_a_parallel_plane_is_held_as_well() -> None:
    box = joined([Box((10, 0, 0), (11, 4, 4)), Box((40, 2, 2), (41, 6, 6))], UNIT)
    assert box == Box((10, 0, 0), (41, 6, 6))


def test_a_single_voxel_stays_one() -> None:
    voxel = Box((5, 6, 7), (6, 7, 8))
    assert joined([voxel], UNIT) == voxel

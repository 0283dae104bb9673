"""Planes of a DICOM series: one regular grid where they make one, else a refusal that names them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from dualclickmed.errors import VolumeError
from dualclickmed.imaging.planes import Plane, stacked

AXIAL = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


def planes(zs: Sequence[float], directions: Sequence[Sequence[float]] = AXIAL) -> list[Plane]:
    return [
        Plane(f"{n}.dcm", n, np.array([-10, -20, z]), np.array(directions), np.array([0.8, 0.9]))
        for n, z in enumerate(zs)
    ]


def test_slices_are_sorted_and_lie_where_their_files_say() -> None:
    found = stacked(planes([4, 0, 2, 6.0000004]), "series")
    assert found.order == [1, 2, 0, 3] and found.notes == []
    places = [(found.affine @ [0, 0, k, 1])[:3] for k in range(4)]
    np.testing.assert_allclose(places, [(10, 20, z) for z in (0, 2, 4, 6)], atol=1e-5)


def test_a_tilted_gantry_gives_a_sheared_grid_and_a_note() -> None:
    angle = np.radians(20)
    tilted = ((1, 0, 0), (0, np.cos(angle), -np.sin(angle)))
    found = stacked(planes([0, 3, 6, 9], tilted), "series")
    np.testing.assert_allclose(found.affine[:3, 2], [0, 0, 3], atol=1e-12)
    assert len(found.notes) == 1 and "20.0 degrees" in found.notes[0]


def test_frames_of_one_file_keep_their_order() -> None:
    found = stacked(planes([6, 4, 2, 0]), "file", keep_order=True)
    assert found.order == [0, 1, 2, 3]
    np.testing.assert_allclose(found.affine[:3, 2], [0, 0, -2])


def ranked(zs: Sequence[float], ranks: Sequence[int | None]) -> list[Plane]:
    return [replace(plane, rank=rank) for plane, rank in zip(planes(zs), ranks, strict=True)]


@pytest.mark.parametrize("ranks", [[None] * 4, [1, 3, 2, 4], [4, 2, 3, 1]])
def test_interleaved_frames_of_one_file_are_sorted(ranks: Sequence[int | None]) -> None:
    found = stacked(ranked([0, 4, 2, 6], ranks), "file", keep_order=True)
    assert found.order == [0, 2, 1, 3] and len(found.notes) == 1 and "sorted" in found.notes[0]
    np.testing.assert_allclose(found.affine[:3, 2:].T, [[0, 0, 2], [10, 20, 0]])


@pytest.mark.parametrize("ranks", [[1, 2, 3, 4], [1, None, 2, 4]])
def test_frames_whose_numbers_and_positions_disagree_are_refused(ranks: Sequence[int | None]) -> None:
    with pytest.raises(VolumeError, match="InStackPositionNumber"):
        stacked(ranked([0, 4, 2, 6], ranks), "file", keep_order=True)


@pytest.mark.parametrize(
    ("zs", "sentence"),
    [
        ([0, 2, 4, 8, 10], "missing.*2.dcm and 3.dcm"),
        ([0, 1, 2.5, 3, 8], "equally far apart"),
        ([0, 0, 2, 2], "one slice at each position.*0.dcm and 1.dcm"),
        ([0, 1e-4, 2, 2 + 1e-4, 4, 4 + 1e-4], "one slice at each position"),
    ],
)
def test_what_is_no_regular_grid_is_refused(zs: Sequence[float], sentence: str) -> None:
    with pytest.raises(VolumeError, match=sentence):
        stacked(planes(zs), "series")


def test_a_localizer_among_the_slices_is_named() -> None:
    mixed = [*planes([0, 2, 4]), *planes([6], ((0, 1, 0), (0, 0, -1)))[:1]]
    with pytest.raises(VolumeError, match="one orientation"):
        stacked(mixed, "series")

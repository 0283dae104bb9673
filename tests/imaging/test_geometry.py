"""Boxes, regions and resampling: tables of coordinates, and agreement with torch's own resampling."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dualclickmed.imaging.geometry import (
    GLOBAL_GRID,
    LOCAL_WINDOW,
    MERGE_DISTANCE,
    Box,
    Index,
    Outside,
    Position,
    Roi,
    axis_weights,
    crop_to_grid,
    global_roi,
    local_windows,
    paste_from_grid,
    window_at,
)
from hypothesis import given
from hypothesis import strategies as st

SHAPE = (11, 14, 17)


def ramp(shape: Index, slopes: Position = (1.0, 10.0, 100.0)) -> np.ndarray:
    """A volume whose value at (z, y, x) is a linear function of the three."""
    grids = np.meshgrid(*(np.arange(n, dtype=np.float64) for n in shape), indexing="ij")
    return sum(slope * grid for slope, grid in zip(slopes, grids, strict=True)) + 1.0


def noise(shape: Index, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def sampled_by_torch(volume: np.ndarray, roi: Roi) -> torch.Tensor:
    """`grid_sample` at the region's cell centres, zeros outside."""
    axes = []
    for lo, spacing, cells, size in zip(roi.box.lo, roi.spacing, roi.grid, volume.shape, strict=True):
        edges = (torch.arange(cells, dtype=torch.float64) + 0.5) * spacing + lo
        axes.append(edges * 2 / size - 1)
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    grid = torch.stack((x, y, z), dim=-1)[None]
    image = torch.from_numpy(volume.astype(np.float64))[None, None]
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)[
        0, 0
    ].float()


def summed_by_hand(volume: np.ndarray, roi: Roi) -> np.ndarray:
    """The antialiased crop by its definition: a triangle as wide as a cell, zeros around the volume."""
    result = volume.astype(np.float64)
    for axis, (lo, spacing, cells) in enumerate(zip(roi.box.lo, roi.spacing, roi.grid, strict=True)):
        margin = 200
        positions = np.arange(-margin, volume.shape[axis] + margin)
        centres = (np.arange(cells) + 0.5) * spacing + lo - 0.5
        weights = np.clip(1 - np.abs(positions - centres[:, None]) / max(1.0, spacing), 0, None)
        weights /= weights.sum(axis=1, keepdims=True)
        inside = weights[:, margin : margin + volume.shape[axis]]
        result = np.moveaxis(np.tensordot(inside, result, axes=(1, axis)), 0, axis)
    return result


coordinates = st.floats(-30, 30, allow_nan=False).map(lambda value: round(value, 3))
sides = st.floats(0.3, 40, allow_nan=False).map(lambda value: round(value, 3))
cells = st.tuples(*[st.integers(1, 12)] * 3)
indices = st.tuples(*[st.integers(-20, 40)] * 3)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    lo = draw(st.tuples(*[coordinates] * 3))
    length = draw(st.tuples(*[sides] * 3))
    z, y, x = (a + b for a, b in zip(lo, length, strict=True))
    return Box(lo, (z, y, x))


rois = st.builds(Roi, boxes(), cells)


class TestBox:
    @pytest.mark.parametrize(
        ("lo", "hi"),
        [
            ((0, 0, 0), (0, 1, 1)),
            ((0, 0, 2), (1, 1, 1)),
            ((0, float("nan"), 0), (1, 1, 1)),
            ((0, 0, 0), (1, 1, float("inf"))),
        ],
    )
    def test_without_extent_is_refused(self, lo: Position, hi: Position) -> None:
        with pytest.raises(ValueError, match="finite lo < hi"):
            Box(lo, hi)

    def test_between_takes_lists_and_arrays_of_three_numbers_alone(self) -> None:
        assert Box.between([0, 1, 2], np.asarray([3, 4.5, 6])) == Box((0.0, 1.0, 2.0), (3.0, 4.5, 6.0))
        with pytest.raises(ValueError, match="values to unpack"):
            Box.between([0, 1], [3, 4])

    @pytest.mark.parametrize(
        ("points", "lo", "hi"),
        [
            ([(3, 4, 5)], (3, 4, 5), (4, 5, 6)),
            ([(3, 4, 5), (1, 9, 5)], (1, 4, 5), (4, 10, 6)),
            ([(0, 0, 0), (0, 0, 0)], (0, 0, 0), (1, 1, 1)),
            ([(-2, 7, 1), (2, -7, -1), (0, 0, 0)], (-2, -7, -1), (3, 8, 2)),
        ],
    )
    def test_around_holds_whole_voxels(self, points: list[Index], lo: Position, hi: Position) -> None:
        assert Box.around(points) == Box(lo, hi)

    def test_around_nothing_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one point"):
            Box.around([])

    @pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int16, np.float32])
    def test_of_mask_holds_its_voxels(self, dtype: type[np.generic]) -> None:
        mask = np.zeros(SHAPE, dtype=dtype)
        mask[2, 13, 5] = 1
        mask[7, 3, 6] = 1
        assert Box.of_mask(mask) == Box((2, 3, 5), (8, 14, 7))

    def test_of_mask_without_voxels_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one voxel"):
            Box.of_mask(np.zeros(SHAPE, dtype=bool))

    def test_of_mask_needs_three_axes(self) -> None:
        with pytest.raises(ValueError, match=r"shape \(4, 4\)"):
            Box.of_mask(np.ones((4, 4)))

    @given(st.lists(indices, min_size=1, max_size=5))
    def test_around_and_of_mask_agree(self, points: list[Index]) -> None:
        shifted = [(z + 20, y + 20, x + 20) for z, y, x in points]
        mask = np.zeros((61, 61, 61), dtype=bool)
        mask[tuple(np.asarray(shifted).T)] = True
        assert Box.of_mask(mask) == Box.around(shifted)

    def test_sides_and_centre(self) -> None:
        box = Box((1, 2.5, -4), (3, 10, 0))
        assert box.sides == (2, 7.5, 4)
        assert box.centre == (2, 6.25, -2)

    def test_union(self) -> None:
        assert Box((0, 5, 2), (3, 6, 4)).union(Box((1, 1, 1), (2, 2, 9))) == Box((0, 1, 1), (3, 6, 9))

    @pytest.mark.parametrize(
        ("factor", "lo", "hi"),
        [
            (1.0, (10, 20, 30), (20, 24, 31)),
            (2.0, (5, 18, 29.5), (25, 26, 31.5)),
            (0.5, (12.5, 21, 30.25), (17.5, 23, 30.75)),
        ],
    )
    def test_scaled_keeps_the_centre(self, factor: float, lo: Position, hi: Position) -> None:
        assert Box((10, 20, 30), (20, 24, 31)).scaled(factor) == Box(lo, hi)

    def test_at_least_lengthens_only_short_sides(self) -> None:
        assert Box((0, 0.1, 4), (20, 8.1, 6)).at_least(8) == Box((0, 0.1, 1), (20, 8.1, 9))

    @pytest.mark.parametrize(
        ("box", "shape", "touched", "centred"),
        [
            (Box((2, 2, 2), (4, 4, 4)), (9, 9, 9), [(2, 4)] * 3, [(2, 4)] * 3),
            (Box((2.4, 2.5, 2.6), (4.4, 4.5, 4.6)), (9, 9, 9), [(2, 5)] * 3, [(2, 4), (2, 4), (3, 5)]),
            (
                Box((-5, 3, 8.6), (0.4, 50, 8.9)),
                (9, 9, 9),
                [(0, 1), (3, 9), (8, 9)],
                [(0, 0), (3, 9), (9, 9)],
            ),
            (Box((-5, 9, 20), (-2, 12, 30)), (9, 9, 9), [(0, 0), (9, 9), (9, 9)], [(0, 0), (9, 9), (9, 9)]),
        ],
    )
    def test_its_voxels(
        self, box: Box, shape: Index, touched: list[tuple[int, int]], centred: list[tuple[int, int]]
    ) -> None:
        assert [(part.start, part.stop) for part in box.voxels(shape)] == touched
        assert [(part.start, part.stop) for part in box.centres(shape)] == centred

    @given(boxes())
    def test_centres_are_the_voxels_it_contains(self, box: Box) -> None:
        inside = np.zeros(SHAPE, dtype=bool)
        inside[box.centres(SHAPE)] = True
        corners = [sorted({0, n // 2, n - 1}) for n in SHAPE]
        for z, y, x in itertools.product(*corners):
            assert inside[z, y, x] == box.contains((z, y, x))

    @given(boxes())
    def test_touched_voxels_include_the_contained_ones(self, box: Box) -> None:
        for touched, centred in zip(box.voxels(SHAPE), box.centres(SHAPE), strict=True):
            assert touched.start <= touched.stop
            if centred.start < centred.stop:
                assert touched.start <= centred.start
                assert centred.stop <= touched.stop


class TestRoi:
    @pytest.mark.parametrize(
        ("lo", "hi", "cells", "voxel", "grid"),
        [
            (0, 64, 64, 0, 0),  # the identity
            (0, 64, 64, 63, 63),
            (10, 74, 64, 10, 0),  # a shift
            (0, 128, 64, 0, -0.25),  # shrunk by 2: cell 0 lies between voxels 0 and 1
            (0, 128, 64, 1, 0.25),
            (0, 128, 64, 127, 63.25),
            (0, 32, 64, 0, 0.5),  # enlarged by 2: voxel 0 lies between cells 0 and 1
            (0, 32, 64, 31, 62.5),
            (-9, 9, 64, -9, 64 / 36 - 0.5),
            (1.5, 9.5, 64, 5, 31.5),  # the middle of an 8-voxel region about voxel 5
            (5, 6, 1, 5, 0),
        ],
    )
    def test_maps_voxels_to_the_grid_and_back(
        self, lo: float, hi: float, cells: int, voxel: float, grid: float
    ) -> None:
        roi = Roi(Box((lo, 0, 0), (hi, 1, 1)), (cells, 1, 1))
        np.testing.assert_allclose(roi.to_grid([(voxel, 0, 0)]), [(grid, 0, 0)], atol=1e-12)
        np.testing.assert_allclose(roi.to_voxel([(grid, 0, 0)]), [(voxel, 0, 0)], atol=1e-12)

    @given(rois, st.lists(indices, max_size=4))
    def test_voxel_to_grid_to_voxel_is_exact(self, roi: Roi, points: list[Index]) -> None:
        expected = np.asarray(points, dtype=np.float64).reshape(-1, 3)
        np.testing.assert_allclose(roi.to_voxel(roi.to_grid(points)), expected, atol=1e-9)
        np.testing.assert_allclose(roi.to_grid(roi.to_voxel(points)), expected, atol=1e-9)

    @pytest.mark.parametrize(
        ("cells", "voxels"),
        [
            (Box((0, 0, 0), (4, 4, 4)), Box((10, 20, -2), (18, 24, 0))),
            (Box((1, 2, 3), (2, 3, 4)), Box((12, 22, -0.5), (14, 23, 0))),
            (Box((0.5, 0, 0), (3, 4, 2)), Box((11, 20, -2), (16, 24, -1))),
            (Box((-1, 0, 0), (5, 6, 4)), Box((8, 20, -2), (20, 26, 0))),
        ],
        ids=["the whole grid", "one cell", "half a cell", "beyond the grid"],
    )
    def test_a_box_of_cells_is_one_of_voxels(self, cells: Box, voxels: Box) -> None:
        roi = Roi(Box((10, 20, -2), (18, 24, 0)), (4, 4, 4))
        assert roi.box_to_voxel(cells) == voxels

    @pytest.mark.parametrize(
        ("voxel", "cell"), [((2, 10, -3), (0, 1, 0)), ((5, 11, 2), (0, 3, 3)), ((6, 12, 0), (1, 5, 2))]
    )
    def test_the_cell_of_a_voxel(self, voxel: Index, cell: Index) -> None:
        # Cells of 4, half a and two voxels.
        assert Roi(Box((2, 10, -3.5), (10, 13, 4.5)), (2, 6, 4)).cell(voxel) == cell

    @given(rois, indices)
    def test_a_contained_voxel_falls_into_a_cell(self, roi: Roi, voxel: Index) -> None:
        ((*position,),) = roi.to_grid([voxel])
        in_a_cell = all(-0.5 - 1e-9 <= g <= n - 0.5 + 1e-9 for g, n in zip(position, roi.grid, strict=True))
        assert in_a_cell or not roi.box.contains(voxel)

    @pytest.mark.parametrize("axis", [0, 1, 2])
    @pytest.mark.parametrize("factor", [1, 2, 3])
    def test_places_cells_where_interpolate_does(self, axis: int, factor: int) -> None:
        slopes = [0.0, 0.0, 0.0]
        slopes[axis] = 1.0
        volume = ramp((12, 18, 24), (slopes[0], slopes[1], slopes[2])) - 1.0
        grid = (12 // factor, 18 // factor, 24 // factor)
        shrunk = F.interpolate(torch.from_numpy(volume)[None, None], grid, mode="trilinear")[0, 0]
        roi = Roi(Box((0, 0, 0), (12, 18, 24)), grid)
        centres = roi.to_voxel(list(np.ndindex(*grid)))[:, axis]
        np.testing.assert_allclose(shrunk.numpy().reshape(-1), centres, atol=1e-9)

    def test_needs_cells(self) -> None:
        with pytest.raises(ValueError, match="at least one cell"):
            Roi(Box((0, 0, 0), (1, 1, 1)), (1, 0, 1))


class TestGlobalRoi:
    @pytest.mark.parametrize(
        ("box", "lo", "hi"),
        [
            (Box((10, 10, 10), (20, 30, 110)), (6, 2, -30), (24, 38, 150)),
            (Box.around([(5, 5, 5)]), (1.5, 1.5, 1.5), (9.5, 9.5, 9.5)),
            (Box((0, 10, 10), (1, 20, 15)), (-3.5, 6, 8), (4.5, 24, 17)),
        ],
    )
    def test_enlarges_and_keeps_a_least_side(self, box: Box, lo: Position, hi: Position) -> None:
        roi = global_roi(box)
        assert roi.grid == GLOBAL_GRID
        np.testing.assert_allclose(roi.box.lo, lo)
        np.testing.assert_allclose(roi.box.hi, hi)

    @given(boxes())
    def test_holds_the_prompts_about_its_centre(self, box: Box) -> None:
        roi = global_roi(box)
        assert roi.box.union(box) == roi.box
        np.testing.assert_allclose(roi.box.centre, box.centre)
        assert min(roi.box.sides) >= 8 - 1e-9


class TestLocalWindows:
    @pytest.mark.parametrize(
        ("points", "centres"),
        [
            ([], []),
            ([(50, 60, 70)], [(50, 60, 70)]),
            ([(50, 60, 70), (50, 60, 70)], [(50, 60, 70)]),
            ([(50, 60, 85), (50, 60, 70)], [(50, 60, 70)]),  # 15 voxels apart
            ([(50, 60, 86), (50, 60, 70)], [(50, 60, 70), (50, 60, 86)]),  # 16 voxels apart
            ([(0, 0, 30), (0, 0, 15), (0, 0, 0)], [(0, 0, 0), (0, 0, 30)]),  # the middle one shares
        ],
    )
    def test_centres(self, points: list[Index], centres: list[Index]) -> None:
        assert local_windows(points) == [window_at(centre) for centre in centres]

    def test_centres_of_clicks_in_order(self) -> None:
        points = [(0, 0, 15), (0, 0, 30), (0, 0, 0), (0, 0, 31), (0, 0, 15)]
        centres = [(0, 0, 15), (0, 0, 31)]
        assert local_windows(points, in_order=True) == [window_at(centre) for centre in centres]
        for count in range(1, 5):
            found = local_windows(points[:count], in_order=True)
            assert local_windows(points, in_order=True)[: len(found)] == found

    def test_a_window_is_a_copy_about_its_click(self) -> None:
        roi = window_at((50, 60, 70))
        assert roi == Roi(Box((-14, -4, 6), (114, 124, 134)), LOCAL_WINDOW)
        assert roi.is_aligned
        np.testing.assert_array_equal(roi.to_grid([(50, 60, 70)]), [(64, 64, 64)])

    def test_an_odd_window_is_centred(self) -> None:
        assert window_at((5, 5, 5), (3, 5, 7)).box == Box((4, 3, 2), (7, 8, 9))

    @given(st.lists(indices, max_size=8), st.randoms(use_true_random=False))
    def test_hold_every_click_whatever_the_order(self, points: list[Index], random: object) -> None:
        shuffled = list(points)
        random.shuffle(shuffled)  # type: ignore[attr-defined]
        windows = local_windows(points, size=(32, 33, 40))
        assert local_windows(shuffled, size=(32, 33, 40)) == windows
        assert all(any(roi.box.contains(point) for roi in windows) for point in points)
        for a, b in itertools.combinations(windows, 2):
            assert max(abs(p - q) for p, q in zip(a.box.lo, b.box.lo, strict=True)) >= MERGE_DISTANCE


@pytest.mark.parametrize("outside", ["zeros", "edge", "mirror"])
def test_an_aligned_region_inside_is_copied_whatever_is_outside(outside: Outside) -> None:
    volume = noise(SHAPE)
    inside = crop_to_grid(volume, window_at((5, 7, 8), (6, 8, 10)), outside=outside)
    assert np.array_equal(inside.numpy(), volume[2:8, 3:11, 3:13])
    beyond = crop_to_grid(volume, window_at((0, 0, 0), (4, 4, 4)), outside=outside).numpy()
    assert np.array_equal(beyond[2:, 2:, 2:], volume[:2, :2, :2])
    first = {"zeros": 0.0, "edge": volume[0, 0, 0], "mirror": volume[1, 1, 1]}[outside]
    assert beyond[0, 0, 0] == first


@pytest.mark.parametrize(
    ("lo", "hi", "inside"),
    [
        ((0, 0, 0), (11, 14, 17), True),
        ((1, 2, 3), (4, 5, 6), True),
        ((-1, 0, 0), (4, 5, 6), False),
        ((0, 0, 0), (11, 14, 17.5), False),
    ],
)
def test_a_box_lies_in_an_image_or_reaches_beyond_it(lo: Position, hi: Position, inside: bool) -> None:
    assert Box(lo, hi).lies_in(SHAPE) is inside


class TestAxisWeights:
    @pytest.mark.parametrize(
        ("position", "support", "outside", "start", "row"),
        [
            (3.0, 1.0, "zeros", 3, [1.0]),
            (3.25, 1.0, "zeros", 3, [0.75, 0.25]),
            (-0.25, 1.0, "zeros", 0, [0.75]),  # a quarter comes from the zeros outside
            (-0.25, 1.0, "edge", 0, [1.0]),
            (9.75, 1.0, "zeros", 9, [0.25]),
            (9.75, 1.0, "edge", 9, [1.0]),
            (-0.25, 1.0, "mirror", 0, [1.0]),
            (-1.25, 1.0, "mirror", 0, [0.75, 0.25]),  # entries 0 and 1 seen from the other side
            (10.25, 1.0, "mirror", 8, [0.25, 0.75]),
            (-8.0, 1.0, "mirror", 7, [1.0]),
            (3.5, 2.0, "zeros", 2, [0.125, 0.375, 0.375, 0.125]),
            (4.0, 2.0, "zeros", 3, [0.25, 0.5, 0.25]),
        ],
    )
    def test_one_sample(
        self, position: float, support: float, outside: Outside, start: int, row: list[float]
    ) -> None:
        weights = axis_weights([position], 10, support, outside)
        assert weights.start == start
        np.testing.assert_allclose(weights.matrix.numpy(), [row], atol=1e-7)
        assert weights.stop == start + len(row)

    def test_beyond_the_mirrored_rim_nothing_has_weight(self) -> None:
        assert axis_weights([-9.0, 18.0], 10, outside="mirror").matrix.shape == (2, 0)

    def test_far_outside_nothing_has_weight(self) -> None:
        assert axis_weights([-5.0, 40.0], 10).matrix.shape == (2, 0)

    @pytest.mark.parametrize(("size", "support"), [(0, 1.0), (4, 0.5)])
    def test_refuses_what_has_no_meaning(self, size: int, support: float) -> None:
        with pytest.raises(ValueError, match=f"got {support} and {size}"):
            axis_weights([0.0], size, support)


class TestCropToGrid:
    @given(rois, st.integers(0, 5))
    def test_without_antialias_it_is_grid_sample(self, roi: Roi, seed: int) -> None:
        volume = noise(SHAPE, seed)
        cropped = crop_to_grid(volume, roi, antialias=False)
        torch.testing.assert_close(cropped, sampled_by_torch(volume, roi), atol=2e-5, rtol=0)

    @given(rois, st.integers(0, 5))
    def test_with_antialias_it_is_the_triangle_sum(self, roi: Roi, seed: int) -> None:
        volume = noise(SHAPE, seed)
        cropped = crop_to_grid(volume, roi)
        np.testing.assert_allclose(cropped.numpy(), summed_by_hand(volume, roi), atol=2e-5)

    @pytest.mark.parametrize("grid", [(40, 60), (20, 20), (13, 29), (7, 60), (80, 120), (8, 90)])
    def test_agrees_with_interpolate_antialias(self, grid: tuple[int, int]) -> None:
        # Zeros around the content: there the two agree also at the border, where torch sees no outside.
        image = np.zeros((1, 40, 60), dtype=np.float32)
        image[0, 12:28, 12:48] = noise((1, 16, 36))
        expected = F.interpolate(torch.from_numpy(image)[None], grid, mode="bilinear", antialias=True)[0]
        cropped = crop_to_grid(image, Roi(Box((0, 0, 0), (1, 40, 60)), (1, *grid)))
        torch.testing.assert_close(cropped, expected, atol=1e-5, rtol=0)

    def test_agrees_with_interpolate_in_three_axes(self) -> None:
        volume = noise((8, 12, 10))
        grid = (16, 24, 10)
        padded = F.pad(torch.from_numpy(volume), [1] * 6)[None, None]
        expected = F.interpolate(padded, (20, 28, 12), mode="trilinear", align_corners=False)[0, 0]
        cropped = crop_to_grid(volume, Roi(Box((0, 0, 0), (8, 12, 10)), grid))
        torch.testing.assert_close(cropped, expected[2:-2, 2:-2, 1:-1], atol=1e-5, rtol=0)

    @given(rois)
    def test_outside_the_image_is_zero_after_the_transform(self, roi: Roi) -> None:
        volume = noise(SHAPE)
        cropped = crop_to_grid(volume, roi, transform=lambda values: values * 2 + 1000, antialias=False)
        expected = sampled_by_torch(volume.astype(np.float64) * 2 + 1000, roi)
        torch.testing.assert_close(cropped, expected, atol=5e-3, rtol=0)

    @pytest.mark.parametrize("grid", [(4, 4, 4), (5, 6, 7)])
    def test_wholly_outside_is_all_zero(self, grid: Index) -> None:
        roi = Roi(Box((20, 0, 0), (24, 4, 4)), grid)
        cropped = crop_to_grid(np.ones(SHAPE), roi, transform=lambda values: values + 5)
        assert torch.equal(cropped, torch.zeros(grid))

    def test_reads_only_what_carries_weight(self) -> None:
        volume = noise((30, 30, 30))
        roi = Roi(Box((8.5, 9.0, 10.25), (20.5, 21.0, 20.75)), (6, 24, 5))
        expected = crop_to_grid(volume, roi)
        poisoned = np.full_like(volume, np.nan)
        # A shrunk axis reaches half a cell beyond the box, an enlarged one half a voxel.
        part = (slice(7, 22), slice(8, 22), slice(9, 22))
        poisoned[part] = volume[part]
        assert torch.equal(crop_to_grid(poisoned, roi), expected)

    def test_fewer_samples_are_voxels_at_their_places(self) -> None:
        volume = np.random.default_rng(2).normal(size=(40, 30, 20)).astype(np.float32)
        roi = Roi(Box((-7.0, 0.0, 2.0), (45.0, 30.0, 18.0)), (4, 5, 8))
        # Cells of 13, 6 and 2 voxels: every sixth, third and single one is read.
        thin = crop_to_grid(volume, roi, samples=2.0)
        coarse = volume[::6, ::3]
        at = Roi(
            Box((-7.5 / 6 + 0.5, -0.5 / 3 + 0.5, 2.0), (44.5 / 6 + 0.5, 29.5 / 3 + 0.5, 18.0)), (4, 5, 8)
        )
        torch.testing.assert_close(thin, crop_to_grid(coarse, at), atol=1e-5, rtol=0)
        torch.testing.assert_close(
            crop_to_grid(volume, roi, samples=13.0), crop_to_grid(volume, roi), atol=0, rtol=0
        )
        z, y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in volume.shape), indexing="ij")
        ramp = z + 2 * y + 3 * x
        inner = Roi(Box((8.0, 6.0, 2.0), (32.0, 24.0, 18.0)), (3, 3, 8))
        torch.testing.assert_close(
            crop_to_grid(ramp, inner, samples=2.0), crop_to_grid(ramp, inner), atol=1e-2, rtol=0
        )

    @pytest.mark.parametrize("antialias", [True, False])
    def test_pieces_do_not_show(self, monkeypatch: pytest.MonkeyPatch, antialias: bool) -> None:
        volume, roi = noise((37, 20, 20)), Roi(Box((-2, 1, 0), (39, 18, 25)), (16, 16, 16))
        whole = crop_to_grid(volume, roi, torch.sin, antialias)
        monkeypatch.setattr("dualclickmed.imaging.geometry._CHUNK_VOXELS", 1000)
        torch.testing.assert_close(crop_to_grid(volume, roi, torch.sin, antialias), whole, atol=1e-6, rtol=0)

    @pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", ">i2", "i4", "f4", "f8", "?"])
    @pytest.mark.parametrize("grid", [(6, 6, 6), (4, 9, 3)])
    def test_takes_any_dtype_and_layout(self, dtype: str, grid: Index) -> None:
        values = np.random.default_rng(1).integers(0, 100, size=SHAPE)
        volume = np.asfortranarray(values.astype(dtype))[::-1]
        volume.flags.writeable = False
        roi = Roi(Box((2, 3, 4), (8, 9, 10)), grid)
        expected = crop_to_grid(np.ascontiguousarray(volume).astype(np.float32), roi)
        assert torch.equal(crop_to_grid(volume, roi), expected)

    @given(indices, cells)
    def test_an_aligned_window_copies_voxels(self, centre: Index, size: Index) -> None:
        volume = noise(SHAPE)
        roi = window_at(centre, size)
        margin = 60
        lo = [int(edge) + margin for edge in roi.box.lo]
        z, y, x = (slice(a, a + n) for a, n in zip(lo, size, strict=True))
        expected = np.pad(volume, margin)[z, y, x]
        np.testing.assert_array_equal(crop_to_grid(volume, roi).numpy(), expected)

    def test_the_volume_is_left_as_it_is(self) -> None:
        volume = noise(SHAPE)
        before = volume.copy()
        for grid in ((4, 4, 4), (3, 3, 3)):
            crop_to_grid(
                volume, Roi(Box((2, 2, 2), (6, 6, 6)), grid), transform=lambda values: values.mul_(3)
            )
        np.testing.assert_array_equal(volume, before)

    def test_needs_three_axes(self) -> None:
        with pytest.raises(ValueError, match=r"shape \(3, 3\)"):
            crop_to_grid(np.ones((3, 3)), window_at((1, 1, 1)))


class TestPasteFromGrid:
    @given(rois)
    def test_fills_the_voxels_inside_the_box(self, roi: Roi) -> None:
        region, values = paste_from_grid(torch.ones(roi.grid), roi, SHAPE)
        assert region == roi.box.centres(SHAPE)
        assert values.shape == torch.zeros(SHAPE)[region].shape
        torch.testing.assert_close(values, torch.ones_like(values))

    @given(rois, st.integers(0, 5))
    def test_it_is_grid_sample_with_held_edges(self, roi: Roi, seed: int) -> None:
        values = noise(roi.grid, seed)
        region, pasted = paste_from_grid(torch.from_numpy(values), roi, SHAPE)
        if pasted.numel() == 0:
            return
        centres = np.stack(np.meshgrid(*(np.arange(s.start, s.stop) for s in region), indexing="ij"), axis=-1)
        where = roi.to_grid(centres.reshape(-1, 3))
        scaled = torch.from_numpy((where + 0.5) * 2 / np.asarray(roi.grid) - 1).flip(-1)
        expected = F.grid_sample(
            torch.from_numpy(values).double()[None, None],
            scaled[None, :, None, None],
            padding_mode="border",
            align_corners=False,
        )
        torch.testing.assert_close(pasted.reshape(-1), expected.reshape(-1).float(), atol=2e-5, rtol=0)

    @given(boxes(), st.tuples(*[st.integers(2, 12)] * 3), st.booleans())
    def test_a_linear_ramp_survives_crop_and_paste(self, box: Box, grid: Index, antialias: bool) -> None:
        volume = ramp((120, 120, 120))
        sides = box.sides
        if antialias:
            # Widened triangles keep a ramp exactly where the cell size is a whole number of voxels.
            z, y, x = (n * max(1.0, float(round(side / n))) for side, n in zip(sides, grid, strict=True))
            sides = (z, y, x)
        z, y, x = (lo + 40 for lo in box.lo)
        roi = Roi(Box((z, y, x), (z + sides[0], y + sides[1], x + sides[2])), grid)
        region, pasted = paste_from_grid(crop_to_grid(volume, roi, antialias=antialias), roi, volume.shape)
        # Beyond the outermost cell centres the edge values are held, and a ramp turns flat.
        first, last = roi.to_voxel([(0, 0, 0), np.asarray(grid) - 1])
        between = tuple(
            slice(max(0, int(np.ceil(a)) - part.start), max(0, int(np.floor(b)) + 1 - part.start))
            for a, b, part in zip(first, last, region, strict=True)
        )
        expected = torch.from_numpy(volume[region][between]).float()
        torch.testing.assert_close(pasted[between], expected, atol=0.02, rtol=0)

    @given(indices, cells)
    def test_an_aligned_window_copies_values(self, centre: Index, size: Index) -> None:
        volume = noise(SHAPE)
        roi = window_at(centre, size)
        region, pasted = paste_from_grid(crop_to_grid(volume, roi), roi, SHAPE)
        np.testing.assert_array_equal(pasted.numpy(), volume[region])

    def test_aligned_values_are_a_copy(self) -> None:
        values = torch.zeros(4, 4, 4)
        _, pasted = paste_from_grid(values, window_at((5, 5, 5), (4, 4, 4)), SHAPE)
        pasted += 1
        assert values.sum() == 0

    def test_gradients_reach_the_grid(self) -> None:
        values = torch.zeros(3, 3, 3, requires_grad=True)
        _, pasted = paste_from_grid(values, Roi(Box((2, 2, 2), (8, 8, 8)), (3, 3, 3)), SHAPE)
        pasted.sum().backward()
        assert values.grad is not None
        torch.testing.assert_close(values.grad.sum(), torch.tensor(216.0))

    def test_refuses_another_shape(self) -> None:
        with pytest.raises(ValueError, match=r"\(4, 4, 4\).*\(4, 4, 5\)"):
            paste_from_grid(torch.zeros(4, 4, 5), window_at((5, 5, 5), (4, 4, 4)), SHAPE)

"""Intensities: the windows' numbers, which map is chosen, and what each expert's input looks like."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dualclickmed.errors import UserError
from dualclickmed.imaging.intensity import (
    CHOICES,
    CT_WINDOWS,
    IDENTITY,
    IntensityMap,
    choose_map,
    normalise_global,
    normalise_local,
)
from hypothesis import given
from hypothesis import strategies as st

CT_RANGE = (-1024.0, 3071.0)
NOTHING = np.empty(0)


def no_percentiles(q: float) -> float:
    raise AssertionError(f"percentile {q} is not needed here")


class TestIntensityMap:
    @pytest.mark.parametrize(
        ("window", "lo", "hi"),
        [
            ("soft tissue", -160, 240),
            ("lung", -910, 590),
            ("brain", 0, 80),
            ("bone", -500, 1300),
        ],
    )
    def test_windows_in_hounsfield_units(self, window: str, lo: float, hi: float) -> None:
        assert IntensityMap.of_window(window) == IntensityMap(lo, hi)

    def test_maps_linearly_and_clips(self) -> None:
        values = np.array([-1000, -160, -60, 40, 240, 3000], dtype=np.int16)
        grey = IntensityMap(-160, 240)(values)
        assert grey.dtype == np.float32
        np.testing.assert_allclose(grey, [0, 0, 63.75, 127.5, 255, 255])

    def test_keeps_the_kind(self) -> None:
        tensor = IntensityMap(0, 2)(torch.ones(2, 3, dtype=torch.float64))
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, torch.full((2, 3), 127.5))

    def test_leaves_its_input_alone(self) -> None:
        tensor, array = torch.full((2,), 7.0), np.full(2, 7.0, dtype=np.float32)
        IntensityMap(0, 100)(tensor)
        IntensityMap(0, 100)(array)
        assert tensor.tolist() == array.tolist() == [7.0, 7.0]

    def test_identity_changes_no_grey_level(self) -> None:
        levels = torch.arange(256.0)
        assert torch.equal(IDENTITY(levels), levels)

    @given(st.floats(-1e4, 1e4), st.floats(1e-2, 1e4), st.lists(st.floats(-1e5, 1e5), min_size=1))
    def test_stays_within_range_and_in_order(self, lo: float, width: float, values: list[float]) -> None:
        grey = IntensityMap(lo, lo + width)(torch.tensor(sorted(values), dtype=torch.float64))
        assert grey.min() >= 0
        assert grey.max() <= 255
        assert torch.all(grey.diff() >= 0)

    @pytest.mark.parametrize(("lo", "hi"), [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0)])
    def test_needs_an_interval(self, lo: float, hi: float) -> None:
        with pytest.raises(ValueError, match="lo < hi"):
            IntensityMap(lo, hi)


class TestChooseMap:
    @pytest.mark.parametrize("choice", CT_WINDOWS)
    def test_a_named_window_on_ct(self, choice: str) -> None:
        chosen = choose_map(choice, "ct", no_percentiles, np.full(5, -900.0), CT_RANGE)
        assert chosen == IntensityMap.of_window(choice)

    @pytest.mark.parametrize(
        ("sample", "window"),
        [
            ([], "soft tissue"),
            ([50, 40, 60], "soft tissue"),
            ([-100], "soft tissue"),  # fat
            ([-160], "soft tissue"),
            ([-161], "lung"),
            ([-1000], "lung"),  # air
            ([-850, -820, -700, 40, 50], "lung"),  # lung with some vessels
            ([-850, 30, 40, 45, 50], "soft tissue"),  # an organ beside the lung
            ([240], "soft tissue"),
            ([241], "bone"),
            ([700, 900, 300], "bone"),
        ],
    )
    def test_auto_on_ct_goes_by_the_median(self, sample: list[float], window: str) -> None:
        chosen = choose_map("auto", "ct", no_percentiles, np.asarray(sample, dtype=np.float32), CT_RANGE)
        assert chosen == IntensityMap.of_window(window)

    @pytest.mark.parametrize("choice", [choice for choice in CHOICES if choice != "none"])
    @pytest.mark.parametrize("modality", ["mr", "pt", "us", "microscopy", "unknown"])
    def test_other_modalities_go_by_percentiles(self, choice: str, modality: str) -> None:
        percentiles = {0.5: 3.0, 99.5: 900.0}
        chosen = choose_map(choice, modality, percentiles.__getitem__, NOTHING, (0.0, 4000.0))
        assert chosen == IntensityMap(3.0, 900.0)

    @pytest.mark.parametrize("choice", CHOICES)
    @pytest.mark.parametrize("modality", ["ct", "us", "unknown"])
    @pytest.mark.parametrize("value_range", [(0.0, 255.0), (3.0, 77.5), (0.0, 1.5)])
    def test_grey_levels_stay(self, choice: str, modality: str, value_range: tuple[float, float]) -> None:
        assert choose_map(choice, modality, no_percentiles, NOTHING, value_range) == IDENTITY

    @pytest.mark.parametrize("value_range", [(-1.0, 255.0), (0.0, 256.0), (0.0, 1.0)])
    def test_what_is_not_grey_levels_is_mapped(self, value_range: tuple[float, float]) -> None:
        chosen = choose_map("auto", "mr", {0.5: 0.1, 99.5: 0.9}.__getitem__, NOTHING, value_range)
        assert chosen == IntensityMap(0.1, 0.9)

    @pytest.mark.parametrize("modality", ["ct", "mr"])
    @pytest.mark.parametrize(
        ("value_range", "expected"),
        [
            ((0.0, 255.0), IDENTITY),
            ((0.0, 1.0), IDENTITY),
            ((-1000.0, 2000.0), IntensityMap(-1000, 2000)),
            ((300.0, 300.0), IntensityMap(300, 301)),
        ],
    )
    def test_none_keeps_the_full_range(
        self, modality: str, value_range: tuple[float, float], expected: IntensityMap
    ) -> None:
        assert choose_map("none", modality, no_percentiles, NOTHING, value_range) == expected

    def test_few_bright_voxels_are_not_lost(self) -> None:
        chosen = choose_map("auto", "microscopy", lambda q: 10.0, NOTHING, (10.0, 5000.0))
        assert chosen == IntensityMap(10, 5000)

    def test_an_unknown_choice_names_the_known_ones(self) -> None:
        with pytest.raises(UserError, match=r"auto, soft tissue, lung, brain, bone, none.*'abdomen'"):
            choose_map("abdomen", "ct", no_percentiles, NOTHING, CT_RANGE)


class TestNormaliseGlobal:
    def test_is_the_z_score_of_the_voxels_above_zero(self) -> None:
        values = torch.zeros(4, 4, 4)
        values[:2] = torch.linspace(10, 200, 32).reshape(2, 4, 4)
        counted = values[:2].numpy()
        expected = (values.numpy() - counted.mean()) / counted.std()
        np.testing.assert_allclose(normalise_global(values).numpy(), expected, atol=1e-5)

    def test_zeros_stay_zero(self) -> None:
        assert torch.equal(normalise_global(torch.zeros(3, 3, 3)), torch.zeros(3, 3, 3))

    def test_a_flat_region_does_not_become_noise(self) -> None:
        values = torch.full((4, 4, 4), 100.0)
        values[0, 0, 0] = 100.01
        assert normalise_global(values).abs().max() < 0.02

    def test_each_volume_of_a_batch_on_its_own(self) -> None:
        generator = torch.Generator().manual_seed(0)
        batch = torch.rand(3, 1, 5, 5, 5, generator=generator) * torch.tensor([20.0, 100, 255]).reshape(
            3, 1, 1, 1, 1
        )
        together = normalise_global(batch)
        for one, expected in zip(batch, together, strict=True):
            torch.testing.assert_close(normalise_global(one[0]), expected[0])

    @given(st.floats(0.3, 1.0), st.integers(0, 100))
    def test_does_not_depend_on_brightness(self, factor: float, seed: int) -> None:
        values = torch.rand(4, 5, 6, generator=torch.Generator().manual_seed(seed)) * 255
        torch.testing.assert_close(
            normalise_global(values * factor), normalise_global(values), atol=1e-4, rtol=0
        )


class TestNormaliseLocal:
    def test_maps_the_percentiles_to_the_unit_interval(self) -> None:
        values = torch.tensor([-2000.0, -900, -450, 0, 900, 3000])
        expected = torch.tensor([0.0, 0.0, 0.25, 0.5, 1.0, 1.0])
        torch.testing.assert_close(normalise_local(values, -900, 900), expected)

    def test_equal_percentiles_make_a_step(self) -> None:
        values = torch.tensor([4.0, 5.0, 6.0])
        assert normalise_local(values, 5, 5).tolist() == [0, 0, 1]

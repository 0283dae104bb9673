"""Dice, surface Dice and the challenge's click, against literal forms, and the ellipsoid."""

from __future__ import annotations

import cc3d
import numpy as np
import pytest
from dualclickmed.evaluation.metrics import area_under_curve, dice, ellipsoid_in_box, next_click, surface_dice
from monai.metrics.utils import create_table_neighbour_code_to_surface_area
from scipy import integrate, ndimage

SPACINGS = (0.2, 0.6666667, 0.9766, 1.0, 1.5, 2.0, 3.27)
PAIRS = 200


def random_pair(seed: int) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
    """A mask, a truth that is not empty, and a spacing: empty, tiny, touching borders, anisotropic."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(3, 30, 3)
    mask, truth = (
        ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0.3, 2.0))
        > rng.choice([0, 0.02, 0.1, 0.3])
        for _ in range(2)
    )
    kind = seed % 10
    if kind == 0:
        mask[:] = False
    if kind in (1, 2):
        truth[:] = False
        truth[tuple(rng.integers(n) for n in shape)] = True
    if kind == 3:
        mask = ndimage.binary_dilation(truth)
    if kind == 4:
        truth[0], truth[:, -1] = True, True
    if not truth.any():
        truth[0, 0, 0] = True
    z, y, x = rng.choice(SPACINGS, 3)
    return mask, truth, (float(z), float(y), float(x))


def literal_surface_dice(
    mask: np.ndarray, truth: np.ndarray, spacing: tuple[float, ...], tolerance: float
) -> float:
    """As the challenge writes it: distance maps of both borders, areas by neighbourhood, in float64."""
    kernel = np.array([[[128, 64], [32, 16]], [[8, 4], [2, 1]]])
    table = create_table_neighbour_code_to_surface_area(spacing)[0].double().numpy()
    codes = [ndimage.correlate(np.pad(m, 1).astype(np.int64), kernel, mode="constant") for m in (mask, truth)]
    borders = [(code != 0) & (code != 255) for code in codes]
    maps = [
        ndimage.distance_transform_edt(~border, sampling=spacing)
        if border.any()
        else np.full(border.shape, np.inf)
        for border in borders
    ]
    areas = [table[code][border] for code, border in zip(codes, borders, strict=True)]
    near = sum(areas[i][maps[1 - i][borders[i]] <= tolerance].sum() for i in range(2))
    return float(near / (areas[0].sum() + areas[1].sum()))


def literal_click(mask: np.ndarray, truth: np.ndarray) -> tuple[int, ...]:
    """As the challenge writes it, on the whole volume."""
    error = (mask != truth).astype(np.uint8)
    components = cc3d.connected_components(error, connectivity=26)
    sizes = np.bincount(components.flat)
    sizes[0] = 0
    depth = ndimage.distance_transform_edt(np.pad(components == np.argmax(sizes), 1))[1:-1, 1:-1, 1:-1]
    deepest = np.argwhere(depth == depth.max())
    np.random.seed(42)  # noqa: NPY002
    return tuple(int(p) for p in deepest[np.random.choice(len(deepest))])  # noqa: NPY002


def test_scores_are_the_challenges() -> None:
    for seed in range(PAIRS):
        mask, truth, spacing = random_pair(seed)
        both = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
        assert dice(mask, truth) == pytest.approx(both, abs=1e-12)
        expected = literal_surface_dice(mask, truth, spacing, 2.0)
        assert surface_dice(mask, truth, spacing) == pytest.approx(expected, abs=1e-6), seed


def test_clicks_are_the_challenges() -> None:
    state = np.random.get_state()  # noqa: NPY002
    for seed in range(PAIRS):
        mask, truth, _ = random_pair(seed)
        click = next_click(mask, truth)
        if (mask == truth).all():
            assert click is None
            continue
        assert click is not None and click.index == literal_click(mask, truth), seed
        assert click.positive == bool(truth[click.index])
    np.random.set_state(state)  # noqa: NPY002


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (0, 0.8476399058963525),
        (1, 0.9575025333287148),
        (2, 0.9812584559872624),
        (3, 0.8183101030568306),
        (4, 0.9508590168327975),
        (5, 0.7948891173820235),
    ],
)
def test_surface_dice_is_deepminds(seed: int, expected: float) -> None:
    """The values are those of the package surface-distance 0.1, whose code the challenge uses."""
    rng = np.random.default_rng(seed)
    shape = rng.integers(4, 24, 3)
    mask, truth = (
        ndimage.gaussian_filter(rng.normal(size=shape), rng.uniform(0.4, 2.0)) > 0.05 for _ in range(2)
    )
    z, y, x = rng.choice([0.3, 0.6666667, 1.0, 1.5, 3.27], 3)
    assert surface_dice(mask, truth, (z, y, x)) == pytest.approx(expected, abs=1e-6)


def test_surfaces_exactly_at_the_tolerance_count_wherever_they_are() -> None:
    for shift in range(3, 30, 4):
        mask, truth = np.zeros((40, 4, 4), bool), np.zeros((40, 4, 4), bool)
        truth[shift : shift + 3] = True
        mask[shift : shift + 6] = True
        # One face is three steps of 2/3 mm away: 2.0000001 mm is more than 2, 2 mm is not.
        assert surface_dice(mask, truth, (2 / 3, 50.0, 50.0)) == pytest.approx(1.0)
        assert surface_dice(mask, truth, (0.6666667, 50.0, 50.0)) < 0.8


def test_dice_values() -> None:
    a, b = np.zeros((2, 2, 2), bool), np.zeros((2, 2, 2), bool)
    assert dice(a, b) == 1.0 and surface_dice(a, b, (1, 1, 1)) == 1.0
    a[0] = True
    assert dice(a, b) == 0.0 and surface_dice(a, b, (1, 1, 1)) == 0.0
    b[:, 0] = True
    assert dice(a, b) == 0.5


def test_the_area_is_that_of_the_click_steps() -> None:
    scores = [0.5, 0.6, 0.7, 0.9, 0.8]
    assert area_under_curve(scores) == pytest.approx(
        float(integrate.cumulative_trapezoid(np.array(scores), np.arange(5))[-1])
    )
    assert area_under_curve([1.0] * 5) == 4.0


def test_no_error_no_click_and_the_same_click_each_time() -> None:
    truth = np.zeros((5, 5, 5), bool)
    assert next_click(truth, truth) is None
    truth[1:3, 1:3, 1:3] = True
    assert next_click(np.zeros_like(truth), truth) == next_click(np.zeros_like(truth), truth)


@pytest.mark.parametrize("line", [(1, 0, 1), (1, 0, 1, 0, 1), (1, 0, 1, 1, 0), (1, 0, 1, 1, 0, 1)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_errors_in_a_line_with_gaps_get_their_click(line: tuple[int, ...], axis: int) -> None:
    shape = [1, 1, 1]
    shape[axis] = len(line)
    truth = np.asarray(line, dtype=bool).reshape(shape)
    click = next_click(np.zeros_like(truth), truth)
    assert click is not None
    assert click.positive
    assert truth[click.index]
    if len(line) > 3 and line[2:4] == (1, 1):
        assert click.index[axis] in (2, 3)


def test_ellipsoid_touches_its_box_and_has_its_volume() -> None:
    mask = ellipsoid_in_box((40, 50, 60), (5.0, 10.0, 12.0), (35.0, 40.0, 52.0))
    where = np.argwhere(mask)
    assert where.min(axis=0).tolist() == [5, 10, 12]
    assert where.max(axis=0).tolist() == [34, 39, 51]
    assert mask.sum() == pytest.approx(np.pi / 6 * 30 * 30 * 40, rel=0.01)

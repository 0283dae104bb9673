"""The picture of a result: which slices, where contours, clicks and box lie, and which way is up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dualclickmed.demo.picture import draw, planes, save_picture
from dualclickmed.imaging.geometry import Box
from dualclickmed.imaging.mask_files import Segment
from dualclickmed.imaging.prompts import Click, Prompts
from dualclickmed.imaging.volume import Volume, from_array
from matplotlib import image as images
from matplotlib.axes import Axes
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure

SPACING = (3.0, 1.0, 2.0)
BLUE = Segment("thing", 7, (0, 0, 255))
MM = {"axial": (1, 2), "coronal": (0, 2), "sagittal": (0, 1)}
"""Canonical axes down and across each view."""


@pytest.fixture
def volume() -> Volume:
    rng = np.random.default_rng(0)
    return from_array(rng.integers(0, 200, (20, 30, 40), dtype=np.int16), SPACING)


@pytest.fixture
def labels() -> np.ndarray:
    labels = np.zeros((20, 30, 40), dtype=np.uint8)
    labels[4:9, 10:22, 6:18] = BLUE.value
    return labels


def views(figure: Figure) -> dict[str, Axes]:
    assert len(figure.axes) == 3
    return dict(zip(MM, figure.axes, strict=True))


def outline(axes: Axes) -> np.ndarray:
    """Corners (across, down) of the line contours of a view, in mm."""
    lines = [c for c in axes.collections if isinstance(c, ContourSet) and not c.filled]
    return np.concatenate([path.vertices for contour in lines for path in contour.get_paths()])


def test_contours_enclose_the_mask_in_millimetres(volume: Volume, labels: np.ndarray) -> None:
    extent = {0: (4, 9), 1: (10, 22), 2: (6, 18)}
    for name, axes in views(draw(volume, labels, [BLUE])).items():
        down, across = MM[name]
        for column, axis in ((0, across), (1, down)):
            found = outline(axes)[:, column]
            expected = np.array(extent[axis]) * SPACING[axis]
            # The contour runs half-way between a voxel inside and one outside.
            np.testing.assert_allclose([found.min(), found.max()], expected, atol=1e-6)


def test_the_three_views_share_one_scale(volume: Volume, labels: np.ndarray) -> None:
    figure = draw(volume, labels, [BLUE])
    width, height = figure.get_size_inches()
    scales = []
    for axes in views(figure).values():
        box = axes.get_position()
        scales.append(box.width * width / abs(np.diff(axes.get_xlim())[0]))
        scales.append(box.height * height / abs(np.diff(axes.get_ylim())[0]))
    np.testing.assert_allclose(scales, scales[0])


def test_radiological_orientation(volume: Volume, labels: np.ndarray) -> None:
    shown = views(draw(volume, labels, [BLUE]))
    # Canonical indices grow towards S, P and L: L is drawn right, P below or right, S above.
    assert all(np.diff(axes.get_xlim())[0] > 0 for axes in shown.values())
    assert {name: bool(np.diff(axes.get_ylim())[0] > 0) for name, axes in shown.items()} == {
        "axial": False,
        "coronal": True,
        "sagittal": True,
    }
    letters = {}
    for name, axes in shown.items():
        places = {text.get_position(): text.get_text() for text in axes.texts if len(text.get_text()) == 1}
        by_x = sorted(place for place in places if place[1] == 0.5)
        by_y = sorted((place for place in places if place[0] == 0.5), key=lambda place: place[1])
        letters[name] = "".join(places[place] for place in by_x + by_y)
    assert letters == {"axial": "RLPA", "coronal": "RLIS", "sagittal": "APIS"}


def test_clicks_and_box_lie_where_they_were_given(volume: Volume, labels: np.ndarray) -> None:
    given = Prompts(
        (Click((5, 12, 8)), Click((5, 2, 30), False), Click((17, 12, 20))), Box((4, 10, 6), (9, 22, 18))
    )
    axial = views(draw(volume, labels, [BLUE], [given]))["axial"]
    box, *clicks = axial.lines
    xs, ys = box.get_xdata(), box.get_ydata()
    assert (min(xs), max(xs), min(ys), max(ys)) == (12, 36, 10, 22)  # type: ignore[arg-type, type-var]
    assert [(c.get_xdata()[0], c.get_ydata()[0], c.get_marker(), c.get_alpha()) for c in clicks] == [  # type: ignore[index]
        (17.0, 12.5, "P", 1.0),
        (61.0, 2.5, "X", 1.0),
        # In another slice, and so drawn faintly.
        (41.0, 12.5, "P", 0.3),
    ]


def test_a_box_is_drawn_only_where_the_plane_cuts_it(volume: Volume, labels: np.ndarray) -> None:
    given = Prompts((Click((15, 12, 8)),), Box((4, 10, 6), (9, 22, 18)))
    shown = views(draw(volume, labels, [BLUE], [given]))
    assert {name: len(axes.lines) for name, axes in shown.items()} == {
        "axial": 1,
        "coronal": 2,
        "sagittal": 2,
    }


def test_planes(volume: Volume, labels: np.ndarray) -> None:
    click, box = Click((3, 4, 5)), Box((0, 0, 30), (4.5, 3, 41))
    nothing = np.zeros_like(labels)
    assert planes(volume, labels, [Prompts(box=box), Prompts((Click((1, 1, 1), False), click))]) == (3, 4, 5)
    assert planes(volume, labels, [Prompts((Click((1, 1, 1), False),), box)]) == (2, 1, 35)
    assert planes(volume, labels, []) == (6, 15, 11)
    assert planes(volume, nothing, []) == (10, 15, 20)
    # The middle of a ring is not in it.
    ring = nothing.copy()
    ring[5, 10:21, 10:21] = 1
    ring[5, 11:20, 11:20] = 0
    assert ring[planes(volume, ring, [])] == 1


def test_the_file_shows_the_colour_of_the_label(volume: Volume, labels: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.png"
    save_picture(path, volume, labels, [BLUE], caption="x" * 400)
    pixels = images.imread(path)[..., :3]
    pure = (pixels[..., 2] > 0.9) & (pixels[..., :2].max(axis=-1) < 0.1)
    assert pure.sum() > 500
    plain = tmp_path / "plain.png"
    save_picture(plain, volume, np.zeros_like(labels), [BLUE])
    bare = images.imread(plain)[..., :3]
    assert not ((bare[..., 2] > 0.9) & (bare[..., :2].max(axis=-1) < 0.1)).any()


@pytest.mark.parametrize("shape", [(1, 30, 40), (20, 1, 1), (2, 2, 2)])
def test_flat_volumes_can_be_drawn(shape: tuple[int, int, int], tmp_path: Path) -> None:
    flat = from_array(np.arange(np.prod(shape), dtype=np.int16).reshape(shape), SPACING)
    save_picture(
        tmp_path / "flat.png", flat, np.ones(shape, dtype=np.uint8), [Segment("all", 1, (255, 0, 0))]
    )
    height, width, _ = images.imread(tmp_path / "flat.png").shape
    assert width == 1560 and 50 < height < 1700


def test_dim_images_are_shown_in_their_own_range() -> None:
    """Uptake of 0 to 12, say, would be black on a scale of 0 to 255."""
    dim = from_array(np.linspace(0, 12, 4000, dtype=np.float32).reshape(10, 20, 20), modality="pt")
    axial = views(draw(dim, np.zeros(dim.shape, dtype=np.uint8), []))["axial"]
    shown = axial.images[0].get_array()
    np.testing.assert_allclose([shown.min(), shown.max()], [127.6, 153.3], atol=3)  # type: ignore[arg-type, union-attr]


def test_ct_is_shown_in_the_window_asked_for() -> None:
    values = np.linspace(-1000, 1000, 4000).reshape(10, 20, 20).astype(np.int16)
    volume = from_array(values, modality="ct")
    nothing = np.zeros(volume.shape, dtype=np.uint8)
    shown = views(draw(volume, nothing, [], intensity="bone"))["axial"].images[0].get_array()
    # Window 1800, level 400.
    np.testing.assert_allclose(shown, np.clip((values[5] + 500) / 1800 * 255, 0, 255), atol=0.01)  # type: ignore[arg-type]


def test_labels_of_another_shape_are_refused(volume: Volume) -> None:
    with pytest.raises(ValueError, match=r"shape \(1, 2, 3\) do not fit the volume's \(20, 30, 40\)"):
        draw(volume, np.zeros((1, 2, 3), dtype=np.uint8), [BLUE])

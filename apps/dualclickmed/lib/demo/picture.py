"""A segmentation as a picture: three slices at right angles with contours, clicks and the box."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from ..experts.inputs import map_at_points, map_in_box
from ..imaging.geometry import Box, Index
from ..imaging.intensity import IntensityMap
from ..imaging.mask_files import Segment
from ..imaging.prompts import Prompts
from ..imaging.volume import Volume

WIDTH_INCHES = 13.0
HEIGHT_INCHES = 13.0
"""At most, without the caption."""
DPI = 120
SHOWN_PERCENTILES = (0.5, 99.8)
"""What is black and white in images other than CT."""
_CAPTION_INCHES = 0.45
_GAP_INCHES = 0.15
_FOREGROUND, _BACKGROUND, _BOX = "#39ff6a", "#ff4d4d", "#ffd54a"


_LETTER_PLACES = (
    (0.012, 0.5, "left", "center"),
    (0.988, 0.5, "right", "center"),
    (0.5, 0.985, "center", "top"),
    (0.5, 0.015, "center", "bottom"),
)


@dataclass(frozen=True)
class _View:
    """One slice direction. Canonical axes are 0 = towards S, 1 = towards P, 2 = towards L."""

    name: str
    normal: int
    down: int
    across: int
    letters: tuple[str, str, str, str]
    """Left, right, top, bottom."""

    @property
    def upwards(self) -> bool:
        """Rows are drawn from the last to the first: up is superior."""
        return self.down == 0


# As radiologists look: from the feet, from the front, from the patient's left.
_VIEWS = (
    _View("axial", 0, 1, 2, ("R", "L", "A", "P")),
    _View("coronal", 1, 0, 2, ("R", "L", "S", "I")),
    _View("sagittal", 2, 0, 1, ("A", "P", "S", "I")),
)


def save_picture(
    path: Path,
    volume: Volume,
    labels: npt.NDArray[np.uint8],
    segments: Sequence[Segment],
    prompts: Sequence[Prompts] = (),
    caption: str = "",
    intensity: str = "auto",
) -> None:
    """Draw a segmentation in the three planes through its first click, in the radiological convention.

    Without a foreground click the planes go through the middle of the box, else of the mask. Millimetres have
    the same length in all three views.

    Args:
        path: the picture; its ending chooses the format (``.png``). Missing folders are made.
        volume: the image.
        labels: (D, H, W) in canonical order.
        segments: name, value and colour of what is outlined.
        prompts: one for each object, drawn where they lie in the planes.
        caption: a line above the views.
        intensity: one of `intensity.CHOICES`.

    Raises:
        ValueError: labels and volume differ in shape.
    """
    figure = draw(volume, labels, segments, prompts, caption, intensity)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, facecolor=figure.get_facecolor())


def draw(
    volume: Volume,
    labels: npt.NDArray[np.uint8],
    segments: Sequence[Segment],
    prompts: Sequence[Prompts] = (),
    caption: str = "",
    intensity: str = "auto",
) -> Figure:
    """The figure of :func:`save_picture`: one axes for each view, in the order axial, coronal, sagittal."""
    if labels.shape != volume.shape:
        raise ValueError(f"Labels of shape {labels.shape} do not fit the volume's {volume.shape}.")
    centre = planes(volume, labels, prompts)
    sizes = [n * d for n, d in zip(volume.shape, volume.spacing, strict=True)]
    widths = [sizes[view.across] for view in _VIEWS]
    heights = [sizes[view.down] for view in _VIEWS]
    room = WIDTH_INCHES - _GAP_INCHES * (len(_VIEWS) + 1)
    # Inches for a millimetre, the same in every view; tall volumes are bounded by the height.
    scale = min(room / sum(widths), HEIGHT_INCHES / max(heights))
    tallest = scale * max(heights)
    total = tallest + _CAPTION_INCHES
    # Not pyplot: it keeps every figure alive and picks a display.
    figure = Figure(figsize=(WIDTH_INCHES, total), facecolor="black")
    FigureCanvasAgg(figure)
    left = _GAP_INCHES + (room - scale * sum(widths)) / 2
    grey = _grey(volume, prompts, intensity, centre)
    for view, across, down in zip(_VIEWS, widths, heights, strict=True):
        width, height = scale * across, scale * down
        axes = figure.add_axes(
            (left / WIDTH_INCHES, (tallest - height) / 2 / total, width / WIDTH_INCHES, height / total)
        )
        left += width + _GAP_INCHES
        _draw_view(axes, view, volume, grey, labels, segments, prompts, centre)
    line = textwrap.shorten(
        caption or ", ".join(segment.name for segment in segments), 150, placeholder=" ..."
    )
    figure.text(
        _GAP_INCHES / WIDTH_INCHES,
        1 - _CAPTION_INCHES / 2 / total,
        line,
        color="white",
        va="center",
        fontsize=11,
    )
    return figure


def planes(volume: Volume, labels: npt.NDArray[np.uint8], prompts: Sequence[Prompts]) -> Index:
    """The voxel (z, y, x) that the three slices share."""
    for given in prompts:
        if given.foreground:
            return given.foreground[0]
    boxes = [given.box for given in prompts if given.box is not None]
    if boxes:
        inner = tuple(min(max(int(c), 0), n - 1) for c, n in zip(boxes[0].centre, volume.shape, strict=True))
    elif labels.any():
        voxels = np.argwhere(labels)
        nearest = np.abs(voxels - voxels.mean(axis=0)).sum(axis=1).argmin()
        inner = tuple(int(p) for p in voxels[nearest])
    else:
        inner = tuple(n // 2 for n in volume.shape)
    return inner[0], inner[1], inner[2]


def _grey(volume: Volume, prompts: Sequence[Prompts], intensity: str, centre: Index) -> IntensityMap:
    """For CT the window that the expert saw, else the range of the values, as the experts rescale it too."""
    low, high = (volume.percentile(q) for q in SHOWN_PERCENTILES)
    if volume.modality != "ct" and low < high:
        return IntensityMap(low, high)
    if prompts and prompts[0].box is not None:
        return map_in_box(volume, prompts[0].enclosing_box(), intensity)
    points = prompts[0].foreground if prompts else []
    return map_at_points(volume, points or [centre], intensity)


def _draw_view(
    axes: Axes,
    view: _View,
    volume: Volume,
    grey: IntensityMap,
    labels: npt.NDArray[np.uint8],
    segments: Sequence[Segment],
    prompts: Sequence[Prompts],
    centre: Index,
) -> None:
    at = [slice(None)] * 3
    at[view.normal] = slice(centre[view.normal], centre[view.normal] + 1)
    where = (at[0], at[1], at[2])
    image = grey(volume.region(where).numpy()).squeeze(view.normal)
    mask = labels[where].squeeze(view.normal)
    rows, columns = image.shape
    step_down, step_across = volume.spacing[view.down], volume.spacing[view.across]
    axes.set_axis_off()
    axes.imshow(
        image,
        cmap="gray",
        vmin=0,
        vmax=255,
        interpolation="bilinear",
        extent=(0, columns * step_across, rows * step_down, 0),
        aspect="equal",
    )
    across = (np.arange(columns) + 0.5) * step_across
    down = (np.arange(rows) + 0.5) * step_down
    for segment in segments:
        inside = (mask == segment.value).astype(np.float32)
        if not inside.any() or min(inside.shape) < 2:
            continue
        colour = [level / 255 for level in segment.colour]
        axes.contourf(across, down, inside, levels=[0.5, 1.5], colors=[colour], alpha=0.25)
        axes.contour(across, down, inside, levels=[0.5], colors=[colour], linewidths=1.4)
    for given in prompts:
        if given.box is not None:
            _draw_box(axes, view, given.box, centre, (step_down, step_across))
        for click in given.clicks:
            here = click.index[view.normal] == centre[view.normal]
            axes.plot(
                (click.index[view.across] + 0.5) * step_across,
                (click.index[view.down] + 0.5) * step_down,
                marker="P" if click.positive else "X",
                markersize=9,
                markerfacecolor=_FOREGROUND if click.positive else _BACKGROUND,
                markeredgecolor="black",
                # A click in another slice is drawn faintly, to show that it was given.
                alpha=1.0 if here else 0.3,
            )
    axes.set_xlim(0, columns * step_across)
    axes.set_ylim((0, rows * step_down) if view.upwards else (rows * step_down, 0))
    for letter, (x, y, horizontal, vertical) in zip(view.letters, _LETTER_PLACES, strict=True):
        _write(axes, x, y, letter, color="#9fd8ff", ha=horizontal, va=vertical, fontsize=11)
    position = f"{view.name}, slice {centre[view.normal] + 1} of {volume.shape[view.normal]}"
    _write(axes, 0.012, 0.985, position, color="#c8c8c8", ha="left", va="top", fontsize=8)


def _draw_box(axes: Axes, view: _View, box: Box, centre: Index, step: tuple[float, float]) -> None:
    if not box.lo[view.normal] <= centre[view.normal] + 0.5 < box.hi[view.normal]:
        return
    (top, left), (bottom, right) = ([edge[view.down], edge[view.across]] for edge in (box.lo, box.hi))
    xs = np.array([left, right, right, left, left]) * step[1]
    ys = np.array([top, top, bottom, bottom, top]) * step[0]
    axes.plot(xs, ys, color=_BOX, linewidth=1.1, linestyle="--")


def _write(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Text at a part of the view's width and height that can be read on bright bone as well."""
    outline = [withStroke(linewidth=2, foreground="black")]
    axes.text(x, y, text, transform=axes.transAxes, path_effects=outline, **style)

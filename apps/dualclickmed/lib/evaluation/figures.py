"""Figures of a report: Dice by click, and cases as rows of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .cases import Task
from .statistics import Summary

DPI = 110
_PANEL = (3.4, 2.9)
_COLUMNS = 3
_LEGEND_LINE = 0.25
_TILE = 2.4
_CAPTION = 0.35
_FLATTEST, _TALLEST = 0.4, 1.5
"""Height of a tile, as a part of its width."""
_MARGIN = 0.2
"""Surroundings of the shown classes, as a part of their extent."""
_COLOURS = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]


def curves(path: Path, summaries: Sequence[Summary], start: str) -> None:
    """Mean Dice after each step, one panel for each group and one line for each method."""
    groups = list(dict.fromkeys(s.group for s in summaries))
    methods = list(dict.fromkeys(s.method for s in summaries))
    columns = min(_COLUMNS, len(groups))
    rows = -(-len(groups) // columns)
    legend = _LEGEND_LINE * -(-len(methods) // (2 * columns)) + 0.1
    figure = _figure(_PANEL[0] * columns, _PANEL[1] * rows + legend)
    for at, group in enumerate(groups):
        axes = figure.add_subplot(rows, columns, at + 1)
        for summary in (s for s in summaries if s.group == group):
            number = methods.index(summary.method)
            axes.plot(
                range(len(summary.dice)),
                summary.dice,
                marker="o",
                markersize=3.5,
                linewidth=2.0 if number == 0 else 1.3,
                color=_COLOURS[number % len(_COLOURS)],
                label=summary.method,
            )
        axes.set_title(f"{group} ({_count(summaries, group)} cases)", fontsize=10)
        steps = len(summaries[0].dice)
        axes.set_xticks(range(steps), [start, *(f"+{i}" for i in range(1, steps))], fontsize=8)
        axes.tick_params(axis="y", labelsize=8)
        axes.set_ylim(0, 1)
        axes.grid(alpha=0.3)
        if at % columns == 0:
            axes.set_ylabel("mean DSC", fontsize=9)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=2 * columns, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, legend / figure.get_figheight(), 1, 1))
    _save(figure, path)


def case_row(path: Path, task: Task, z: int, found: Sequence[tuple[str, npt.NDArray[np.integer]]]) -> None:
    """One slice as a row of pictures: the image, the truth, and each method's classes.

    Args:
        path: the picture.
        task: the case.
        z: the slice.
        found: caption and label map (H, W) of each method.
    """
    truth = np.where(np.isin(task.labels[z], task.values), task.labels[z], 0)
    rows, columns = _window(truth > 0)
    whole = (slice(z, z + 1), slice(0, task.volume.shape[1]), slice(0, task.volume.shape[2]))
    image = task.volume.region(whole).numpy()[0]
    low, high = np.percentile(image[rows, columns], [1, 99])
    tiles = [("image", None), ("truth", truth), *found]
    aspect = task.volume.spacing[1] / task.volume.spacing[2]
    height, width = image[rows, columns].shape
    tall = min(_TALLEST, max(_FLATTEST, aspect * height / width))
    figure = _figure(_TILE * len(tiles), _TILE * tall + _CAPTION)
    for at, (caption, labels) in enumerate(tiles):
        axes = figure.add_subplot(1, len(tiles), at + 1)
        axes.imshow(image[rows, columns], cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect)
        if labels is not None:
            _outline(axes, labels[rows, columns], task.values)
        axes.set_title(caption, fontsize=9)
        axes.set_axis_off()
    figure.tight_layout(pad=0.4)
    _save(figure, path)


def _outline(axes: object, labels: npt.NDArray[np.integer], values: Sequence[int]) -> None:
    for number, value in enumerate(values):
        mask = (labels == value).astype(np.float32)
        if mask.any() and min(mask.shape) > 1:
            colour = _COLOURS[number % len(_COLOURS)]
            axes.contourf(mask, levels=[0.5, 1.5], colors=[colour], alpha=0.35)  # type: ignore[attr-defined]
            axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.2)  # type: ignore[attr-defined]


def _window(mask: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
    """Rows and columns around what is shown."""
    parts = []
    for axis in (1, 0):
        used = np.flatnonzero(mask.any(axis=axis))
        low, high = int(used[0]), int(used[-1]) + 1
        margin = max(4, round(_MARGIN * (high - low)))
        parts.append(slice(max(0, low - margin), min(mask.shape[1 - axis], high + margin)))
    return parts[0], parts[1]


def _count(summaries: Sequence[Summary], group: str) -> int:
    return max(s.cases for s in summaries if s.group == group)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)

"""The pictures of docs/figures.md, after Figures 5 and 6 of the paper: `make docs-cases`.

    python scripts/case_pages.py [--objects N] [--out FOLDER]

Five modalities from left to right; from top to bottom the image with the box, the truth, what a random walker
finds from the box, and what `fused` finds from the box and after five clicks. The volumes are generated, so
that they can be shown and made anew; no training has seen their seeds. Of the objects of a modality, ordered
by Dice after five clicks, the successes are at a tenth from the top and the failures at a tenth from the
bottom.
The table of docs/figures.md is written anew with the means over all of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from docs_figures import write_blocks
from dualclickmed.evaluation.cases import Task
from dualclickmed.evaluation.classical import random_walker
from dualclickmed.evaluation.metrics import dice
from dualclickmed.evaluation.protocol import ExpertMethod, Method, run_task
from dualclickmed.imaging.volume import from_array
from dualclickmed.predictor import Predictor
from dualclickmed.training.generated import make_scene
from dualclickmed.training.looks import LOOKS, Look
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

REPOSITORY = Path(__file__).resolve().parents[1]
SEED = 9_000_011
"""Far from the seeds of trainings."""
SIZE = 96
LEAST_VOXELS = 400
CLICKS = 5
OBJECTS = 20
SHARE = 0.1
NAMES = {"ct": "CT", "mr": "MR", "pet": "PET", "us": "Ultrasound", "microscopy": "Microscopy"}
ROWS = ("image and box", "truth", "random walker, box", "fused, box", f"fused, {CLICKS} clicks")
COLOURS = (None, "#ffd166", "#6f9dff", "#ff6b5e", "#ff6b5e")

TABLE_HEAD = "| mean Dice | objects | " + " | ".join(ROWS[2:]) + " |\n| --- | ---: | ---: | ---: | ---: |"

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Shown:
    """One object: its volume, and a mask and Dice for each row after the first."""

    task: Task
    masks: list[Mask]
    scores: list[float]


def objects(look: Look, count: int) -> Iterator[Task]:
    """Objects of generated volumes of one look that no face of the volume cuts, one of each volume."""
    found = number = 0
    while found < count:
        rng = np.random.default_rng((SEED, LOOKS.index(look), number))
        number += 1
        scene = make_scene(rng, SIZE, look)
        mask = scene.mask(scene.targets[int(rng.integers(len(scene.targets)))]).numpy(force=True)
        cut = any(bool(mask.take((0, -1), axis=axis).any()) for axis in range(3))
        if cut or int(mask.sum()) < LEAST_VOXELS:
            continue
        found += 1
        volume = from_array(scene.image.numpy(force=True), scene.spacing)
        yield Task.of_objects(volume, mask.astype(np.uint8), (1,))


def answered(task: Task, ours: Method) -> Shown:
    """The truth, and what each row's method finds."""
    truth = task.labels > 0
    masks = [
        truth,
        run_task(random_walker, task, clicks=0, limit=0, surfaces=False, strict=True).labels > 0,
        run_task(ours, task, clicks=0, limit=0, surfaces=False, strict=True).labels > 0,
        run_task(ours, task, clicks=CLICKS, limit=0, surfaces=False, strict=True).labels > 0,
    ]
    return Shown(task, masks, [dice(mask, truth) for mask in masks])


def draw(path: Path, columns: dict[str, Shown]) -> None:
    """One page: a column for each modality."""
    figure = Figure(figsize=(2.1 * len(columns), 2.1 * len(ROWS) + 0.3))
    FigureCanvasAgg(figure)
    for at, (name, shown) in enumerate(columns.items()):
        truth = shown.masks[0]
        z = int(truth.sum(axis=(1, 2)).argmax())
        image = shown.task.volume.array[z]
        used = np.argwhere(truth.any(axis=0))
        middle, half = (
            (used.min(axis=0) + used.max(axis=0) + 1) / 2,
            float(np.ptp(used, axis=0).max()) * 0.9 + 4,
        )
        near = image[
            max(0, int(middle[0] - half)) : int(middle[0] + half),
            max(0, int(middle[1] - half)) : int(middle[1] + half),
        ]
        low, high = np.percentile(near, (1, 99))
        (top, left), (bottom, right) = used.min(axis=0), used.max(axis=0) + 1
        for row, (caption, colour) in enumerate(zip(ROWS, COLOURS, strict=True)):
            axes = figure.add_subplot(len(ROWS), len(columns), 1 + at + row * len(columns))
            axes.imshow(
                image,
                cmap="gray",
                vmin=low,
                vmax=max(high, low + 1),
                aspect=shown.task.spacing[1] / shown.task.spacing[2],
            )
            if colour is None:
                sides = (right - left, bottom - top)
                axes.add_patch(
                    Rectangle((left - 0.5, top - 0.5), *sides, fill=False, color="#5eead4", lw=1.2)
                )
            else:
                mask = shown.masks[row - 1][z].astype(np.float32)
                if mask.any():
                    axes.contourf(mask, levels=[0.5, 1.5], colors=[colour], alpha=0.35)
                    axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.2)
            if row > 1:
                axes.set_xlabel(f"Dice {shown.scores[row - 1]:.2f}", fontsize=9, labelpad=2)
            if row == 0:
                axes.set_title(name, fontsize=11)
            if at == 0:
                axes.set_ylabel(caption, fontsize=9)
            axes.set_xlim(middle[1] - half, middle[1] + half)
            axes.set_ylim(middle[0] + half, middle[0] - half)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_facecolor("black")
    figure.tight_layout(pad=0.4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--objects", type=int, default=OBJECTS, help="of each modality (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "images")
    asked = parser.parse_args()
    ours = ExpertMethod(Predictor.from_weights().expert, "fused")
    successes, failures, table = {}, {}, [TABLE_HEAD]
    for look in LOOKS:
        found = [answered(task, ours) for task in objects(look, asked.objects)]
        found.sort(key=lambda one: one.scores[-1])
        at = round(SHARE * (len(found) - 1))
        successes[NAMES[look]], failures[NAMES[look]] = found[-1 - at], found[at]
        means = [f"{np.mean([one.scores[row] for one in found]):.3f}" for row in range(1, len(ROWS) - 1)]
        table.append(f"| {NAMES[look]} | {len(found)} | {' | '.join(means)} |")
    draw(asked.out / "successes.png", successes)
    draw(asked.out / "failures.png", failures)
    write_blocks({"cases": "\n".join(table)})


if __name__ == "__main__":
    main()

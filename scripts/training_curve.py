"""How good the global expert is by the number of objects it has seen: the curve of docs/training.md.

    python scripts/training_curve.py [OBJECTS=RESULTS ...]

RESULTS is the results.csv of an evaluation of the weights after that many objects:
`DUALCLICKMED_MODEL_DIR=FOLDER python main.py evaluate --cases CASES --smallest 50 --method paper --out OUT`.
Its figures are kept in docs/evaluation/training_curve.json; counts that are not named keep theirs. The table
and the picture are made anew.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from docs_figures import NAMES, REPOSITORY, object_dice, say, write_blocks
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

KEPT = REPOSITORY / "docs" / "evaluation" / "training_curve.json"
PICTURE = REPOSITORY / "docs" / "images" / "training-curve.png"
METHOD = "paper"
"""The network's own answers, without refinement."""
STEPS = {0: "box", 1: "+1 click", 5: "+5 clicks"}

Curve = dict[str, dict[str, list[float]]]
"""Objects seen, as text; modality or "all"; mean Dice after each of `STEPS`."""


def main() -> None:
    """Keep what was measured; write table and picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("points", nargs="*", metavar="OBJECTS=RESULTS")
    curve: Curve = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for point in parser.parse_args().points:
        objects, found, results = point.partition("=")
        if not (found and objects.isdecimal()):
            parser.error(f"expected OBJECTS=RESULTS, such as 107513=out/results.csv; got '{point}'")
        curve[objects] = point_of(Path(results))
    curve = {objects: curve[objects] for objects in sorted(curve, key=int)}
    KEPT.write_text(json.dumps(curve, indent=1) + "\n")
    write_blocks({"training-curve": table(curve)})
    draw(curve, PICTURE)
    say(f"wrote {PICTURE.relative_to(REPOSITORY)}")


def point_of(results: Path) -> dict[str, list[float]]:
    """Mean Dice over the objects of each modality, and of all."""
    found: dict[str, list[list[float]]] = defaultdict(lambda: [[] for _ in STEPS])
    for (group, method, step), values in object_dice(results).items():
        if method == METHOD and step in STEPS:
            for name in (group, "all"):
                found[name][list(STEPS).index(step)] += values
    if not found:
        raise SystemExit(f"{results} has no row of the method '{METHOD}'.")
    return {name: [round(float(np.mean(values)), 4) for values in steps] for name, steps in found.items()}


def table(curve: Mapping[str, Mapping[str, list[float]]]) -> str:
    names = [*NAMES, "all"]
    lines = [
        "| objects seen | " + " | ".join([*NAMES.values(), "all"]) + " |",
        "| ---: |" + " --- |" * len(names),
    ]
    for objects, found in curve.items():
        cells = [
            " > ".join(f"{value:.3f}" for value in found[name]) if name in found else "" for name in names
        ]
        lines.append(f"| {int(objects):,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(curve: Mapping[str, Mapping[str, list[float]]], path: Path) -> None:
    """Dice by objects seen: all objects after each step, and each modality from the box and after clicks."""
    figure = Figure(figsize=(9.2, 4.1), layout="constrained")
    FigureCanvasAgg(figure)
    whole, parts = figure.subplots(1, 2, sharey=True)
    seen = [int(objects) for objects in curve]
    for at, step in enumerate(STEPS.values()):
        whole.plot(seen, [found["all"][at] for found in curve.values()], "o-", ms=4, label=step)
    for number, (group, name) in enumerate(NAMES.items()):
        for at, style in ((0, "o--"), (len(STEPS) - 1, "o-")):
            values = [found.get(group, [np.nan] * len(STEPS))[at] for found in curve.values()]
            parts.plot(seen, values, style, ms=4, color=f"C{number}", label=name if at else None)
    whole.set_title("all objects", fontsize=10)
    parts.set_title("by modality: dashed from the box, solid after five clicks", fontsize=10)
    whole.set_ylabel("mean Dice")
    for axes in (whole, parts):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator([1000 * 2**n for n in range(12)]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:.0f}"))
        axes.set_xlim(min(seen) / 1.3, max(seen) * 1.3)
        axes.set_xlabel("objects seen, thousands")
        axes.grid(alpha=0.25)
        # Below the axes: inside it would cover a line.
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=4, frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()

"""Write what evaluations on real volumes measured into the cards of the weights that ship.

    python scripts/card_figures.py --box RESULTS ... --point RESULTS ...

RESULTS is the results.csv of `python main.py evaluate --cases CASES --smallest 50 --method paper
--method fused --out OUT` (`--box`), or of the same with `--start point --most 6` (`--point`). Means over
objects; a method that is in no file keeps the figures that the card has.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from docs_figures import REPOSITORY, SMALLEST, object_dice, say
from dualclickmed.evaluation.protocol import HARM

CARDS = {
    "global": REPOSITORY / "model" / "global-compact.json",
    "local": REPOSITORY / "model" / "local-compact.json",
}
REAL = "dice on real volumes nobody trained on"
ALL = "all objects"
STARTS = {
    "box": ("global", "", "dice after the box and each click"),
    "point": ("local", " --start point --most 6", "dice after the first click and each further one"),
}
"""The card that the figures of a start belong to, the options that measure them, and their heading."""


def main() -> None:
    """Write both cards."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for start in STARTS:
        parser.add_argument(f"--{start}", type=Path, action="append", default=[], metavar="RESULTS")
    options = parser.parse_args()
    for start, (kind, _, _) in STARTS.items():
        if getattr(options, start):
            card = json.loads(CARDS[kind].read_text(encoding="utf-8"))
            card["measured"][REAL] = with_figures(
                card["measured"].get(REAL, {}), start, getattr(options, start)
            )
            CARDS[kind].write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
            say(f"wrote {CARDS[kind].relative_to(REPOSITORY)}")


def with_figures(known: Mapping[str, Any], start: str, files: Sequence[Path]) -> dict[str, Any]:
    """What a card says about real volumes, with the figures of some files."""
    _, options, heading = STARTS[start]
    found = {
        "protocol": f"python main.py evaluate --cases DIR --smallest {SMALLEST}{options} --method paper "
        "--method fused --out OUT; means over objects"
    }
    values = {key: series for file in files for key, series in by_object(file).items()}
    methods = {method for _, method in values}
    if not methods:
        raise SystemExit(f"No object of {SMALLEST} voxels or more is in {', '.join(map(str, files))}.")
    objects = {
        group: len(series) for (group, method), series in sorted(values.items()) if method == min(methods)
    }
    found |= {"objects": {ALL: sum(objects.values()), **objects}}
    for method, suffix in (("paper", ""), ("fused", ", fused")):
        share = f"share of clicks that cost more than {HARM:g}{suffix}"
        means = f"{heading}{suffix}"
        if method not in methods:
            found |= {key: known[key] for key in (means, share) if key in known}
            continue
        series = {group: values[group, method] for group in objects}
        series = {ALL: np.concatenate(list(series.values())), **series}
        found[means] = {group: np.round(each.mean(axis=0), 4).tolist() for group, each in series.items()}
        found[share] = {
            group: round(float((np.diff(each, axis=1) < -HARM).mean()), 4) for group, each in series.items()
        }
    return found


def by_object(results: Path) -> dict[tuple[str, str], np.ndarray]:
    """Dice (objects, steps) by modality and method."""
    steps: dict[tuple[str, str], dict[int, list[float]]] = {}
    for (group, method, step), values in object_dice(results).items():
        steps.setdefault((group, method), {})[step] = values
    return {key: np.array([found[step] for step in sorted(found)]).T for key, found in steps.items()}


if __name__ == "__main__":
    main()

"""What the cards of the weights that ship say about real volumes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.support.scripts import script

module = script("scripts/card_figures.py")


def results(path: Path, method: str, dice: dict[str, list[list[float]]]) -> Path:
    """Objects by modality, each with its Dice by step; and one that is too small."""
    rows = ["group,case,method,label,voxels,step,dice"]
    for step in range(3):
        for group, objects in dice.items():
            rows += [f"{group},a,{method},{i},50,{step},{series[step]}" for i, series in enumerate(objects)]
        rows += [f"ct,a,{method},9,49,{step},0", f"ct,a,{method},all,200,{step},0"]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_card_has_means_over_objects_and_the_share_of_harmful_clicks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = tmp_path / "global-compact.json"
    heading = "dice after the box and each click"
    old = {f"{heading}": {"ct": [0.1]}, "share of clicks that cost more than 0.01": {"ct": 0.5}, "gone": 1}
    card.write_text(json.dumps({"kind": "global", "measured": {"x": 1, module.REAL: old}}))
    monkeypatch.setattr(module, "CARDS", {"global": card})
    monkeypatch.setattr(module, "REPOSITORY", tmp_path)
    dice = {"ct": [[0.2, 0.4, 0.35], [0.4, 0.5, 0.6]], "mri": [[0.6, 0.595, 0.7]]}
    file = results(tmp_path / "results.csv", "fused", dice)
    monkeypatch.setattr(sys, "argv", ["card_figures.py", "--box", str(file)])
    module.main()
    written = json.loads(card.read_text())
    assert written["kind"] == "global" and written["measured"]["x"] == 1
    assert {k: v for k, v in written["measured"][module.REAL].items() if k != "protocol"} == {
        "objects": {"all objects": 3, "ct": 2, "mri": 1},
        heading: {"ct": [0.1]},
        "share of clicks that cost more than 0.01": {"ct": 0.5},
        f"{heading}, fused": {
            "all objects": [0.4, 0.4983, 0.55],
            "ct": [0.3, 0.45, 0.475],
            "mri": [0.6, 0.595, 0.7],
        },
        # One click of six cost 0.05; the one that cost 0.005 does not count.
        "share of clicks that cost more than 0.01, fused": {"all objects": 0.1667, "ct": 0.25, "mri": 0.0},
    }


def test_results_without_objects_are_named(tmp_path: Path) -> None:
    file = results(tmp_path / "results.csv", "fused", {})
    with pytest.raises(SystemExit, match=r"results\.csv"):
        module.with_figures({}, "box", [file])

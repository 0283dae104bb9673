"""The curve of docs/training.md: means over objects, by modality and by the number of objects seen."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.support.scripts import script

module = script("scripts/training_curve.py")
block_of = script("scripts/docs_figures.py").block_of


def results(path: Path, first: float) -> Path:
    """Two objects of CT and one of MR that count, one that is too small, and rows of another method."""
    rows = ["group,case,method,label,voxels,step,dice"]
    for step in range(6):
        rows += [
            f"ct,a,paper,1,99,{step},{first + 0.01 * step}",
            f"ct,a,paper,2,99,{step},{first + 0.2 + 0.01 * step}",
            f"ct,a,paper,3,9,{step},0",
            f"ct,a,paper,all,99,{step},0",
            f"ct,a,fused,1,99,{step},1",
            f"mri,b,paper,1,99,{step},{first + 0.4 + 0.01 * step}",
        ]
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_point_has_the_means_of_each_modality_and_of_all_objects(tmp_path: Path) -> None:
    point = module.point_of(results(tmp_path / "results.csv", 0.3))
    assert point == {"ct": [0.4, 0.41, 0.45], "mri": [0.7, 0.71, 0.75], "all": [0.5, 0.51, 0.55]}


def test_points_are_kept_in_order_and_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "training.md"
    page.write_text("before\n<!-- figures: training-curve -->\nold\n<!-- /figures -->\nafter\n")
    for holder in (vars(module), module.write_blocks.__globals__):
        monkeypatch.setitem(holder, "REPOSITORY", tmp_path)
    monkeypatch.setitem(module.write_blocks.__globals__, "PAGES", (page,))
    monkeypatch.setattr(module, "KEPT", tmp_path / "curve.json")
    monkeypatch.setattr(module, "PICTURE", tmp_path / "curve.png")
    late, early = (results(tmp_path / f"{first}.csv", first) for first in (0.3, 0.1))
    for point in (f"20000={late}", f"3000={early}"):
        monkeypatch.setattr(sys, "argv", ["training_curve.py", point])
        module.main()
    assert list(json.loads((tmp_path / "curve.json").read_text())) == ["3000", "20000"]
    assert page.read_text().splitlines() == [
        "before",
        "<!-- figures: training-curve -->",
        "| objects seen | CT | MR | PET | Microscopy | all |",
        "| ---: | --- | --- | --- | --- | --- |",
        "| 3,000 | 0.200 > 0.210 > 0.250 | 0.500 > 0.510 > 0.550 |  |  | 0.300 > 0.310 > 0.350 |",
        "| 20,000 | 0.400 > 0.410 > 0.450 | 0.700 > 0.710 > 0.750 |  |  | 0.500 > 0.510 > 0.550 |",
        "<!-- /figures -->",
        "after",
    ]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_shows_what_was_measured() -> None:
    page = (module.REPOSITORY / "docs" / "training.md").read_text()
    curve = json.loads(module.KEPT.read_text())
    assert block_of(page, "training-curve") == module.table(curve), "scripts/training_curve.py"


def test_a_point_without_a_count_or_without_the_method_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "KEPT", tmp_path / "curve.json")
    monkeypatch.setattr(sys, "argv", ["training_curve.py", "out/results.csv"])
    with pytest.raises(SystemExit):
        module.main()
    assert "expected OBJECTS=RESULTS" in capsys.readouterr().err
    (tmp_path / "other.csv").write_text("group,case,method,label,voxels,step,dice\nct,a,fused,1,99,0,1\n")
    with pytest.raises(SystemExit, match="no row of the method 'paper'"):
        module.point_of(tmp_path / "other.csv")
    assert not (tmp_path / "curve.json").exists()

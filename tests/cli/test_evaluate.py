"""Evaluations from the command line: what is written, how they go on, and that every number can be
recomputed.
"""

from __future__ import annotations

import csv
import json
import re
from collections import defaultdict
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from dualclickmed.cli.app import app
from dualclickmed.evaluation import statistics
from dualclickmed.evaluation.protocol import HARM
from dualclickmed.evaluation.records import Row
from dualclickmed.imaging.geometry import Box
from typer.testing import CliRunner

from tests.support.case_files import write_case

SHAPE = (14, 20, 24)
FAILING = """
import numpy as np

def segment(volume, prompts):
    if len(prompts.clicks) == 1:
        raise RuntimeError("no idea | after the first click")
    mask = np.zeros(volume.shape, bool)
    z, y, x = prompts.enclosing_box().voxels(volume.shape)
    mask[z, y, x.start : x.stop - 1] = True
    return mask
"""


KILLED = """
import os
import signal
from pathlib import Path

def segment(volume, prompts):
    if Path({flag!r}).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return volume.array > 100
"""


def truth() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[3:9, 4:12, 3:10], labels[5:12, 9:17, 13:22], labels[0, 0, 0] = 2, 7, 5
    return labels


def grey(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(60 + 30.0 * (truth() == 2) + 90 * (truth() == 7) + rng.normal(0, 9, SHAPE), 0, 255).astype(
        np.uint8
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two modalities, one case without boxes, one that can't be read, and one without a class."""
    folder = tmp_path / "cases"
    folder.mkdir()
    boxes = [Box.of_mask(truth() == value) for value in (2, 5, 7)]
    write_case(folder / "CT_one_1.npz", grey(0), (1.0, 1.0, 2.0), boxes, truth=truth())
    write_case(folder / "CT_one_2.npz", grey(1), (1.0, 1.0, 2.0), boxes, truth=truth())
    write_case(folder / "US_other_1.npz", grey(2), (1.0, 1.0, 1.0), truth=truth())
    write_case(folder / "US_other_2.npz", grey(2), (1.0, 1.0, 1.0), boxes[:1], truth=truth())
    write_case(folder / "US_other_3.npz", grey(2), (1.0, 1.0, 1.0), truth=truth() * 0)
    return folder


def evaluate(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def written(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_number_of_the_report_can_be_recomputed(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "failing.py"
    own.write_text(FAILING)
    out = tmp_path / "out"
    evaluate(
        "--cases", folder, "--out", out, "--method", "graph-cut", "--method", f"own={own}", "--pictures", 1
    )
    rows = written(out)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["cases"]["done"] == {"graph-cut": 3, "own": 3} and summary["cases"]["asked"] == 5
    assert set(summary["cases"]["skipped"]) == {"US_other_2", "US_other_3"}
    assert "1 in boxes, 3 in gts" in summary["cases"]["skipped"]["US_other_2"]

    # Means of classes, of cases, and of groups, from the rows of single classes.
    by_class: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for row in rows:
        if row["label"] != "all":
            by_class[row["group"], row["method"], row["case"], row["step"]].append(float(row["dice"]))
    for row in rows:
        if row["label"] == "all":
            mean = np.mean(by_class[row["group"], row["method"], row["case"], row["step"]])
            assert float(row["dice"]) == pytest.approx(mean, abs=2e-6)
    markdown = (out / "report.md").read_text()
    for entry in summary["rows"]:
        if entry["group"] not in ("ct", "ultrasound"):
            continue
        own_cases = {
            r["case"] for r in rows if (r["group"], r["method"]) == (entry["group"], entry["method"])
        }
        curves = np.array(
            [
                [np.mean(by_class[entry["group"], entry["method"], case, str(s)]) for s in range(6)]
                for case in sorted(own_cases)
            ]
        )
        assert entry["cases"] == len(own_cases)
        assert entry["dice"] == pytest.approx(curves.mean(axis=0).tolist(), abs=2e-6)
        auc = float(np.mean([(c[1:-1] + c[2:]).sum() / 2 for c in curves]))
        assert entry["dice_auc"]["value"] == pytest.approx(auc, abs=1e-5)
        assert entry["dice_final"]["low"] <= entry["dice_final"]["value"] <= entry["dice_final"]["high"]
        assert f"{entry['dice_final']['value']:.4f}" in markdown and f"{auc:.4f}" in markdown
        falls = [
            float(b["dice"]) - float(a["dice"]) < -HARM
            for a in rows
            for b in rows
            if a["label"] != "all"
            and all(a[k] == b[k] for k in ("case", "method", "label"))
            and (a["group"], a["method"]) == (entry["group"], entry["method"])
            and int(b["step"]) == int(a["step"]) + 1
        ]
        assert entry["harmful"] == pytest.approx(np.mean(falls))


def test_cases_without_a_box_and_failures_are_counted_and_named(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "failing.py"
    own.write_text(FAILING)
    out = tmp_path / "out"
    evaluate("--cases", folder, "--out", out, "--method", f"own={own}", "--clicks", 2)
    rows = [r for r in written(out) if r["label"] == "all"]
    boxless = [r for r in rows if r["case"] == "US_other_1"]
    assert boxless[0]["note"] == "no box" and float(boxless[0]["dice"]) == 0
    # The method fails at the first click and that step counts as empty.
    with_box = [r for r in rows if r["case"] == "CT_one_1"]
    assert float(with_box[0]["dice"]) > 0.5 and float(with_box[1]["dice"]) == 0
    assert with_box[1]["note"] == "RuntimeError: no idea | after the first click"
    summary = json.loads((out / "summary.json").read_text())
    failed = {(r["group"], r["method"]): r["failed"] for r in summary["rows"]}
    assert failed["ct", "own"] == 2 and failed["ultrasound", "own"] == 1
    markdown, page = (out / "report.md").read_text(), (out / "report.html").read_text()
    for text in (markdown, page):
        assert "no idea" in text and "US_other_3" in text and "1 cases have no box" in text
    # A table's cell must not end at a bar in the message.
    assert "no idea / after" in markdown
    assert "<script" not in page and "data:image/png;base64," in page


def test_late_cases_score_nothing_and_are_counted(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate(
        "--cases", folder, "--only", "CT", "--out", out, "--method", "ellipsoid", "--method", "graph-cut",
        "--clicks", 1, "--limit", 1e-3,
    )  # fmt: skip
    rows = {r["method"]: r for r in json.loads((out / "summary.json").read_text())["rows"]}
    assert rows["graph-cut"]["over_time"] == 2 and rows["graph-cut"]["dice"] == [0.0, 0.0]
    assert {r["note"] for r in written(out) if r["method"] == "graph-cut"} == {"over time"}
    assert "step 0: over time" in (out / "report.md").read_text()


def test_a_stopped_run_goes_on_and_parts_make_the_whole(folder: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    common = ("--cases", folder, "--method", "ellipsoid", "--method", "graph-cut", "--clicks", 1)
    evaluate(*common, "--out", whole)
    evaluate(*common, "--out", parts, "--shard", "1/2")
    some = {r["case"] for r in written(parts)}
    assert 0 < len(some) < 3
    first = next((parts / "cases" / "graph-cut").glob("*.csv"))
    before = first.stat().st_mtime_ns
    (parts / "cases" / "ellipsoid" / first.name).unlink()
    evaluate(*common, "--out", parts, "--workers", 2)
    assert first.stat().st_mtime_ns == before

    def scores(out: Path) -> set[tuple[str, ...]]:
        return {tuple(r[k] for k in ("case", "method", "label", "step", "dice", "nsd")) for r in written(out)}

    assert scores(parts) == scores(whole)


def test_a_worker_that_is_killed_ends_the_run_and_the_next_one_goes_on(folder: Path, tmp_path: Path) -> None:
    out, own, flag = tmp_path / "out", tmp_path / "own.py", tmp_path / "flag"
    own.write_text(KILLED.format(flag=str(flag)))
    common = ("--cases", folder, "--out", out, "--method", f"own={own}", "--clicks", 1, "--workers", 2)
    flag.touch()
    assert "again to go on, with fewer --workers" in refused(*common)
    assert list((out / "cases").rglob("*.csv")) == []
    flag.unlink()
    evaluate(*common)
    assert {r["case"] for r in written(out)} == {"CT_one_1", "CT_one_2", "US_other_1"}


def test_scores_of_another_protocol_or_other_weights_are_not_mixed(folder: Path, tmp_path: Path) -> None:
    out, own = tmp_path / "out", tmp_path / "own.py"
    own.write_text(FAILING)
    common = ("--cases", folder, "--only", "CT_one_1", "--out", out, "--method", f"own={own}")
    evaluate(*common, "--clicks", 1)
    assert "clicks 1, but 2 was asked for" in refused(*common, "--clicks", 2)
    twin = folder.rename(tmp_path / "twin")
    assert f"cases {folder}, but {twin} was asked for" in refused("--cases", twin, *common[2:], "--clicks", 1)
    twin.rename(folder)
    own.write_text(FAILING + "\n# another version\n")
    assert "other weights of 'own'" in refused(*common, "--clicks", 1)


def test_pairs_labels_by_name_and_points(tmp_path: Path) -> None:
    for name in ("a", "b"):
        case = tmp_path / "study" / "mri" / name
        case.mkdir(parents=True)
        for part, array in (("image", grey(3)), ("label", truth())):
            nib.save(nib.Nifti1Image(array.T, np.diag([-1.0, -1, 2, 1])), case / f"{part}.nii.gz")
        (case / "meta.json").write_text(json.dumps({"labels": {"2": "liver", "7": "spleen", "5": "dot"}}))
    out = tmp_path / "out"
    evaluate(
        "--cases", tmp_path / "study", "--out", out, "--method", "graph-cut", "--labels", "Spleen,2",
        "--start", "point", "--clicks", 1, "--most", 2,
    )  # fmt: skip
    rows = written(out)
    assert {r["label"] for r in rows} == {"2", "7", "all"} and {r["group"] for r in rows} == {"mri"}
    # The first click is the start: it is given in step 0.
    assert {r["clicks"] for r in rows if r["step"] == "0"} == {"2"}
    assert "Mean DSC" in (out / "report.md").read_text()


def test_truths_in_a_folder_of_their_own(folder: Path, tmp_path: Path) -> None:
    cases, truths = tmp_path / "imgs", tmp_path / "gts"
    for place in (cases, truths):
        place.mkdir()
    boxes = [Box.of_mask(truth() == value) for value in (2, 5, 7)]
    write_case(cases / "CT_a.npz", grey(0), (1.0, 1.0, 2.0), boxes)
    common = ("--cases", cases, "--out", tmp_path / "out", "--method", "ellipsoid", "--clicks", 0)
    assert "must hold 'CT_a.npz'" in refused(*common, "--truth", truths)
    assert "--truth names" in refused(*common)
    np.savez(truths / "CT_a.npz", gts=truth())
    assert "was skipped" not in evaluate(
        *common[:2], "--out", tmp_path / "other", *common[4:], "--truth", truths
    )


def test_our_weights_are_named(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluate("--cases", folder, "--only", "CT_one_1", "--out", out, "--method", "ours", "--clicks", 1)
    summary = json.loads((out / "summary.json").read_text())
    sha = summary["methods"]["fused"]["weights"]["global"]["sha256"]
    assert re.fullmatch("[0-9a-f]{64}", sha) and sha in (out / "report.md").read_text()
    assert f"| Version | {summary['version']} |" in (out / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--start", "scribble"), "--start must be"),
        (("--shard", "3/2"), "--shard must be i/n"),
        (("--shard", "half"), "--shard must be i/n"),
        (("--method", "magic"), "A method must be one of"),
        (("--only", "zzz"), "starts with 'zzz'"),
        (("--labels", "99", "--method", "ellipsoid"), "none of the classes"),
    ],
)
def test_what_can_not_be_asked(
    folder: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    assert message in refused("--cases", folder, "--out", tmp_path / "out", *arguments)


def test_a_bootstrap_covers_the_mean_it_should() -> None:
    """Over many samples the 95 % interval holds the true mean about as often as it says."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        (mean,) = statistics.bootstrap([generator.normal(0.7, 0.1, (30, 1))])
        held += mean.low <= 0.7 <= mean.high
    assert 180 <= held <= 198
    (constant,) = statistics.bootstrap([np.full((5, 1), 0.5)])
    assert constant == statistics.Mean(0.5, 0.5, 0.5)


def test_paired_differences_are_of_the_same_cases() -> None:
    def row(method: str, case: str, step: int, dice: float) -> Row:
        return Row("ct", case, method, "all", 9, step, dice, 0.0, 0.0, 0, "")

    rows = [row("a", c, s, d + 0.1 * s) for c, d in (("x", 0.1), ("y", 0.5), ("z", 0.3)) for s in (0, 1)]
    rows += [row("b", c, s, d) for c, d in (("x", 0.1), ("y", 0.5)) for s in (0, 1)]
    mean = statistics.paired(rows, "a", "b")
    assert (
        mean.value == pytest.approx(0.1)
        and mean.low == pytest.approx(0.1)
        and mean.high == pytest.approx(0.1)
    )

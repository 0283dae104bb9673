"""Every number and picture of README and docs that depends on weights or on this code: `make docs-figures`.

    python scripts/docs_figures.py [--results FILE ...] [--peers FILE] [--growth FILE]
                                   [--first-minute FILE] [--no-pictures]

Numbers stand between `<!-- figures: NAME -->` and `<!-- /figures -->` in Markdown files and are written anew:

    sample      what boxes and clicks give on the sample study, computed now
    example     what README's own example gives, computed now
    shipped     parameters of the networks that are served by default, and what they were trained on
    modalities  Dice by modality, as docs/evaluation/table.json keeps it. After weights have changed:
                `python main.py evaluate --cases FOLDER --smallest 50 --method fused --out OUT`, then
                `--results OUT/results.csv`; methods that are not in that file keep what they had
    harmful     share of clicks that made a mask worse, from the same file
    peers       seconds beside the peers, from `python main.py bench --peers --threads 1 --out FILE`, then
                `--peers FILE`
    growth      seconds by the size of the volume, from `python main.py bench --threads 1 --out FILE`, then
                `--growth FILE`
    first-minute  what a new user waits for, from `make first-minute ARGS='--out FILE'`, then
                `--first-minute FILE`; what is not in that file (`--reuse` installs nothing, and not every
                machine has a browser) keeps what it had

Scripts with other blocks (case_pages.py, training_curve.py) write them by `write_blocks`.

The picture of the example is drawn anew, and where this machine has Chromium those of the page.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from dualclickmed.demo.sample import ORGANS, make_trunk, write_sample
from dualclickmed.evaluation.metrics import dice
from dualclickmed.evaluation.protocol import HARM, ExpertMethod, run_object
from dualclickmed.evaluation.records import WHOLE
from dualclickmed.imaging.volume import from_grid
from dualclickmed.predictor import Predictor
from dualclickmed.weights.cards import KINDS, read_card
from dualclickmed.weights.files import default_path, load_expert

REPOSITORY = Path(__file__).resolve().parents[1]
IMAGES = REPOSITORY / "docs" / "images"
TABLE = REPOSITORY / "docs" / "evaluation" / "table.json"
PEERS = REPOSITORY / "docs" / "evaluation" / "peers.json"
GROWTH = REPOSITORY / "docs" / "evaluation" / "growth.json"
FIRST_MINUTE = REPOSITORY / "docs" / "evaluation" / "first_minute.json"
PAGES = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")))
SMALLEST = 50
"""Voxels below which an object does not count in the table."""
CLASSICAL = ("ellipsoid", "graph-cut", "random-walker", "region-growing")
NAMES = {"ct": "CT", "mri": "MR", "pet": "PET", "microscopy": "Microscopy"}
EXAMPLE = ("--box", "32,128,36,114,50,98", "--background", "53,99,68", "--background", "81,83,77")
"""README's example: the liver of the sample, with clicks in the right kidney and the vena cava beside it."""
SHOWN = ("liver", "left kidney", "right kidney", "spleen", "heart", "urinary bladder")
CLICKS = 5

Means = dict[str, dict[str, list[float]]]
"""Modality, method, then mean Dice from the box and after each click."""


def main() -> None:
    """Write blocks and pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, action="append", default=[], help="results.csv of evaluate")
    parser.add_argument("--peers", type=Path, help="figures of bench --peers, JSON")
    parser.add_argument("--growth", type=Path, help="figures of bench, JSON")
    parser.add_argument("--first-minute", type=Path, help="figures of make first-minute, JSON")
    parser.add_argument("--no-pictures", action="store_true", help="numbers only")
    options = parser.parse_args()
    for results in options.results:
        keep(results)
    if options.peers is not None:
        shutil.copyfile(options.peers, PEERS)
    if options.growth is not None:
        found = json.loads(options.growth.read_text())
        kept = {name: found[name] for name in ("machine", "volumes", "clicks")}
        GROWTH.write_text(json.dumps(kept, indent=1) + "\n")
    if options.first_minute is not None:
        keep_first_minute(options.first_minute)
    sample = sample_block(sample_dice("box"), sample_dice("point"))
    blocks = {"sample": sample, "example": example_block(example())}
    blocks["shipped"] = shipped_block()
    if TABLE.exists():
        table = json.loads(TABLE.read_text())
        blocks |= {"modalities": modalities_block(table), "harmful": harmful_block(table)}
    if PEERS.exists():
        blocks["peers"] = peers_block(json.loads(PEERS.read_text()))
    if GROWTH.exists():
        blocks["growth"] = growth_block(json.loads(GROWTH.read_text()))
    if FIRST_MINUTE.exists():
        blocks["first-minute"] = first_minute_block(json.loads(FIRST_MINUTE.read_text()))
    write_blocks(blocks)
    if not options.no_pictures:
        pictures()


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def write_blocks(blocks: dict[str, str]) -> None:
    """Write blocks, by their names, into every page that has them."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        written = with_blocks(text, blocks)
        if written != text:
            page.write_text(written, encoding="utf-8")
            say(f"wrote {page.relative_to(REPOSITORY)}")


def with_blocks(text: str, blocks: dict[str, str]) -> str:
    """A page with what stands between the marks replaced; marks of unknown names are left alone."""

    def replaced(found: re.Match[str]) -> str:
        inside = blocks.get(found["name"])
        return (
            found[0] if inside is None else f"<!-- figures: {found['name']} -->\n{inside}\n<!-- /figures -->"
        )

    return re.sub(
        r"<!-- figures: (?P<name>[\w-]+) -->\n(?P<inside>.*?)<!-- /figures -->", replaced, text, flags=re.S
    )


def block_of(text: str, name: str) -> str:
    """What stands between the marks of a name."""
    found = re.search(rf"<!-- figures: {name} -->\n(.*?)<!-- /figures -->", text, flags=re.S)
    return "" if found is None else found[1].strip()


# The sample study ---------------------------------------------------------------------------------------


def sample_dice(start: str, clicks: int = CLICKS) -> dict[str, list[float]]:
    """Dice of organs of the sample, from what `run_object` starts with and after each click in the largest
    error.
    """
    image, truth, affine = make_trunk()
    volume = from_grid(image, affine, "ct")
    labels = from_grid(truth, affine).array
    method = ExpertMethod(Predictor.from_weights(device="cpu").expert, "fused")
    return {
        organ: run_object(method, volume, labels == ORGANS.index(organ) + 1, clicks, start)[0]
        for organ in SHOWN
    }


def sample_block(box: dict[str, list[float]], point: dict[str, list[float]]) -> str:
    lines = [
        "| organ | box | +1 click | +3 | +5 | one click | +1 | +3 | +5 |",
        "| --- " + "| ---: " * 8 + "|",
    ]
    rows = {organ: [found[organ][at] for found in (box, point) for at in (0, 1, 3, 5)] for organ in box}
    rows["mean"] = np.mean(list(rows.values()), axis=0).tolist()
    for organ, values in rows.items():
        lines.append(f"| {organ} | " + " | ".join(f"{value:.2f}" for value in values) + " |")
    return "\n".join(lines)


def example(picture: Path | None = None) -> float:
    """Dice of README's example, through the command line."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_sample(folder / "sample")
        out = folder / "liver.nii.gz"
        command = [sys.executable, str(REPOSITORY / "main.py"), "segment", str(files.image), *EXAMPLE]
        command += ["--name", "liver", "--out", str(out)]
        if picture is not None:
            command += ["--picture", str(picture)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        mask = np.asarray(nib.load(out).dataobj) > 0
        truth = np.asarray(nib.load(files.truth).dataobj) == ORGANS.index("liver") + 1
    return dice(mask, truth)


def example_block(found: float) -> str:
    clicks = "two background clicks, one in the right kidney and one in the vena cava,"
    return f"With this box and {clicks} the liver of the sample has a Dice of {found:.2f}."


# The networks -------------------------------------------------------------------------------------------


def shipped_block() -> str:
    """What is served unless somebody chooses other weights."""
    million, data = 0.0, {}
    for kind in KINDS:
        path = default_path(kind)
        million += sum(p.numel() for p in load_expert(kind, path).parameters()) / 1e6
        data[kind] = str(read_card(path)["data"])
    trained_on = "; ".join(f"{kind} expert: {text}" for kind, text in data.items())
    if len(set(data.values())) == 1:
        trained_on = data[KINDS[0]]
    return (
        f"The two networks that are included have {million:.1f} million parameters together and run on an "
        f"ordinary processor. The data they were trained on: {trained_on}."
    )


# Real volumes -------------------------------------------------------------------------------------------


def object_dice(results: Path) -> dict[tuple[str, str, int], list[float]]:
    """From the results.csv of an evaluation: the Dice of each object that counts, in the order of the file,
    by modality, method and step.
    """
    values: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    with results.open(newline="") as lines:
        for row in csv.DictReader(lines):
            if row["label"] != WHOLE and int(row["voxels"]) >= SMALLEST:
                values[row["group"], row["method"], int(row["step"])].append(float(row["dice"]))
    return dict(values)


def keep(results: Path) -> None:
    """Take the methods of an evaluation into the table; others keep what they had."""
    table: Means = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    values = object_dice(results)
    for (group, method, step), found in sorted(values.items()):
        means = table.setdefault(group, {}).setdefault(method, [])
        del means[step:]
        means.append(round(float(np.mean(found)), 4))
        table[group]["objects"] = [len(found)]
        if step and method == "fused":
            # The objects of a step stand in the order of those before it.
            before = values[group, method, step - 1]
            fallen = sum(now - then < -HARM for now, then in zip(found, before, strict=True))
            falls = table[group].setdefault("harmful", [])
            del falls[step - 1 :]
            falls.append(fallen)
    TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")


def modalities_block(table: Means) -> str:
    """Ours beside the best classical method of each modality, by its Dice after five clicks."""
    lines = [
        "| | objects | ours, box | ours, +5 clicks | best classical, box | best classical, +5 clicks |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for group, name in NAMES.items():
        found = table.get(group)
        if found is None or "fused" not in found:
            continue
        peer = max((m for m in CLASSICAL if m in found), key=lambda m: found[m][-1])
        cells = [*(found["fused"][at] for at in (0, -1)), *(found[peer][at] for at in (0, -1))]
        best = [max(cells[0], cells[2]), max(cells[1], cells[3])]
        shown = [f"**{v:.2f}**" if v == best[at % 2] else f"{v:.2f}" for at, v in enumerate(cells)]
        shown[3] += f" ({peer.replace('-', ' ')})"
        lines.append(f"| {name} | {int(found['objects'][0])} | {' | '.join(shown)} |")
    enough = [
        f"{name} ({table[group]['ellipsoid'][0]:.2f})"
        for group, name in NAMES.items()
        if group in table and table[group]["ellipsoid"][0] >= table[group]["fused"][0]
    ]
    if enough:
        where = " and ".join(enough)
        lines += ["", f"From the box alone, the ellipsoid inscribed in it is as good or better in {where}."]
    return "\n".join(lines)


def harmful_block(table: Means) -> str:
    """Clicks after which an object's Dice fell, of all clicks, by modality."""
    counts = {
        name: (sum(table[group]["harmful"]), len(table[group]["harmful"]) * table[group]["objects"][0])
        for group, name in NAMES.items()
        if "harmful" in table.get(group, {})
    }
    fallen, clicks = (sum(count[at] for count in counts.values()) for at in (0, 1))
    shares = ", ".join(f"{name} {count / of:.1%}" for name, (count, of) in counts.items())
    return (
        f"- **Some clicks make a mask worse**: after {fallen / clicks:.1%} of the {clicks:.0f} clicks behind "
        f"this table the Dice of the object fell by more than {HARM:g} ({shares})."
    )


# Peers --------------------------------------------------------------------------------------------------


def peers_block(found: dict[str, object]) -> str:
    """Times as multiples of our further click."""
    rows = found["peers"]
    assert isinstance(rows, list)
    unit = next(row["seconds"] for row in rows if row["unit"])
    lines = [
        "| from prompt to mask | size | seconds | as a multiple of our further click | memory, GB |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        times = row["seconds"] / unit
        lines.append(
            f"| {row['name']} | {row['size']} | {row['seconds']:.2f} | "
            f"{times:.{0 if times >= 10 else 1}f} | {row['gigabytes']:.2f} |"
        )
    return "\n".join([measured_on(found["machine"]), "", *lines])


def measured_on(machine: object) -> str:
    """Where, and whose seconds."""
    where = f"Measured on {machine}."
    if ", 1 thread," in where:
        where += " The times are processor time of one thread, which other programs hardly change."
    return where


def growth_block(found: dict[str, Any]) -> str:
    """A click of either expert by the volume's size, and by the number of clicks before it."""
    names = {"first_seconds": "first click", "same_seconds": "further"}
    columns = [(expert, key) for expert in ("global", "local") for key in names]
    rows: dict[tuple[int, ...], dict[tuple[str, str], float]] = {}
    for cost in found["volumes"]:
        # As users name sizes: along x, y and z.
        rows.setdefault(tuple(reversed(cost["shape"])), {}).update(
            {(cost["expert"], key): cost[key] for key in names}
        )
    lines = [
        "| volume | " + " | ".join(f"{names[key]}, {expert}" for expert, key in columns) + " |",
        "| --- |" + " ---: |" * len(columns),
    ]
    for shape, cells in rows.items():
        lines.append(
            f"| {' x '.join(map(str, shape))} | " + " | ".join(f"{cells[c]:.3f} s" for c in columns) + " |"
        )
    first, *_, last = rows.values()
    grown = " | ".join(f"{last[c] / first[c]:.2f}" for c in columns)
    lines.append(f"| largest against smallest | {grown} |")
    for expert in ("global", "local"):
        by_clicks = [cost for cost in found.get("clicks", ()) if cost["expert"] == expert]
        if not by_clicks:
            continue
        most = max(cost["clicks"] for cost in by_clicks)
        times = [cost["more_seconds"] for cost in by_clicks]
        took = f"{min(times):.2f} to {max(times):.2f} s"
        lines += ["", f"After 1 to {most} clicks, one more takes the {expert} expert {took}."]
    return "\n".join([measured_on(found["machine"]), "", *lines])


# A new user's first minute ------------------------------------------------------------------------------


def keep_first_minute(measured: Path) -> None:
    """Take the figures of a measurement; others keep what they had."""
    kept = json.loads(FIRST_MINUTE.read_text()) if FIRST_MINUTE.exists() else {"figures": {}}
    found = json.loads(measured.read_text())
    figures = kept["figures"] | found["figures"]
    FIRST_MINUTE.write_text(json.dumps({"machine": found["machine"], "figures": figures}, indent=1) + "\n")


def first_minute_block(found: dict[str, Any]) -> str:
    """What a new user waits for, with the size of an installation."""
    figures: dict[str, float] = found["figures"]
    commands = [value for name, value in figures.items() if name.startswith("processor seconds of ")]
    ready = figures["a start: from 'make serve' to the line 'Ready', s"]
    opened, clicked = (
        figures[f"page: {name}, s"]
        for name in ("from the address to the sample", "from the first click to the mask")
    )
    return "\n".join(
        [
            f"What a new user waits for, measured by `make first-minute` on {found['machine']}:",
            "",
            f"- `make serve`, once everything is installed, until the server is ready: {ready:.2f} s;",
            f"- from opening the page's address until the sample study is shown: {opened:.2f} s;",
            f"- from the first click until its mask is shown: {clicked:.2f} s;",
            "- commands that compute nothing (`--help`, `weights list`, a wrong path): "
            f"{min(commands):.2f} to {max(commands):.2f} s of processor time.",
            "",
            f"The installation takes {figures['size of .venv, GB']:.2f} GB of disk, without CUDA.",
        ]
    )


# Pictures -----------------------------------------------------------------------------------------------


def pictures() -> None:
    """Draw the example; let the browser tests take the page's, where they can run."""
    example(IMAGES / "sample.png")
    say("wrote docs/images/sample.png")
    found = subprocess.run([sys.executable, "-c", "import playwright"], capture_output=True, check=False)
    if found.returncode != 0 or not any(map(shutil.which, ("chromium", "chromium-browser"))):
        say("The page's pictures stay as they are: `make test-page` installs what they take.")
        return
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "tests/browser/test_page_pictures.py",
        "-k",
        "pictures_of",
    ]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    for name in ("page.png", "page-light.png", "page.gif"):
        shutil.copyfile(REPOSITORY / "build" / "browser" / name, IMAGES / name)
        say(f"wrote docs/images/{name}")


if __name__ == "__main__":
    main()

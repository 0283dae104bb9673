"""How long an annotator waits for an answer: `make answer-times` writes the table of docs/fusion.md.

    python scripts/answer_times.py [--repeats N] [--no-docs]

A server is started on a generated volume of 512 x 512 x 200 voxels and asked over HTTP, as a client asks it,
for compressed masks. The image has been loaded before. Of each kind of request the median is shown; every
request has a place of its own, so that none is answered from what was kept.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import nibabel as nib
import numpy as np
import requests
from docs_figures import write_blocks
from first_minute import free_port, in_the_background, say, wait

REPOSITORY = Path(__file__).resolve().parents[1]
SHAPE = (512, 512, 200)
CENTRES = (
    (220, 200, 90), (420, 400, 40), (100, 380, 150), (380, 120, 150),
    (100, 100, 40), (250, 420, 110), (420, 250, 100), (300, 60, 40),
)  # fmt: skip
"""Middles of the ellipsoids, in voxels: a large one, a small one and six between."""
LABELS = (
    "liver", "spleen", "right kidney", "left kidney", "pancreas", "gallbladder", "stomach", "heart",
)  # fmt: skip
RADII = ((70, 60, 30), (10, 10, 8), *[(32, 28, 16)] * 6)
HEAD = "| prompts | first answer | each further click |\n| --- | ---: | ---: |"
Parameters = Mapping[str, object]


def main() -> None:
    """Measure, print the table and write it into the docs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7, help="requests of each kind (default: 7)")
    parser.add_argument("--no-docs", action="store_true", help="print the table only")
    options = parser.parse_args()
    say(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}{in_the_background()}")
    with tempfile.TemporaryDirectory() as folder:
        nib.save(nib.Nifti1Image(volume(), np.eye(4)), Path(folder) / "volume.nii.gz")
        table = measured(Path(folder), options.repeats)
    say(table)
    if not options.no_docs:
        write_blocks({"answer-times": table})


def volume() -> np.ndarray:
    """The image (i, j, k): noise, and ellipsoids brighter than it by four deviations."""
    image = np.random.default_rng(0).normal(100, 20, SHAPE).astype(np.float32)
    for centre, radii in zip(CENTRES, RADII, strict=True):
        i, j, k = (((np.arange(n) - c) / r) ** 2 for n, c, r in zip(SHAPE, centre, radii, strict=True))
        image[i[:, None, None] + j[:, None] + k < 1] += 80
    return image.astype(np.int16)


def measured(studies: Path, repeats: int) -> str:
    """The table, from a server of its own."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "main.py", "serve", "--studies", str(studies), "--port", str(port)]
    log = studies.with_suffix(".log")
    with log.open("wb") as stream:
        server = subprocess.Popen(
            command, cwd=REPOSITORY, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait(lambda: "Ready: " in log.read_text(), server, str(log))
        return table(Client(address), repeats)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
        log.unlink()


class Client:
    """Asks a server for masks of the one volume, and says how long that took."""

    def __init__(self, address: str) -> None:
        self.session = requests.Session()
        self.session.trust_env = False
        self.address = address

    def seconds(self, model: str, parameters: Parameters) -> float:
        """Of one answer, a compressed mask."""
        begin = time.perf_counter()
        answer = self.session.post(
            f"{self.address}/infer/{model}",
            params={"image": "volume", "output": "image"},
            data={"params": json.dumps(parameters)},
        )
        spent = time.perf_counter() - begin
        if not answer.ok:
            raise SystemExit(f"The server refused {parameters}: {answer.text}")
        return spent


def beside(number: int) -> list[int]:
    """A voxel outside of an ellipsoid and inside its box: a click there contradicts a good mask."""
    (i, j, k), (u, v, _) = CENTRES[number], RADII[number]
    return [i + round(0.75 * u), j + round(0.75 * v), k]


def table(client: Client, repeats: int) -> str:
    """Ask for everything and write what it took, in seconds."""
    # Where no other request clicks.
    i, j, k = CENTRES[0]
    client.seconds("dualclickmed_object", {"foreground": [[i, j + 20, k]], "label": LABELS[0]})
    rows: dict[str, tuple[list[float], list[float]]] = {}

    def note(row: str, model: str, first: Parameters, further: Parameters) -> None:
        both = rows.setdefault(row, ([], []))
        for seconds, parameters in zip(both, (first, further), strict=True):
            seconds.append(client.seconds(model, parameters))

    for turn in range(repeats):
        (i, j, k), (u, v, w) = CENTRES[0], RADII[0]
        box = {"roi": [i - u, i + u, j - v, j + v, k - w - turn, k + w], "label": "organ"}
        note("a box", "dualclickmed_object", box, {**box, "foreground": [beside(0)]})
        for row, at in (("one click in a large object", 0), ("one click in a small object", 1)):
            i, j, k = CENTRES[at]
            click = [i - turn, j + turn // 2, k]
            one = {"foreground": [click], "label": "organ"}
            more = {"foreground": [click, beside(at)], "label": "organ"}
            note(row, "dualclickmed_object", one, more)
        several = {name: [[i - turn, j - 1, k]] for name, (i, j, k) in zip(LABELS, CENTRES, strict=True)}
        more = {**several, LABELS[2]: [*several[LABELS[2]], beside(2)]}
        note(f"one click in each of {len(LABELS)} labels", "dualclickmed", several, more)
    lines = [
        f"| {row} | {statistics.median(first):.2f} s | {statistics.median(further):.2f} s |"
        for row, (first, further) in rows.items()
    ]
    return "\n".join([HEAD, *lines])


if __name__ == "__main__":
    main()

"""What learning must gain on real images: ten corrected cases, one training over HTTP, on a CPU.

`DUALCLICKMED_REPORT` may name a folder for the figures and the plot.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from dualclickmed.learning.curve import Exam, draw, measured
from dualclickmed.training.sources import LabelledCase, folder_cases
from dualclickmed.weights.files import default_path, model_dir

from tests.support.live import Server, serving

LABELLED, TESTED = 10, 20
CLICKS = 10
MOST_SECONDS = 10 * 60
RISE, FEWER, FALL = 0.05, 0.6, 0.01


def submit(server: Server, case: LabelledCase, image: str) -> None:
    names = [case.names[value].lower() for value in sorted(case.names)]
    info = {"label_info": [{"name": name} for name in names], "client_id": "annotator"}
    with case.label.open("rb") as stream:
        answer = server.http.put(
            f"{server.url}/datastore/label",
            params={"image": image, "tag": "final"},
            files={"params": (None, json.dumps(info)), "label": ("label.nii.gz", stream)},
            timeout=120,
        )
    assert answer.status_code == 200, answer.text


def train(server: Server) -> float:
    """Seconds from the request to the end of the training's process."""
    begin = time.monotonic()
    answer = server.http.post(f"{server.url}/train/dualclickmed_global", json={"device": "cpu"}, timeout=120)
    assert answer.status_code == 200, answer.text
    while (task := server.get("/train/").json())["status"] not in ("DONE", "ERROR"):
        assert time.monotonic() - begin < 2 * MOST_SECONDS
        time.sleep(2)
    assert task["status"] == "DONE", task
    return time.monotonic() - begin


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_corrected_cases_help_the_next_twenty(tmp_path: Path, real_data: Path) -> None:
    cases = folder_cases(real_data / "mri" / "msd_hippocampus")
    own = {case.image for case in cases}
    others: Sequence[LabelledCase] = [c for c in folder_cases(real_data) if c.image not in own]
    taught, test = cases[:LABELLED], cases[-TESTED:]
    exam = Exam(test, others, CLICKS)
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copytree(model_dir(), folder / "weights")

    def make_studies(studies: Path) -> None:
        studies.mkdir()
        for number, case in enumerate(taught):
            shutil.copyfile(case.image, studies / f"case_{number:02d}.nii.gz")

    before = measured("global", folder / "weights", exam, images=0)
    with serving(folder, make_studies) as server:
        for number, case in enumerate(taught):
            submit(server, case, f"case_{number:02d}")
        seconds = train(server)
        state = server.get("/info/").json()["train_stats"]["dualclickmed_global"]
    assert state["state"] == "published", state
    facts = {"images": LABELLED, "seconds": seconds, "outcome": state["state"]}
    after = measured("global", folder / "weights", exam, **facts)
    points = [before.to_dict(), after.to_dict()]
    report = os.environ.get("DUALCLICKMED_REPORT")
    if report:
        target = Path(report)
        target.mkdir(parents=True, exist_ok=True)
        card = default_path("global", directory=folder / "weights").with_suffix(".json")
        shutil.copyfile(card, target / "card.json")
        shutil.copyfile(server.log, target / "server.log")
        (target / "curve.json").write_text(json.dumps({"expert": "global", "points": points}, indent=1))
        draw("box", points, target / "curve.png")

    assert seconds <= MOST_SECONDS
    for label, dice in before.test.mean().items():
        assert after.test.mean()[label][0] - dice[0] >= RISE, label
    needed = [np.mean(list(point.test.clicks(0.85).values())) for point in (before, after)]
    assert needed[1] <= (1 - FEWER) * needed[0], needed
    assert np.mean(before.others["all objects"]) - np.mean(after.others["all objects"]) <= FALL

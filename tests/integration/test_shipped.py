"""What ships, as a new user meets it: `main.py serve`, the sample study, a box or two clicks, a good mask."""

from __future__ import annotations

import gzip
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK
from dualclickmed.demo.sample import write_sample
from dualclickmed.evaluation.metrics import dice

from tests.support.live import Server, free_port, running

REPOSITORY = Path(__file__).parents[2]
# Large organs of the sample; the bar for a box or two opposite corners.
LARGE, ENOUGH = ("heart", "right kidney", "left kidney", "spleen"), 0.85


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server as `make serve` starts it, on a port of its own."""
    folder = tmp_path_factory.mktemp("shipped")
    write_sample(folder / "sample")
    port = free_port()
    started = Server(
        f"http://127.0.0.1:{port}", folder / "sample", REPOSITORY / "model", folder, folder / "log.txt"
    )
    command = [sys.executable, str(REPOSITORY / "main.py"), "serve"]
    command += ["--studies", str(started.studies), "--port", str(port)]
    environment = os.environ | {"MONAI_LABEL_SESSION_PATH": str(folder / "sessions")}
    with running(command, started, environment):
        yield started


def test_metaimage_files_are_studies(shipped: Server) -> None:
    image = SimpleITK.GetImageFromArray(np.zeros((12, 14, 16), np.int16))
    SimpleITK.WriteImage(image, str(shipped.studies / "meta.mha"))
    deadline = time.monotonic() + 30
    # MONAI Label notices new files by itself, a little later.
    while (
        answer := shipped.infer("dualclickmed_object", "meta", {"foreground": [[8, 7, 6]]})
    ).status_code != 200:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.5)


def truth(shipped: Server, organ: str) -> np.ndarray:
    folder = shipped.studies.with_name(shipped.studies.name + "-truth")
    labels = np.asarray(nib.load(folder / "trunk_ct.nii.gz").dataobj)
    return labels == json.loads((folder / "labels.json").read_text())[organ]


def extent(mask: np.ndarray) -> tuple[list[int], list[int]]:
    where = np.argwhere(mask)
    return where.min(axis=0).tolist(), where.max(axis=0).tolist()


def received(shipped: Server, content: bytes, organ: str) -> np.ndarray:
    path = shipped.temporary / "answer.nrrd"
    path.write_bytes(content)
    array, _ = nrrd.read(str(path))
    value = shipped.get("/info/").json()["models"]["dualclickmed"]["labels"][organ]
    return array == value


@pytest.mark.parametrize("organ", LARGE)
@pytest.mark.parametrize("prompt", ["box", "corners"])
def test_a_box_or_two_corners_give_a_large_organ(shipped: Server, organ: str, prompt: str) -> None:
    mask = truth(shipped, organ)
    lo, hi = extent(mask)
    if prompt == "box":
        params = {"roi": [hi[0], lo[0], lo[1], hi[1], lo[2], hi[2]], "label": organ}
    else:
        params = {organ: [lo, hi], "strategy": "global"}
    answer = shipped.infer("dualclickmed", "trunk_ct", params)
    assert answer.status_code == 200, answer.text
    assert dice(received(shipped, answer.content, organ), mask) >= ENOUGH


def test_what_is_asked_without_a_strategy_is_refined(shipped: Server) -> None:
    assert shipped.get("/info/").json()["models"]["dualclickmed"]["config"]["strategy"][0] == "fused"
    answer = shipped.infer(
        "dualclickmed", "trunk_ct", {"liver": [[70, 80, 70]], "result_content": "uncertainty"}
    )
    assert answer.status_code == 200, answer.text


def test_one_click_gives_a_mask_around_it(shipped: Server) -> None:
    mask = truth(shipped, "left kidney")
    centre = np.argwhere(mask).mean(axis=0).round().astype(int)
    inside = np.argwhere(mask)[np.abs(np.argwhere(mask) - centre).sum(axis=1).argmin()].tolist()
    answer = shipped.infer("dualclickmed", "trunk_ct", {"left kidney": [inside], "background": []})
    found = received(shipped, answer.content, "left kidney")
    assert found[tuple(inside)]
    assert (found & mask).sum() > 0.6 * found.sum()


def test_a_further_click_costs_at_most_half_of_the_first_ones_compute(shipped: Server) -> None:
    mask = truth(shipped, "urinary bladder")
    lo, hi = extent(mask)
    box = {"roi": [lo[0], hi[0], lo[1], hi[1], lo[2], hi[2]], "label": "urinary bladder"}
    background = [[hi[0] - 1, lo[1] + 1, lo[2] + 1], [lo[0] + 1, hi[1] - 1, hi[2] - 1]]

    def compute(params: dict) -> float:
        answer = shipped.infer("dualclickmed", "trunk_ct", params, output="json")
        stages = answer.json()["latencies"]
        return sum(stages.get(stage, 0.0) for stage in ("crop", "encode", "decode", "paste"))

    first = compute(box | {"urinary bladder": [], "background": background[:1]})
    further = min(compute(box | {"background": background[:n]}) for n in (1, 2, 1, 2))
    assert further <= first / 2


def test_a_warm_click_on_a_clinical_volume_is_quick(shipped: Server) -> None:
    """512 x 512 x 200 voxels, loaded by the first click; on two idle cores it takes less than 1.5 s."""
    shape = (512, 512, 200)
    image = np.random.default_rng(0).integers(-100, 200, shape, dtype=np.int16)
    image[150:300, 200:350, 50:120] += 150
    header = nib.Nifti1Image(image, np.diag([0.8, 0.8, 2.0, 1.0]))
    (shipped.studies / "large.nii.gz").write_bytes(gzip.compress(header.to_bytes(), compresslevel=1))
    deadline = time.monotonic() + 60
    params = {"liver": [[220, 270, 80]], "background": [], "result_compress": False}
    while shipped.infer("dualclickmed", "large", params).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(1)
    seconds = []
    for i in range(4):
        begin = time.perf_counter()
        answer = shipped.infer("dualclickmed", "large", params | {"liver": [[220 + 20 * i, 270, 80]]})
        seconds.append(time.perf_counter() - begin)
        assert answer.status_code == 200
    # Twice the bar: a test machine may be busy with something else.
    assert min(seconds) < 3.0, seconds


def test_the_log_says_where_it_is_ready_and_nothing_stray(shipped: Server) -> None:
    deadline = time.monotonic() + 300
    while f"Ready: {shipped.url}" not in (log := shipped.log.read_text()):
        assert time.monotonic() < deadline, log
        time.sleep(0.2)
    started = log.splitlines()[: next(n for n, line in enumerate(log.splitlines()) if "Ready: " in line) + 1]
    # What MONAI Label prints while it is imported, tasks of its timer, and the app under MONAI Label's names.
    for stray in ("CORS", "allow_origins", "timeloop", "(lib.", "(main:", "Warning", "WARNING", "Traceback"):
        assert not [line for line in started if stray in line], stray
    assert started[0].startswith(f"Open {shipped.url} in a browser")
    assert all(line.startswith("[") for line in started[1:]), "a line that no logger wrote"

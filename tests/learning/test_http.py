"""The whole loop over HTTP: labels in, training, better weights out, no restart, and whatever is killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import psutil
import pytest
import torch
from dualclickmed.networks.global_network import GlobalNetwork
from dualclickmed.weights.files import default_path, load_expert, read_card, save_expert

from tests.support.live import Server, make_weights, serving

SHAPE = (40, 36, 30)
IMAGES = tuple(f"patient_{n}" for n in range(5))
TRAINER = "dualclickmed_global"
# A rate and a number of steps that turn the sign of one number, in seconds.
QUICK = {"steps": 20, "rate": 0.2, "replay": 0.0, "minutes": 5.0, "device": "cpu"}
SECONDS = 240


def make_patients(studies: Path) -> None:
    """Images with a bright and a dark cuboid, the labels that annotators will submit."""
    studies.mkdir()
    truth = studies.parent / "truth"
    truth.mkdir()
    for number, name in enumerate(IMAGES):
        rng = np.random.default_rng(number)
        image, label = rng.normal(100, 5, SHAPE), np.zeros(SHAPE, dtype=np.uint8)
        for value, (start, grey) in enumerate((((6, 8, 7), 170), ((22, 14, 12), 40)), start=1):
            part = tuple(slice(a + s, a + s + 11) for a, s in zip(start, rng.integers(0, 4, 3), strict=True))
            label[part], image[part] = value, grey
        nib.save(nib.Nifti1Image(image.round().astype(np.int16), np.eye(4)), studies / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(label, np.eye(4)), truth / f"{name}.nii.gz")


def make_wrong_weights(folder: Path) -> None:
    """As `make_weights`, but for the sign of the ellipsoid in the box: the one thing left to learn."""
    make_weights(folder)
    path = default_path("global", directory=folder)
    network = cast(GlobalNetwork, load_expert("global", path))
    with torch.no_grad():
        network.prior_gain.fill_(-0.3)
    save_expert(network, "global", path, {})


def submit(server: Server, image: str, client: str, names: tuple[str, str], grow: int = 0) -> Any:
    """As 3D Slicer does: values by position, an index that means nothing."""
    path = server.studies.parent / "truth" / f"{image}.nii.gz"
    label = np.asarray(nib.load(path).dataobj)
    if grow:
        label = np.roll(label, grow, axis=0)
    changed = server.temporary / f"submitted_{image}.nii.gz"
    nib.save(nib.Nifti1Image(label, np.eye(4)), changed)
    info = {"label_info": [{"name": n, "idx": 9 - k} for k, n in enumerate(names)], "client_id": client}
    with changed.open("rb") as stream:
        answer = server.http.put(
            f"{server.url}/datastore/label",
            params={"image": image, "tag": "final"},
            files={"params": (None, json.dumps(info)), "label": ("label.nii.gz", stream)},  # type: ignore[arg-type]
            timeout=60,
        )
    assert answer.status_code == 200, answer.text
    return answer.json()


def start_training(server: Server, trainer: str = TRAINER, **settings: Any) -> Any:
    return server.http.post(f"{server.url}/train/{trainer}", json={**QUICK, **settings}, timeout=60)  # type: ignore[dict-item]


def status(server: Server) -> dict[str, Any]:
    return server.get("/train/").json()


def wait_for(server: Server, *states: str) -> dict[str, Any]:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        task = status(server)
        if task["status"] in states:
            return task
        time.sleep(0.2)
    raise AssertionError(f"{task}\n{server.log.read_text()[-3000:]}")


def until(server: Server, happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < deadline, server.log.read_text()[-3000:]
        time.sleep(0.2)


def trainings(server: Server) -> list[dict[str, Any]]:
    """As the record has them, the oldest first."""
    return server.get("/info/").json()["learning"]["trainings"]


def told(server: Server) -> dict[str, Any]:
    return server.get("/info/").json()["train_stats"][TRAINER]


def click(server: Server) -> bytes:
    answer = server.infer("dualclickmed_object", IMAGES[0], {"roi": [6, 20, 8, 22, 7, 21]})
    assert answer.status_code == 200, answer.text
    return answer.content


def training_processes(server: Server) -> list[psutil.Process]:
    children = psutil.Process(server.pid).children(recursive=True)
    return [c for c in children if "monailabel.interfaces.utils.app" in " ".join(c.cmdline())]


@pytest.mark.timeout(600)
def test_the_loop(tmp_path: Path) -> None:
    folder = tmp_path / "server"
    make_wrong_weights(folder / "weights")
    with serving(folder, make_patients) as server:
        first = click(server)
        assert "dualclickmed_auto" not in server.get("/info/").json()["models"]
        names = ("front part", "spleen")
        server.infer("dualclickmed", IMAGES[0], {"spleen": [[28, 20, 18], [29, 21, 19]]})
        submit(server, IMAGES[0], "ann", names)
        answer = submit(server, IMAGES[0], "bob", names, grow=1)
        assert answer["learning"]["replaced"]["by"] == "ann"
        assert Path(answer["learning"]["replaced"]["kept_as"]).is_file()
        for image in IMAGES[1:]:
            submit(server, image, "bob", names)
        waiting = server.get("/info/").json()["learning"]
        assert sorted(waiting["waiting"]["global"]) == sorted(IMAGES)
        assert waiting["by"] == {"bob": 5}
        assert waiting["several_annotators"] == [IMAGES[0]]

        # Killed once it holds the lock: nothing has changed, and the next one starts.
        assert start_training(server, steps=100_000).status_code == 200
        until(server, lambda: told(server).get("state") in ("measuring the parent", "training"))
        assert start_training(server).status_code == 429
        for process in training_processes(server):
            os.kill(process.pid, signal.SIGKILL)
        wait_for(server, "ERROR", "DONE")
        assert click(server) == first
        assert default_path("global", directory=server.weights).stem == "global-compact"

        assert start_training(server).status_code == 200
        task = wait_for(server, "ERROR", "DONE")
        assert task["status"] == "DONE", server.log.read_text()[-5000:]
        state = told(server)
        assert state["state"] == "published", state
        assert state["waiting"] == []
        assert any("Published" in line for line in task["details"])

        # The same request, the same server, other weights: and its embeddings are not the old ones.
        second = click(server)
        assert second != first
        card = read_card(default_path("global", directory=server.weights))
        assert card["parent"]["name"] == "global-compact"
        assert sorted(card["data"]["labels"]) == sorted(names)
        assert len(card["data"]["trained"]) == 3
        assert len(card["data"]["held_out"]) == 2
        before, after = card["measured"]["before"], card["measured"]["after"]
        assert before["labels"].keys() == after["labels"].keys() == set(names)
        assert np.mean(list(after["labels"].values())) >= np.mean(list(before["labels"].values()))

    # The label that nobody had told the server about is one of its own from now on.
    with serving(folder, make_patients, settings={"retrain_after": "1"}) as server:
        info = server.get("/info/").json()
        assert info["labels"][-1] == "front part"
        assert click(server) == second
        auto = info["models"]["dualclickmed_auto"]
        assert auto["type"] == "segmentation"
        assert auto["labels"] == {
            "spleen": info["labels"].index("spleen"),
            "front part": len(info["labels"]) - 1,
        }
        answer = server.infer("dualclickmed_auto", IMAGES[1], {}, output="json")
        assert answer.status_code == 200, answer.text
        assert answer.json()["labels"] == auto["labels"]
        # Labels wait for the local expert, whose training starts by itself; it can be stopped as any other.
        until(server, lambda: trainings(server)[-1]["state"] == "started")
        begun = trainings(server)[-1]
        assert begun["kind"] == "local"
        server.http.delete(f"{server.url}/train/", timeout=60).raise_for_status()
        (ended,) = (training for training in trainings(server) if training["run"] == begun["run"])
        assert (ended["state"], ended["reason"]) == ("stopped", "cancelled")
        info = server.get("/info/").json()
        assert info["train_stats"]["dualclickmed_local"]["state"] == "cancelled"
        assert info["learning"]["progress"]["state"] == "cancelled"
        assert click(server) == second

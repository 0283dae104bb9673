"""Images to learn from, and a server that is asked to learn from them over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import torch
from dualclickmed.networks.global_network import GlobalNetwork
from dualclickmed.weights.files import default_path, load_expert, save_expert

from .live import Server, make_weights

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

"""Masks of other viewers in the queue of a running server, where it was asked for (`learn_from_viewers`)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dualclickmed.viewers.learned import CLIENT

from tests.support.live import CT_SHAPE, Server, an_image, free_port, save, serving

remote = pytest.importorskip("nnInteractive.inference.remote")

PATIENCE = 120.0


def studies(folder: Path) -> None:
    folder.mkdir()
    save(folder, "ct", an_image((24, 24, 20)))


def clicked(port: int) -> None:
    """What a user of napari or 3D Slicer does: an image, two objects, good-bye."""
    array = an_image(CT_SHAPE).T.astype(np.float32)
    url = f"http://127.0.0.1:{port}"
    with remote.nnInteractiveRemoteInferenceSession(url, read_timeout=300) as client:
        client.set_image(array[None], {"spacing": [3.0, 0.9, 0.9]})
        client.set_target_buffer(np.zeros(array.shape, dtype=np.uint8))
        z, y, x = (n // 2 for n in array.shape)
        client.add_point_interaction([z, y, x], True)
        assert client.target_buffer.any()
        client.reset_interactions()
        client.add_point_interaction([2, 5, 5], True)
        assert client.target_buffer.any()


def listed(server: Server) -> dict[str, Any]:
    return {image["id"]: image for image in server.get("/page/images").json()}


def test_masks_become_labels_that_wait_for_a_training(tmp_path: Path) -> None:
    port = free_port()
    settings = {"nninteractive": str(port), "learn_from_viewers": "true"}
    with serving(tmp_path / "server", studies, settings, up="/health") as server:
        clicked(port)
        deadline = time.monotonic() + PATIENCE
        while not (found := [image for image in listed(server).values() if image["id"] != "ct"]):
            assert time.monotonic() < deadline, server.log.read_text()[-2000:]
            time.sleep(0.2)
        (image,) = found
        assert image["id"].startswith("viewer-")
        while not (image := listed(server)[image["id"]])["done"]:
            assert time.monotonic() < deadline, server.log.read_text()[-2000:]
            time.sleep(0.2)
        assert image["by"] == CLIENT
        learning = server.get("/page/state").json()["learning"]
        assert learning["by"] == {CLIENT: 1} and learning["final"] == 1
        assert image["id"] in learning["waiting"]["global"]
        label = server.http.get(f"{server.url}/page/label", params={"image": image["id"]}, timeout=60)
        assert label.status_code == 200 and b"object 1" in label.content and b"object 2" in label.content
        assert not listed(server)["ct"]["done"]


def test_without_being_asked_for_nothing_is_kept(tmp_path: Path) -> None:
    port = free_port()
    with serving(tmp_path / "server", studies, {"nninteractive": str(port)}, up="/health") as server:
        clicked(port)
        time.sleep(1)
        assert list(listed(server)) == ["ct"]

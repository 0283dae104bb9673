"""The whole loop over HTTP: labels in, training, better weights out, no restart, and whatever is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
from dualclickmed.weights.files import default_path, read_card

from tests.support.live import Server, serving
from tests.support.trainings import (
    IMAGES,
    make_patients,
    make_wrong_weights,
    start_training,
    submit,
    told,
    trainings,
    until,
    wait_for,
)


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

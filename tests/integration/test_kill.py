"""Servers killed at random moments while labels are submitted, weights published and images segmented.

`make test-server` kills 50 of them, the usual tests two. Servers are forked from a process that has imported
everything, so that a start takes a second.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
from dualclickmed.learning.record import EVENTS, FOLDER, Record
from dualclickmed.weights.files import default_path, list_weights, selection, verify

from tests.support.live import APP, LABELS, START_SECONDS, Server, an_image, free_port, make_weights, save

logger = logging.getLogger(__name__)

IMAGES = ("one", "two", "three")
SHAPE = (24, 24, 20)
CLICK = {"liver": [[12, 12, 10]]}
LONGEST_LIFE = 2.5
"""Seconds of work before a server is killed, at most."""
IMPORTED = ("monailabel.app", "monailabel.main", "dualclickmed.predictor", "dualclickmed.learning.publishing")


def serve(folder: Path, port: int) -> None:
    """In a process of its own: `monailabel start_server`."""
    os.setsid()
    log = (folder / "log.txt").open("ab")
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    os.chdir(folder)
    os.environ["DUALCLICKMED_MODEL_DIR"] = str(folder / "weights")
    tempfile.tempdir = str(folder / "temporary")
    from monailabel.config import settings
    from monailabel.main import Main

    settings.MONAI_LABEL_SESSION_PATH = str(folder / "sessions")
    sys.argv = ["monailabel", "start_server", "--app", str(APP), "--studies", str(folder / "studies")]
    sys.argv += ["--host", "127.0.0.1", "--port", str(port), "--conf", "labels", ",".join(LABELS)]
    Main().run()


def publish_for_ever(weights: Path, log: Path) -> None:
    """In a process of its own: publish copies of the first weights, and note each that is done."""
    from dualclickmed.learning.publishing import publish

    while True:
        for kind in ("global", "local"):
            first = weights / f"{kind}-compact.safetensors"
            name = publish(first, first, {}, weights)
            with log.open("a") as stream:
                stream.write(f"{name}\n")


@contextmanager
def forked(folder: Path) -> Iterator[Server]:
    """A server on a folder that is there already; it is dead afterwards, however it was ended."""
    names = ("studies", "weights", "temporary", "log.txt")
    server = Server(f"http://127.0.0.1:{free_port()}", *(folder / name for name in names))
    process = FORKS.Process(target=serve, args=(folder, int(server.url.rpartition(":")[2])))
    process.start()
    assert process.pid is not None
    server.pid = process.pid
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                if server.get("/info/").ok:
                    break
            except requests.ConnectionError:
                assert process.is_alive() and time.monotonic() < deadline, server.log.read_text()[-4000:]
                time.sleep(0.05)
        yield server
    finally:
        # A server that the test has killed may still be on its way out.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(list(IMPORTED))


def studies(folder: Path) -> None:
    folder.mkdir(parents=True)
    for number, name in enumerate(IMAGES):
        save(folder, name, an_image(SHAPE, number))


def a_label(number: int) -> bytes:
    """A label file like no other: the number is in its voxels."""
    array = np.zeros(SHAPE, dtype=np.uint8)
    array.reshape(-1)[1 : 1 + number % 5000 + 1] = 1
    return bytes(nib.Nifti1Image(array, np.eye(4)).to_bytes())


@dataclass
class Sent:
    """What was submitted for an image, and which of it the server has promised to keep."""

    tried: list[bytes] = field(default_factory=list)
    promised: list[bytes] = field(default_factory=list)


def submit(server: Server, sent: dict[str, Sent], numbers: random.Random, stop: threading.Event) -> None:
    while not stop.is_set():
        image = numbers.choice(IMAGES)
        data = a_label(numbers.randrange(5000))
        sent[image].tried.append(data)
        info = {"label_info": [{"name": LABELS[0]}], "client_id": f"annotator {numbers.randrange(3)}"}
        try:
            response = server.http.put(
                f"{server.url}/datastore/label?image={image}&tag=final",
                files={"params": (None, json.dumps(info)), "label": ("label.nii", data)},  # type: ignore[arg-type]
                timeout=30,
            )
        except requests.RequestException:
            return
        assert response.status_code == 200, response.text
        sent[image].promised.append(data)


def click(url: str, expected: bytes, stop: threading.Event, problems: list[str]) -> None:
    while not stop.is_set():
        try:
            response = requests.post(
                f"{url}/infer/dualclickmed?image=one&output=image",
                files={"params": (None, json.dumps(CLICK))},
                timeout=30,
            )
        except requests.RequestException:
            return
        # Published weights are copies of the first: the answer must never change.
        if response.status_code != 200 or response.content != expected:
            problems.append(f"{response.status_code}: {response.content[:200]!r}")


def check(server: Server, sent: dict[str, Sent], published: list[str]) -> None:
    """What must hold on the disk once the next server has started."""
    record = Record(server.studies / FOLDER)
    for image, labels in sent.items():
        if labels.promised:
            response = server.get(f"/datastore/label?label={image}&tag=final")
            assert response.status_code == 200, response.text
            # The last one promised, or one after it that was not answered any more.
            assert response.content in labels.tried
            since = labels.tried[labels.tried.index(labels.promised[-1]) :]
            assert response.content in since
        kept = {record.path_of(submission).read_bytes() for submission in record.versions(image)}
        everything = {path.read_bytes() for path in (record.folder / "versions").glob("*.nii")}
        assert set(labels.promised) <= everything
        assert kept <= everything
    for line in (server.studies / FOLDER / EVENTS).read_text().splitlines() if record.submissions() else []:
        json.loads(line)
    told = server.get("/datastore/?output=all").json()["objects"]
    assert sorted(told) == sorted(IMAGES)
    for image in IMAGES:
        if sent[image].promised:
            assert told[image]["labels"]["final"]["info"]["label_info"] == [{"name": LABELS[0]}]
    json.loads((server.studies / "datastore_v2.json").read_text())
    for entry in list_weights(server.weights):
        if entry.path.stem in published or entry.path.stem in selection(server.weights).values():
            assert entry.problem is None, entry.problem
    for kind in ("global", "local"):
        verify(default_path(kind, directory=server.weights))
    half_written = [
        path
        for folder in (server.studies, server.weights)
        for path in folder.rglob(".*")
        if path.suffix in (".part", ".tmp") or path.name == ".pending.json"
    ]
    assert half_written == []
    # Of servers, only the folder of the living one.
    assert len(list(server.temporary.glob("dualclickmed-server-*"))) == 1


def hold(folder: Path, kills: int) -> None:
    """Kill that many servers, each at another moment, and look after each what is left."""
    studies(folder / "studies")
    make_weights(folder / "weights")
    (folder / "temporary").mkdir()
    noted = folder / "published.txt"
    noted.touch()
    numbers = random.Random(kills)
    sent = {image: Sent() for image in IMAGES}
    expected = b""
    for number in range(kills + 1):
        with forked(folder) as server:
            check(server, sent, noted.read_text().split())
            answer = server.infer("dualclickmed", "one", CLICK)
            assert answer.status_code == 200, answer.text
            assert answer.content == (expected or answer.content)
            expected = answer.content
            if number == kills:
                break
            stop = threading.Event()
            problems: list[str] = []
            working = [
                threading.Thread(target=submit, args=(server, sent, random.Random(number), stop)),
                threading.Thread(target=click, args=(server.url, expected, stop, problems)),
            ]
            publisher = FORKS.Process(target=publish_for_ever, args=(server.weights, noted))
            before = noted.stat().st_size
            for work in (*working, publisher):
                work.start()  # type: ignore[attr-defined]
            deadline = time.monotonic() + START_SECONDS
            while noted.stat().st_size == before and publisher.is_alive() and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(numbers.uniform(0.05, LONGEST_LIFE))
            os.killpg(server.pid, signal.SIGKILL)
            publisher.kill()
            publisher.join()
            stop.set()
            for thread in working:
                thread.join()
            assert problems == []
            # Copies of the same weights; a few are enough to look through.
            for old in sorted(server.weights.glob("*-learned-*"))[:-4]:
                if old.name.split(".")[0] not in selection(server.weights).values():
                    old.unlink()
    published = noted.read_text().split()
    submitted = sum(len(labels.promised) for labels in sent.values())
    logger.info(
        "%d kills: %d labels promised and kept, %d weights published", kills, submitted, len(published)
    )
    assert submitted > 0
    assert published


def test_a_killed_server_loses_nothing(tmp_path: Path) -> None:
    hold(tmp_path / "killed", 2)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_killed_servers_lose_nothing(tmp_path: Path) -> None:
    hold(tmp_path / "killed", 50)

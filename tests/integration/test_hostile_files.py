"""Files that were made to hurt, through every door of a running server."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import threading
import time
import urllib.parse
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
import requests
from dualclickmed.server.leftovers import PREFIX

from tests.support import hostile
from tests.support.live import Server, an_image, save, serving

IMAGE_GB = 0.5
SECRET = "swordfish, patient 4711\n" * 60
CLICK = {"liver": [[6, 5, 4]]}
PROMPTLY = 2.0
SLACK_SECONDS = 3.0
SETTLED_SECONDS = 30
"""What a busy machine may add to any answer."""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    def studies(folder: Path) -> None:
        folder.mkdir()
        save(folder, "ct", an_image(hostile.SHAPE))
        (folder.parent / "secret.txt").write_text(SECRET)
        os.mkfifo(folder.parent / "pipe")

    with serving(
        tmp_path_factory.mktemp("hostile"),
        studies,
        {"image_gb": str(IMAGE_GB), "cache_gb": "0.05"},
        up="/health",
    ) as started:
        yield started


def _upload_image(server: Server, name: str, data: bytes) -> requests.Response:
    return server.http.put(
        f"{server.url}/datastore/image?image=sent", files={"file": (name, data)}, timeout=60
    )


def _click_in_upload(server: Server, name: str, data: bytes) -> requests.Response:
    return server.infer("dualclickmed", None, CLICK, files={"file": (name, data)})


def _click_with_label(server: Server, name: str, data: bytes) -> requests.Response:
    return server.infer("dualclickmed", "ct", {**CLICK, "existing": "keep"}, files={"label": (name, data)})


def _submit(server: Server, name: str, data: bytes) -> requests.Response:
    return server.http.put(
        f"{server.url}/datastore/label?image=ct&tag=final", files={"label": (name, data)}, timeout=60
    )


def _session(server: Server, name: str, data: bytes) -> requests.Response:
    made = server.http.put(f"{server.url}/session/", files={"files": (name, data)}, timeout=60)
    if made.status_code != 200:
        return made
    return server.infer("dualclickmed", None, CLICK, session=made.json()["session_id"])


def _archive(server: Server, name: str, data: bytes) -> requests.Response:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    made = server.http.put(
        f"{server.url}/session/?uncompress=true", files={"files": ("a.zip", packed.getvalue())}, timeout=60
    )
    if made.status_code != 200:
        return made
    return server.infer("dualclickmed", None, CLICK, session=made.json()["session_id"])


def _studies(server: Server, name: str, data: bytes) -> requests.Response:
    path = server.studies / name
    path.write_bytes(data)
    try:
        stem = name.partition(".")[0]
        return server.infer("dualclickmed", stem, CLICK)
    finally:
        path.unlink()


Door = Callable[[Server, str, bytes], requests.Response]
DOORS: dict[str, Door] = {
    "image": _upload_image,
    "click": _click_in_upload,
    "label": _click_with_label,
    "submit": _submit,
    "session": _session,
    "archive": _archive,
    "studies": _studies,
}


def refused(server: Server, door: Door, name: str, ending: str, data: bytes) -> str:
    """What is wrong with the answer to a file; empty if it is refused with a sentence, promptly."""
    begun = time.monotonic()
    answer = door(server, f"sent{ending}", data)
    seconds = time.monotonic() - begun
    problems = []
    if answer.status_code not in (400, 413):
        problems.append(f"status {answer.status_code} {answer.text[:200]!r}")
    elif len(answer.json()["detail"]) < 20:
        problems.append(f"no sentence: {answer.text}")
    if "swordfish" in answer.text or "4711" in answer.text:
        problems.append("tells the secret")
    if seconds > PROMPTLY + SLACK_SECONDS:
        problems.append(f"{seconds:.1f} s")
    return f"{name}: {', '.join(problems)}" if problems else ""


@pytest.mark.parametrize("door", DOORS)
def test_headers_that_name_other_files_are_refused(target: Server, door: str) -> None:
    folder = target.studies.parent
    files = list(hostile.naming(folder / "secret.txt", folder / "pipe"))
    assert len(files) > 80
    wrong = [problem for file in files if (problem := refused(target, DOORS[door], *file))]
    assert wrong == []
    assert target.infer("dualclickmed", "ct", CLICK).status_code == 200


@pytest.mark.parametrize("door", DOORS)
def test_headers_that_claim_what_cannot_be_are_refused(target: Server, door: str) -> None:
    wrong = [problem for file in hostile.lying() if (problem := refused(target, DOORS[door], *file))]
    assert wrong == []
    assert target.infer("dualclickmed", "ct", CLICK).status_code == 200


@contextmanager
def most_memory(server: Server) -> Iterator[list[int]]:
    """What the server and its readers held at first, and most of all meanwhile, in bytes."""
    own = psutil.Process(server.pid)

    def used() -> int:
        total = 0
        for process in [own, *own.children(recursive=True)]:
            try:
                total += process.memory_info().rss - process.memory_info().shared
            except psutil.Error:
                continue
        return total

    found = [used(), 0]
    end = threading.Event()

    def watch() -> None:
        while not end.wait(0.01):
            found[1] = max(found[1], used())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield found
    finally:
        end.set()
        watching.join()


@pytest.mark.parametrize("door", ["image", "click", "label", "submit", "session", "studies"])
def test_what_unpacks_to_too_much_is_refused_within_the_bound(target: Server, door: str) -> None:
    assert target.infer("dualclickmed", "ct", CLICK).status_code == 200
    with most_memory(target) as memory:
        wrong = [problem for file in hostile.bombs() if (problem := refused(target, DOORS[door], *file))]
    assert wrong == []
    bound = 2 * IMAGE_GB * (1 << 30) + (256 << 20)
    assert memory[1] - memory[0] < bound, f"{(memory[1] - memory[0]) / (1 << 20):.0f} MiB more"
    assert target.infer("dualclickmed", "ct", CLICK).status_code == 200


def test_values_of_a_label_are_counted_before_masks_are_made(target: Server) -> None:
    array = np.zeros((64, 64, 64), np.uint16)
    array.reshape(-1)[:20_000] = np.arange(1, 20_001)
    save(target.studies, "cube", an_image((64, 64, 64)))
    data = nib.Nifti1Image(array, np.eye(4)).to_bytes()
    for door in (_click_with_label, _submit):
        begun = time.monotonic()
        answer = door(target, "many.nii", data)
        assert answer.status_code == 400, answer.text
        assert time.monotonic() - begun < PROMPTLY + SLACK_SECONDS


def test_nothing_is_left_of_refused_files(target: Server) -> None:
    before = _left(target)
    for _, ending, data in list(hostile.lying())[:10]:
        for door in (_upload_image, _click_in_upload, _click_with_label, _submit, _session):
            assert door(target, f"sent{ending}", data).status_code in (400, 413)
    # The folder of a reader goes with it, which may be a moment after the answer.
    deadline = time.monotonic() + SETTLED_SECONDS
    while (new := _left(target) - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not new


def test_nothing_is_left_of_a_cut_upload(target: Server) -> None:
    before = _left(target)
    for _ in range(3):
        with half_an_upload(target):
            time.sleep(0.2)
    deadline = time.monotonic() + SETTLED_SECONDS
    while (new := _left(target) - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not new
    assert target.infer("dualclickmed", "ct", CLICK).status_code == 200


def _left(server: Server) -> Counter[str]:
    """How many of each name lie in a server's temporary folder; readers are named by their process."""
    return Counter(re.sub(r"^reader-\d+$", "reader", path.name) for path in server.temporary.rglob("*"))


def test_the_health_is_told_and_a_signal_ends_the_server(tmp_path: Path) -> None:
    def studies(folder: Path) -> None:
        folder.mkdir()
        save(folder, "ct", an_image((160, 160, 160)))

    with serving(tmp_path, studies) as server:
        health = server.get("/health").json()
        assert health["reading"] == [] and health["stuck"] == 0
        before = psutil.Process(server.pid).children(recursive=True)
        assert before
        assert any(server.temporary.glob(f"{PREFIX}*"))
        with half_an_upload(server), ThreadPoolExecutor() as clicking:
            clicking.submit(server.infer, "dualclickmed", "ct", {"liver": [[80, 80, 80]]})
            time.sleep(0.5)
            begun = time.monotonic()
            os.kill(server.pid, signal.SIGTERM)
            while psutil.pid_exists(server.pid) and psutil.Process(server.pid).status() != "zombie":
                assert time.monotonic() - begun < 10
                time.sleep(0.05)
        _, living = psutil.wait_procs(before, 10)
        assert living == []
        deadline = time.monotonic() + 10
        # MONAI Label leaves the configuration of its log.
        while any(server.temporary.glob(f"{PREFIX}*")):
            assert time.monotonic() < deadline, list(server.temporary.rglob("*"))
            time.sleep(0.05)


@contextmanager
def half_an_upload(server: Server) -> Iterator[None]:
    """A request whose body somebody has begun to send."""
    address = urllib.parse.urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port or 0)) as sending:
        head = f"PUT /datastore/image?image=sent HTTP/1.1\r\nHost: {address.netloc}\r\n"
        head += "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000\r\n\r\n"
        body = '--b\r\nContent-Disposition: form-data; name="file"; filename="a.nii"\r\n\r\nhalf'
        sending.sendall((head + body).encode())
        yield

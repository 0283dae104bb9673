"""Two servers on one DICOMweb archive behind nginx, which hands on requests in turn."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
from dualclickmed.demo.archive import end_group
from dualclickmed.server.archive import LIST_SECONDS
from dualclickmed.weights.files import model_dir

from tests.support.annotators import Request, Watch, answer, differences, in_turn, plan, together
from tests.support.dicoms import LAYOUTS, Archive, WrittenSeries, orthanc, write_series
from tests.support.live import START_SECONDS, Server, an_image, free_port, make_weights, serving

logger = logging.getLogger(__name__)

CONFIGURATION = Path(__file__).parents[2] / "docs" / "examples" / "nginx.conf"
ANNOTATORS = 8
CLICKS = int(os.environ.get("DUALCLICKMED_CLICKS", "3"))
"""Of each annotator where the networks are small; the slow test has fifty on the shipped weights."""
SHAPE = (36, 32, 24)


@contextmanager
def nginx(folder: Path, replicas: tuple[Server, Server]) -> Iterator[str]:
    """Debian's nginx with the documented configuration; skips where it is not installed."""
    program = shutil.which("nginx", path=os.pathsep.join([os.environ["PATH"], "/usr/sbin"]))
    if program is None:
        pytest.skip("needs Debian's package nginx-light")
    folder.mkdir()
    url = f"http://127.0.0.1:{free_port()}"
    text = CONFIGURATION.read_text().replace("listen LISTEN", f"listen {url.partition('//')[2]}")
    for number, replica in enumerate(replicas, start=1):
        text = text.replace(f"REPLICA_{number}", replica.url.partition("//")[2])
    if os.geteuid() == 0:
        # The temporary folders belong to root.
        text = f"user root;\n{text}"
    (folder / "nginx.conf").write_text(text)
    command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + START_SECONDS
            while True:
                try:
                    if requests.get(f"{url}/info/", timeout=10).ok:
                        break
                except requests.ConnectionError:
                    told = (folder / "log.txt").read_text()[-2000:]
                    assert process.poll() is None and time.monotonic() < deadline, told
                    time.sleep(0.1)
            yield url
        finally:
            end_group(process)


@contextmanager
def replicas(
    folder: Path, weights: Path | None = None
) -> Iterator[tuple[Archive, list[WrittenSeries], list[Server], str]]:
    """An archive with two series, two servers with caches of their own, as on two machines, and a proxy."""
    with orthanc(folder / "archive") as archive:
        series = []
        for number, name in enumerate(("axial", "sagittal")):
            array = an_image(SHAPE, number)
            series.append(write_series(folder / name, array, (1.0, 1.2, 2.0), LAYOUTS[name]))
            archive.add(series[-1].folder)
        if weights is None:
            weights = folder / "weights"
            make_weights(weights)

        def one(number: int) -> object:
            environment = {
                "DUALCLICKMED_MODEL_DIR": str(weights),
                "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / f"cache{number}"),
                # An upload is known to both of them.
                "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
            }
            settings = {"queue": "4", "cache_gb": "0.2"}
            return serving(folder / f"server{number}", archive.dicomweb, settings, environment)

        with one(1) as first, one(2) as second, nginx(folder / "nginx", (first, second)) as url:  # type: ignore[attr-defined]
            yield archive, series, [first, second], url


def hold(folder: Path, clicks: int, weights: Path | None = None) -> None:
    with replicas(folder, weights) as (archive, series, servers, url):
        images = [one.uid for one in series]
        smallest = tuple(int(n) for n in np.min([one.shape for one in series], axis=0))
        plans = [
            plan(number, clicks, images, (smallest[0], smallest[1], smallest[2]))
            for number in range(ANNOTATORS)
        ]

        def info() -> None:
            requests.get(f"{url}/info/", timeout=30).raise_for_status()

        start = time.perf_counter()
        with Watch(info) as watched:
            found = together([url], plans)
        seconds = time.perf_counter() - start
        masks = sum(answer[:4] == b"NRRD" for answers in found for answer in answers)
        assert masks > 0.8 * clicks * ANNOTATORS
        shares = [server.log.read_text().count("Infer Request") for server in servers]
        # One server alone, asked in turn, gives the bytes that both gave.
        assert differences(plans, found, in_turn(servers[0].url, plans)) == []
        logger.info(
            "%d clicks behind nginx, %d masks in %.0f s; light requests p95 %.0f ms; requests by replica %s",
            *(clicks * ANNOTATORS, masks, seconds, 1e3 * watched.p95(), shares),
        )
        assert min(shares) >= 0.3 * clicks * ANNOTATORS
        _check_submit(archive, series[0], servers, url)
        _check_session(folder, servers, url)
        _check_loss(servers, url, plans[0][0].image)


def _check_submit(archive: Archive, series: WrittenSeries, servers: list[Server], url: str) -> None:
    """A label that one replica stores in the archive is known to the other."""
    array = np.zeros(series.shape, dtype=np.uint8)
    array[8:16, 8:16, 6:10] = 1
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ series.affine
    data = nib.Nifti1Image(array, ras).to_bytes()
    params = {"label_info": [{"name": "liver", "idx": 1}], "client_id": "first"}
    response = requests.put(
        f"{url}/datastore/label?image={series.uid}&tag=final",
        files={"params": (None, json.dumps(params)), "label": ("label.nii", data)},
        timeout=120,
    )
    assert response.status_code == 200, response.text
    assert len(archive.segmentations(series.study)) == 1
    # Both have looked before, and look again before long.
    deadline = time.monotonic() + LIST_SECONDS + 20
    while {server.get("/datastore/").json()["completed"] for server in servers} != {1}:
        assert time.monotonic() < deadline
        time.sleep(0.5)


def _check_session(folder: Path, servers: list[Server], url: str) -> None:
    """An uploaded image, kept in a folder that the replicas share, is segmented by either."""
    path = folder / "upload.nii.gz"
    nib.save(nib.Nifti1Image(an_image((24, 24, 20)), np.eye(4)), path)
    created = requests.put(f"{url}/session/", files={"files": ("scan.nii.gz", path.read_bytes())}, timeout=60)
    session = created.json()["session_id"]
    masks = {
        server.infer("dualclickmed", None, {"liver": [[12, 12, 10]]}, session=session).content
        for server in servers
    }
    assert len(masks) == 1
    assert masks.pop()[:4] == b"NRRD"


def _check_loss(servers: list[Server], url: str, image: str) -> None:
    """A replica dies while annotators click: their requests go to the other."""
    request = Request(image, {"liver": [[12, 12, 10]]})
    expected = answer(url, request)
    with ThreadPoolExecutor(4) as clicking:
        later = [clicking.submit(answer, url, request) for _ in range(12)]
        os.killpg(servers[0].pid, signal.SIGKILL)
        assert {one.result() for one in later} == {expected}


@pytest.mark.timeout(1800)
def test_eight_annotators_click_behind_a_proxy(tmp_path: Path) -> None:
    hold(tmp_path, CLICKS)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_eight_annotators_click_fifty_times_behind_a_proxy(tmp_path: Path) -> None:
    hold(tmp_path, 50, model_dir())

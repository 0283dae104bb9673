"""Eight annotators at once: the answers of a quiet server, byte for byte, and a server that stays light.

`make test-server` has each of them click 50 times on the shipped weights; the usual tests are shorter.
"""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from dualclickmed.weights.files import model_dir

from tests.support.annotators import Watch, differences, in_turn, plan, resident, together
from tests.support.live import Server, an_affine, an_image, save, serving

logger = logging.getLogger(__name__)

ANNOTATORS = 8
LIGHT_SECONDS = 0.3
"""What 95 of 100 light requests may take while others compute."""
CACHE_GB = 0.125
MAX_GROWTH = int((CACHE_GB + 0.5) * 2**30)
"""Bytes that a server may grow by under load: its caches, and what the requests in hand need."""
IMAGES = ("one", "two", "three", "four")
SHAPE = (56, 48, 40)


def studies(folder: Path) -> None:
    folder.mkdir()
    for number, name in enumerate(IMAGES):
        save(folder, name, an_image(SHAPE, number), an_affine((0, 1, 2), (-1, -1, 1)))


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a short waiting line and caches that do not hold everything."""
    settings = {"cache_gb": str(CACHE_GB), "queue": "6"}
    with serving(tmp_path_factory.mktemp("load"), studies, settings) as started:
        yield started


def hold(server: Server, clicks: int) -> None:
    """Let all annotators click at once, and check answers, memory and how quickly others are answered."""
    plans = [plan(number, clicks, IMAGES, SHAPE) for number in range(ANNOTATORS)]
    before = resident(server)
    peak = 0

    def look() -> None:
        nonlocal peak
        peak = max(peak, resident(server))

    light = requests.Session()
    light.trust_env = False

    def info() -> None:
        light.get(f"{server.url}/info/", timeout=30).raise_for_status()

    start = time.perf_counter()
    # First together, when nothing is cached yet; a line of six lets some be turned away.
    with Watch(info) as watched, Watch(look, 0.2):
        found = together([server.url], plans)
    seconds = time.perf_counter() - start
    expected = in_turn(server.url, plans)
    assert differences(plans, found, expected) == []
    answered = sum(answer[:4] == b"NRRD" for answers in found for answer in answers)
    logger.info(
        "%d clicks, %d masks in %.0f s; light requests: %d, p95 %.0f ms, slowest %.0f ms; memory +%.0f MiB",
        *(clicks * ANNOTATORS, answered, seconds, len(watched.seconds), 1e3 * watched.p95()),
        *(1e3 * max(watched.seconds), (peak - before) / 2**20),
    )
    assert answered > 0.8 * clicks * ANNOTATORS
    assert len(watched.seconds) > 10
    assert watched.p95() < LIGHT_SECONDS
    assert peak - before < MAX_GROWTH


def test_eight_annotators_get_the_answers_of_a_quiet_server(busy: Server) -> None:
    hold(busy, 4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_eight_annotators_click_fifty_times_on_the_shipped_weights(tmp_path: Path) -> None:
    environment = {"DUALCLICKMED_MODEL_DIR": str(model_dir())}
    settings = {"cache_gb": str(CACHE_GB), "queue": "6"}
    with serving(tmp_path / "load", studies, settings, environment) as started:
        hold(started, 50)


def _heavy(seed: int) -> dict[str, object]:
    """Clicks all over an image, too few for a scribble, which take the local expert six windows."""
    points = [[i, j, k] for i in range(3, 54, 10) for j in range(3, 46, 14) for k in range(3, 38, 16)]
    return {"liver": points[seed::2], "background": points[1 - seed :: 2][:5], "strategy": "local"}


def _hang_up(server: Server, params: dict[str, object], seconds: float) -> None:
    """Ask for a segmentation and leave."""
    host, _, port = server.url.rpartition("//")[2].partition(":")
    body = b'--x\r\nContent-Disposition: form-data; name="params"\r\n\r\n' + json.dumps(params).encode()
    body += b"\r\n--x--\r\n"
    head = f"POST /infer/dualclickmed?image=one HTTP/1.1\r\nHost: {host}:{port}\r\n"
    head += f"Content-Length: {len(body)}\r\n"
    with socket.create_connection((host, int(port)), timeout=30) as line:
        line.sendall(head.encode() + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" + body)
        time.sleep(seconds)


def test_whoever_leaves_keeps_nobody_waiting(busy: Server) -> None:
    params = {"liver": [[30, 30, 20]]}
    busy.infer("dualclickmed", "one", params)
    start = time.perf_counter()
    assert busy.infer("dualclickmed", "one", _heavy(0)).status_code == 200
    one_heavy = time.perf_counter() - start
    with ThreadPoolExecutor(6) as leaving:
        for number in range(6):
            leaving.submit(_hang_up, busy, _heavy(number % 2), 0.3)
    start = time.perf_counter()
    assert busy.infer("dualclickmed", "one", params).status_code == 200
    waited = time.perf_counter() - start
    logger.info("One heavy request: %.2f s; after six were given up: %.2f s", one_heavy, waited)
    # The two in hand end at their next stage, and the four behind them never begin.
    assert waited < 2 * one_heavy + 1


def test_a_full_line_says_when_to_come_back(busy: Server) -> None:
    with ThreadPoolExecutor(12) as many:
        answers = list(
            many.map(lambda n: busy.infer("dualclickmed", IMAGES[n % 4], _heavy(n % 2)), range(16))
        )
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 503}
    # Two in hand and six in line; some may have been done before the last came.
    assert statuses.count(200) >= 8
    turned_away = next(answer for answer in answers if answer.status_code == 503)
    assert int(turned_away.headers["Retry-After"]) >= 1
    assert "The server is busy: 6 requests wait already" in turned_away.json()["detail"]


def test_health_is_told_without_reading_anything(busy: Server) -> None:
    answer = busy.get("/health")
    assert answer.status_code == 200
    idle = {"ready": True, "waiting": 0, "reading": [], "stuck": 0, "reason": None}
    assert answer.json() == idle

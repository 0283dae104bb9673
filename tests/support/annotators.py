"""Several annotators at once: what each of them sends, and sending it in turn or all together."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import requests

from tests.support.live import LABELS, Server


@dataclass(frozen=True)
class Request:
    """One click of an annotator, with those before it."""

    image: str
    params: dict[str, Any]


def plan(
    annotator: int, clicks: int, images: Sequence[str], shape: tuple[int, int, int], per_organ: int = 4
) -> list[Request]:
    """What an annotator sends: `per_organ` clicks on an organ, one more each time, then the next organ."""
    rng = np.random.default_rng(annotator)
    found: list[Request] = []
    while len(found) < clicks:
        organ = len(found) // per_organ
        # Two annotators share each image, so that they want the same volume and embeddings at once.
        image = images[(annotator // 2 + organ) % len(images)]
        points = rng.integers(2, np.asarray(shape) - 2, (per_organ, 3)).tolist()
        if len({tuple(point) for point in points}) < per_organ:
            continue
        label = LABELS[organ % len(LABELS)]
        for n in range(1, per_organ + 1):
            params: dict[str, Any] = {label: points[: (n + 1) // 2], "background": points[2 : 2 + n // 2]}
            if organ % 3 == 1:
                lo, hi = np.minimum(points[0], points[1]), np.maximum(points[0], points[1])
                box = np.stack([lo, hi + 1], axis=1).ravel().tolist()
                params = {**params, "roi": box, "label": label}
            if organ % 2 == 0:
                params["strategy"] = "fused"
            found.append(Request(image, params))
    return found[:clicks]


def answer(url: str, request: Request, session: requests.Session | None = None) -> bytes:
    """The mask for one request; told to wait, an annotator waits."""
    http = session or requests.Session()
    http.trust_env = False
    server = Server.__new__(Server)
    server.url, server.http = url, http
    for _ in range(100):
        response = server.infer("dualclickmed", request.image, request.params)
        if response.status_code != 503:
            break
        time.sleep(float(response.headers["Retry-After"]))
    # Clicks that contradict each other are refused, whoever else is working.
    assert response.status_code in (200, 400), response.text
    return response.content


def in_turn(url: str, plans: Sequence[Sequence[Request]]) -> list[list[bytes]]:
    """The answers, each request sent after the one before was answered."""
    with requests.Session() as session:
        return [[answer(url, request, session) for request in requests_] for requests_ in plans]


def together(urls: Sequence[str], plans: Sequence[Sequence[Request]]) -> list[list[bytes]]:
    """The answers when all annotators work at the same time, each on one address."""

    def work(number: int) -> list[bytes]:
        with requests.Session() as session:
            url = urls[number % len(urls)]
            return [answer(url, request, session) for request in plans[number]]

    with ThreadPoolExecutor(len(plans)) as annotators:
        return list(annotators.map(work, range(len(plans))))


def differences(
    plans: Sequence[Sequence[Request]], found: Sequence[Sequence[bytes]], expected: Sequence[Sequence[bytes]]
) -> list[str]:
    """A line for each answer of `found` that is not the one of `expected`, to be read by people."""
    return [
        f"annotator {number}, {request.params}: {_told(one)}, expected {_told(other)}"
        for number, (requests_, ones, others) in enumerate(zip(plans, found, expected, strict=True))
        for request, one, other in zip(requests_, ones, others, strict=True)
        if one != other
    ]


def _told(content: bytes) -> str:
    return (
        f"{len(content)} bytes of a mask"
        if content[:4] == b"NRRD"
        else content[:200].decode(errors="replace")
    )


class Watch:
    """Calls something again and again, beside everything else, and keeps how long each call took.

    Args:
        call: what to do.
        pause: seconds between two calls.
    """

    def __init__(self, call: Callable[[], object], pause: float = 0.05) -> None:
        self.seconds: list[float] = []
        self.problem: Exception | None = None
        self._call, self._pause = call, pause
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self.problem is not None:
            raise self.problem

    def p95(self) -> float:
        """Seconds that 95 of 100 calls took at most."""
        return float(np.quantile(self.seconds, 0.95))

    def _run(self) -> None:
        while not self._stop.wait(self._pause):
            start = time.perf_counter()
            try:
                self._call()
            except Exception as error:
                self.problem = error
                return
            self.seconds.append(time.perf_counter() - start)


def resident(server: Server) -> int:
    """Bytes of memory that the server's processes hold; what several of them share counts once."""
    main = psutil.Process(server.pid)
    held = 0
    for process in [main, *main.children(recursive=True)]:
        # Readers of files come and go.
        with contextlib.suppress(psutil.Error):
            held += process.memory_full_info().pss
    return held

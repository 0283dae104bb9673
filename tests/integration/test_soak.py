"""Clicks over many images, hour after hour: memory stays where it is once the caches are full.

`make test-server` clicks 2,000 times on the shipped weights, the usual tests fewer times on small ones.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from dualclickmed.weights.files import model_dir

from tests.support.annotators import Request, answer, resident
from tests.support.live import LABELS, an_affine, an_image, save, serving

logger = logging.getLogger(__name__)

CACHE_GB = 0.04
MAX_DRIFT = 64 << 20
"""Bytes between the medians of the second and the last quarter of the clicks."""
VISIT = 8
"""Clicks on one image before another is opened."""
SHAPES = ((40, 36, 28), (32, 44, 36), (48, 30, 24), (25, 57, 21))


def studies(images: int) -> object:
    def make(folder: Path) -> None:
        folder.mkdir()
        for number in range(images):
            shape = SHAPES[number % len(SHAPES)]
            save(folder, f"image{number}", an_image(shape, number), an_affine((0, 1, 2), (-1, -1, 1)))

    return make


def hold(folder: Path, images: int, clicks: int, environment: Mapping[str, str]) -> None:
    rng = np.random.default_rng(0)
    image = 0
    memory: list[int] = []
    settings = {"cache_gb": str(CACHE_GB)}
    with serving(folder, studies(images), settings, environment) as server:  # type: ignore[arg-type]
        start = time.perf_counter()
        for number in range(clicks):
            if number % VISIT == 0:
                image = int(rng.integers(images))
            points = rng.integers(2, np.asarray(SHAPES[image % len(SHAPES)]) - 2, (3, 3)).tolist()
            params = {LABELS[number % len(LABELS)]: points[:2], "background": points[2:]}
            params["strategy"] = ("global", "paper", "fused")[number % 3]
            answer(server.url, Request(f"image{image}", params), server.http)
            memory.append(resident(server))
        seconds = time.perf_counter() - start
        # The last answer is removed once it was sent.
        deadline = time.monotonic() + 10
        while (left := list(server.temporary.rglob("*.n*"))) and time.monotonic() < deadline:
            time.sleep(0.05)
    quarters = [float(np.median(part)) for part in np.array_split(memory, 4)]
    shown = ", ".join(f"{quarter / 2**20:.0f}" for quarter in quarters)
    logger.info("%d clicks on %d images in %.0f s; MiB by quarter: %s", clicks, images, seconds, shown)
    assert quarters[3] - quarters[1] < MAX_DRIFT, shown
    assert left == []


def test_memory_is_flat_once_the_caches_are_full(tmp_path: Path) -> None:
    hold(tmp_path / "soak", 12, 80, {})


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_thousand_clicks_over_many_images(tmp_path: Path) -> None:
    hold(tmp_path / "soak", 60, 2000, {"DUALCLICKMED_MODEL_DIR": str(model_dir())})

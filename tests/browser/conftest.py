"""A browser, an archive with generated series and the server with the weights that ship."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
from dualclickmed.demo.sample import make_trunk

from tests.support.dicoms import LAYOUTS, Archive, WrittenSeries, orthanc, write_series
from tests.support.live import Server, free_port, running

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext

# `make test-browser` installs it; other runs need not have it.
if importlib.util.find_spec("playwright") is None:
    collect_ignore_glob = ["test_*.py"]

REPOSITORY = Path(__file__).parents[2]
PICTURES = REPOSITORY / "build" / "browser"
SPACING = (2.0, 2.0, 3.0)
# WebGL in software, and nothing that wants to be somewhere else.
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs Chromium (Debian's package chromium, or $CHROMIUM)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, headless=True, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(viewport={"width": 1600, "height": 950})
    yield context
    context.close()


@pytest.fixture(scope="package")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as running_archive:
        yield running_archive


@pytest.fixture(scope="package")
def trunk() -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """The sample study and its labels, (x, y, z) towards Left, Posterior and Superior."""
    volume, labels, _ = make_trunk()
    return volume, labels


@pytest.fixture(scope="package")
def generated(
    archive: Archive,
    trunk: tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, WrittenSeries]:
    """The sample study as a series in each layout, stored in the archive."""
    folder = tmp_path_factory.mktemp("series")
    series = {}
    for name, layout in LAYOUTS.items():
        series[name] = write_series(folder / name, trunk[0], SPACING, layout, description=name)
        archive.add(series[name].folder)
    return series


@pytest.fixture(scope="package")
def server(archive: Archive, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server as `main.py serve` starts it for an archive."""
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    started = Server(f"http://127.0.0.1:{port}", folder, REPOSITORY / "model", folder, folder / "log.txt")
    command = [sys.executable, str(REPOSITORY / "main.py"), "serve"]
    command += ["--studies", archive.dicomweb, "--port", str(port)]
    environment = os.environ | {
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(folder / "cache"),
        "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"),
    }
    with running(command, started, environment):
        yield started

"""The page on servers of other kinds: with log-in, for review, on an archive, one that goes and returns."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from tests.support.dicom_files import read_segments
from tests.support.dicoms import LAYOUTS, orthanc, write_series
from tests.support.live import Server, an_affine, an_image, free_port, make_weights, running, save
from tests.support.provider import providing

from .conftest import REPOSITORY
from .page import AXIAL, Annotator

pytestmark = pytest.mark.timeout(900)

SHAPE = (36, 33, 26)
NAMES = ("first", "second")
USERS = {
    "ann": ("hers", ("monailabel-user", "monailabel-annotator")),
    "eve": ("also hers", ("monailabel-user",)),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Studies and weights that the servers of this module share, one after the other."""
    if not (REPOSITORY / "apps/dualclickmed/lib/viewers/page/niivue.js").is_file():
        pytest.skip("needs NiiVue (scripts/page.sh)")
    folder = tmp_path_factory.mktemp("files")
    (folder / "studies").mkdir()
    for seed, name in enumerate(NAMES):
        save(folder / "studies", name, an_image(SHAPE, seed), an_affine((0, 2, 1), (1, -1, 1)))
    make_weights(folder / "weights")
    return folder


Serve = Callable[..., contextlib.AbstractContextManager[Server]]


@pytest.fixture
def serve(files: Path, tmp_path: Path) -> Serve:
    @contextlib.contextmanager
    def start(
        *arguments: str,
        studies: str = "",
        port: int = 0,
        environment: dict[str, str] | None = None,
    ) -> Iterator[Server]:
        port = port or free_port()
        log = tmp_path / f"log-{len(list(tmp_path.iterdir()))}.txt"
        started = Server(f"http://127.0.0.1:{port}", files / "studies", files / "weights", tmp_path, log)
        command = [sys.executable, str(REPOSITORY / "main.py"), "serve"]
        command += ["--studies", studies or str(started.studies), "--port", str(port)]
        command += ["--model-dir", str(started.weights), "--conf", "nninteractive=0", *arguments]
        variables = os.environ | {
            "MONAI_LABEL_SESSION_PATH": str(tmp_path / "sessions"),
            **(environment or {}),
        }
        with running(command, started, variables, "/health"):
            yield started

    return start


def middle(annotator: Annotator) -> tuple[int, int, int]:
    x, y, z = (n // 2 for n in annotator.about["shape"])
    return x, y, z


def asked_to_log_in(context: Any, server: Server) -> Annotator:
    annotator = Annotator(context, server.url)
    annotator.page.goto(server.url)
    annotator.page.wait_for_selector("#log-in[open]")
    return annotator


def log_in(annotator: Annotator, user: str, password: str) -> None:
    annotator.page.fill("#user", user)
    annotator.page.fill("#password", password)
    annotator.page.click("#log-in-form button")


def test_who_has_to_log_in_is_asked_and_loses_no_click(context: Any, serve: Serve) -> None:
    with providing(USERS) as provider, serve(environment=provider.settings) as server:
        annotator = asked_to_log_in(context, server)
        log_in(annotator, "ann", "not hers")
        annotator.wait("document.getElementById('log-in-problem').innerText.includes('password is wrong')")
        log_in(annotator, "ann", "hers")
        annotator.shown()
        # Thumbnails and volumes come with the token, though an <img> cannot send one.
        annotator.page.wait_for_selector("#list img")

        # The time of a token is over in the middle of the work.
        annotator.page.evaluate("sessionStorage.setItem('dualclickmed-token', 'too old')")
        annotator.click(AXIAL, middle(annotator))
        annotator.page.wait_for_selector("#log-in[open]")
        log_in(annotator, "ann", "hers")
        annotator.page.wait_for_selector("#log-in", state="hidden")
        annotator.answered()
        assert annotator.label_map()[middle(annotator)] == 1
        annotator.page.click("#submit")
        annotator.page.wait_for_selector(".toast.good")
        # Who logged in has submitted it, whatever was typed as a name.
        annotator.wait("document.querySelector('#list .mark.done')?.title === 'by ann'")
        # Trainings are an administrator's.
        annotator.press("a")
        annotator.page.wait_for_selector("#learning .expert")
        assert annotator.page.locator("#learning .expert button").count() == 0
        assert annotator.errors == [] and annotator.outside == []


def test_who_may_only_look_is_told_when_submitting(context: Any, serve: Serve) -> None:
    with providing(USERS) as provider, serve(environment=provider.settings) as server:
        annotator = asked_to_log_in(context, server)
        log_in(annotator, "eve", "also hers")
        annotator.shown()
        annotator.click(AXIAL, middle(annotator))
        annotator.page.wait_for_selector(".toast.bad")
        assert "annotator" in annotator.text(".toast.bad")
        assert len(annotator.given["liver"]["marks"]) == 1


def test_a_server_for_review_shows_and_offers_nothing_else(context: Any, serve: Serve) -> None:
    with serve() as server:
        annotator = Annotator(context, server.url)
        annotator.open()
        image = str(annotator.page.evaluate("window.dualclickmed.session.image"))
        annotator.click(AXIAL, middle(annotator))
        annotator.answered()
        annotator.page.click("#submit")
        annotator.page.wait_for_selector(".toast.good")
        expected = annotator.label_map()
        annotator.page.close()
    with serve("--conf", "review=true", "--conf", "model_dir=/nowhere") as server:
        annotator = Annotator(context, server.url)
        annotator.page.goto(f"{server.url}/page/#{image}")
        annotator.shown()
        np.testing.assert_array_equal(annotator.label_map(), expected)
        assert "Review" in annotator.text("#server")
        for hidden in ("#submit", "#undo", "#add", "[data-tool=click]", "#ask"):
            assert not annotator.page.is_visible(hidden), hidden
        annotator.click(AXIAL, middle(annotator))
        annotator.press("Space")
        annotator.press("Control+Enter")
        np.testing.assert_array_equal(annotator.label_map(), expected)
        # The version that was submitted can be looked at.
        annotator.press("a")
        title = annotator.text("#title")
        annotator.page.locator("#learning td button", has_text=title).first.click()
        annotator.page.wait_for_selector(".toast")
        np.testing.assert_array_equal(annotator.label_map(), expected)
        assert annotator.errors == []


def test_a_server_that_went_answers_what_it_was_asked_when_it_is_back(context: Any, serve: Serve) -> None:
    port = free_port()
    with serve(port=port) as server:
        annotator = Annotator(context, server.url)
        annotator.open()
        centre = middle(annotator)
        annotator.click(AXIAL, centre)
        annotator.answered()
        before = annotator.label_map()
    other = (1, 1, centre[2])
    annotator.add_label("my own")
    annotator.click(AXIAL, other)
    annotator.page.wait_for_selector(".toast.bad")
    assert "does not answer" in annotator.text(".toast.bad")
    annotator.wait("document.getElementById('server').innerText === 'Not reachable'")
    np.testing.assert_array_equal(annotator.label_map(), before)
    with serve(port=port):
        annotator.answered()
        annotator.wait("document.getElementById('server').innerText === 'Ready'")
        assert annotator.label_map()[other] == 2 and annotator.label_map()[centre] == 1
        assert annotator.errors == []


def test_a_series_of_an_archive_is_clicked_in_and_gets_a_segmentation(
    context: Any, serve: Serve, tmp_path: Path
) -> None:
    with orthanc(tmp_path / "orthanc") as archive:
        array = np.random.default_rng(0).normal(100, 30, SHAPE).round().astype(np.int16)
        made = write_series(tmp_path / "series", array, (0.8, 1.1, 2.5), LAYOUTS["coronal"])
        archive.add(made.folder)
        environment = {"MONAI_LABEL_DICOMWEB_CACHE_PATH": str(tmp_path / "cache")}
        with serve(studies=archive.dicomweb, environment=environment) as server:
            annotator = Annotator(context, server.url)
            annotator.open()
            assert annotator.page.evaluate("window.dualclickmed.session.image") == made.uid
            at = middle(annotator)
            annotator.click(AXIAL, at)
            annotator.answered()
            shown = annotator.label_map()
            assert shown[at] == 1
            affine = np.diag([-1, -1, 1, 1]) @ np.asarray(annotator.about["affine"])
            annotator.page.click("#submit")
            annotator.page.wait_for_selector(".toast.good, .toast.bad")
            assert annotator.page.locator(".toast.bad").count() == 0, annotator.text("#toasts")
            (stored,) = archive.segmentations(made.study)
            (name, (mask, placed)) = next(iter(read_segments(pydicom.dcmread(io.BytesIO(stored))).items()))
            assert name == "liver" and mask.sum() == (shown == 1).sum()
            clicked = affine[:3, :3] @ at + affine[:3, 3]
            index = np.rint(np.linalg.solve(placed[:3, :3], clicked - placed[:3, 3])).astype(int)
            assert mask[tuple(index)]
            annotator.wait("document.querySelector('#list .mark.done') !== null")
            assert annotator.errors == [] and annotator.outside == []

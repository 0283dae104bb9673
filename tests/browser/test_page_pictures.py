"""The pictures of the page in README and docs, on the sample study with the weights that ship.

They are written to `build/browser`; what is to be shown is copied to `docs/images`.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dualclickmed.demo.sample import make_trunk, write_sample
from dualclickmed.demo.trunk import ORGANS
from dualclickmed.evaluation.metrics import dice
from PIL import Image
from scipy import ndimage

from tests.support.live import Server, free_port, running, save

from .conftest import PICTURES, REPOSITORY
from .page import AXIAL, CORONAL, Annotator, Voxel

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SIZE = {"width": 1280, "height": 720}
GIF_SIZE = (960, 540)
MAX_GIF_BYTES = 3_000_000
LARGE = (512, 512, 200)
"""Voxels (x, y, z) of a large volume."""


@pytest.fixture(scope="module")
def truth() -> npt.NDArray[np.uint8]:
    """The sample's organs in the page's order."""
    return make_trunk()[1][::-1, ::-1]


@pytest.fixture(scope="module")
def sample_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("pictures")
    write_sample(folder / "studies")
    port = free_port()
    started = Server(
        f"http://127.0.0.1:{port}", folder / "studies", REPOSITORY / "model", folder, folder / "log.txt"
    )
    command = [sys.executable, str(REPOSITORY / "main.py"), "serve"]
    command += ["--studies", str(started.studies), "--port", str(port), "--conf", "nninteractive=0"]
    environment = os.environ | {"MONAI_LABEL_SESSION_PATH": str(folder / "sessions")}
    with running(command, started, environment, "/health"):
        yield started


class Film:
    """Screenshots that become a GIF."""

    def __init__(self, annotator: Annotator) -> None:
        self.annotator = annotator
        self.frames: list[Image.Image] = []
        self.seconds: list[float] = []

    def shoot(self, seconds: float) -> None:
        shown = Image.open(io.BytesIO(self.annotator.page.screenshot())).convert("RGB")
        self.frames.append(
            shown.resize(GIF_SIZE, Image.Resampling.LANCZOS).quantize(112, dither=Image.Dither.NONE)
        )
        self.seconds.append(seconds)

    def drag(self, plane: int, start: Voxel, end: Voxel) -> None:
        page = self.annotator.page
        (x0, y0), (x1, y1) = self.annotator.place(plane, start), self.annotator.place(plane, end)
        page.mouse.move(x0, y0)
        page.mouse.down()
        for part in (0.35, 0.7, 1.0):
            page.mouse.move(x0 + part * (x1 - x0), y0 + part * (y1 - y0))
            self.shoot(0.18)
        page.mouse.up()

    def save(self, name: str) -> int:
        path = PICTURES / name
        durations = [round(1000 * seconds) for seconds in self.seconds]
        self.frames[0].save(path, save_all=True, append_images=self.frames[1:], duration=durations, loop=0)
        return path.stat().st_size


def test_seconds_on_the_sample(context: Any, sample_server: Server, truth: npt.NDArray[np.uint8]) -> None:
    """For `make first-minute`. A busy machine may take any time, so that only the masks are checked."""
    annotator = Annotator(context, sample_server.url)
    annotator.page.set_viewport_size(SIZE)  # type: ignore[arg-type]
    seconds = {"from the address to the sample": annotator.open()}
    for organ in ("left kidney", "spleen"):
        annotator.add_label(organ)
        at = deepest(truth == ORGANS.index(organ) + 1)
        annotator.go(at)
        annotator.click(AXIAL, at)
        name = "from the first click to the mask" if organ == "left kidney" else "from a click to the mask"
        seconds[name] = annotator.answered() / 1000
        assert annotator.label_map()[at] > 0
    PICTURES.mkdir(parents=True, exist_ok=True)
    (PICTURES / "sample-seconds.json").write_text(json.dumps(seconds, indent=1))


def deepest(mask: npt.NDArray[np.bool_]) -> Voxel:
    depth = ndimage.distance_transform_edt(mask)
    x, y, z = np.unravel_index(depth.argmax(), depth.shape)
    return int(x), int(y), int(z)


def correct(film: Film, truth: npt.NDArray[np.bool_], value: int, clicks: int) -> None:
    """As an annotator would: in the middle of the largest error, inside or outside."""
    annotator = film.annotator
    for _ in range(clicks):
        labels = annotator.label_map()
        # What belongs to a locked label cannot be had.
        missed, wrong = truth & (labels == 0), (labels == value) & ~truth
        outside = bool(wrong.sum() > missed.sum())
        at = deepest(wrong if outside else missed)
        annotator.go(at)
        annotator.click(AXIAL, at, outside=outside)
        annotator.answered()
        film.shoot(1.0)


def test_pictures_of_the_page(context: Any, sample_server: Server, truth: npt.NDArray[np.uint8]) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    annotator = Annotator(context, sample_server.url)
    annotator.page.set_viewport_size(SIZE)  # type: ignore[arg-type]
    annotator.page.emulate_media(color_scheme="dark")
    annotator.open()
    film = Film(annotator)
    liver = truth == ORGANS.index("liver") + 1
    centre = deepest(liver)
    annotator.go(centre)
    film.shoot(1.2)
    edges = [(int(found.min()), int(found.max())) for found in np.nonzero(liver)]
    (x0, x1), (y0, y1), (z0, z1) = edges
    annotator.press("b")
    film.drag(AXIAL, (x1, y1, centre[2]), (x0, y0, centre[2]))
    film.drag(CORONAL, (x1, centre[1], z1), (x0, centre[1], z0))
    annotator.answered()
    film.shoot(1.4)
    annotator.press("c")
    correct(film, liver, 1, 3)
    assert dice(annotator.label_map() == 1, liver) > 0.85
    for value, organ in ((2, "left kidney"), (3, "spleen")):
        mask = truth == ORGANS.index(organ) + 1
        annotator.add_label(organ)
        at = deepest(mask & (annotator.label_map() == 0))
        annotator.go(at)
        annotator.click(AXIAL, at)
        annotator.answered()
        film.shoot(0.9)
        correct(film, mask, value, 2)
    # Nothing was refused.
    assert annotator.page.locator(".toast.bad").count() == 0, annotator.text("#toasts")
    annotator.picture(PICTURES / "page.png")
    annotator.press("o")
    annotator.press("t")
    annotator.press("m")
    annotator.picture(PICTURES / "page-light.png")
    annotator.press("o")
    annotator.press("t")
    annotator.page.wait_for_timeout(400)
    film.shoot(2.0)
    assert film.save("page.gif") <= MAX_GIF_BYTES
    assert annotator.errors == []


def test_a_volume_of_512_x_512_x_200_voxels(context: Any, tmp_path: Any) -> None:
    """What goes over the line and how long a further click takes; a busy machine may take any time."""
    studies = tmp_path / "studies"
    studies.mkdir()
    made, _, _ = make_trunk()
    # The sample enlarged to the size of a CT of the trunk.
    indices = [np.arange(n) * side // n for n, side in zip(LARGE, made.shape, strict=True)]
    save(studies, "large", made[np.ix_(*indices)], np.diag([-0.75, -0.75, 1.9, 1.0]))
    port = free_port()
    started = Server(
        f"http://127.0.0.1:{port}", studies, REPOSITORY / "model", tmp_path, tmp_path / "log.txt"
    )
    command = [sys.executable, str(REPOSITORY / "main.py"), "serve", "--studies", str(studies)]
    command += ["--port", str(port), "--conf", "nninteractive=0"]
    environment = os.environ | {"MONAI_LABEL_SESSION_PATH": str(tmp_path / "sessions")}
    with running(command, started, environment, "/health"):
        annotator = Annotator(context, started.url)
        sent: list[int] = []
        annotator.page.on(
            "response",
            lambda found: "/segment" in found.url and sent.append(int(found.headers["content-length"])),
        )
        seconds: dict[str, Any] = {"from the address to the image": annotator.open()}
        x, y, z = (n // 2 for n in annotator.about["shape"])
        for name, at in (("first click", (x - 90, y, z)), ("second click", (x - 110, y + 10, z))):
            annotator.click(AXIAL, at)
            seconds[f"from the {name} to the mask"] = annotator.answered() / 1000
            assert annotator.label_map()[at] == 1
        seconds["bytes of the answers"] = sent
        PICTURES.mkdir(parents=True, exist_ok=True)
        (PICTURES / "large-seconds.json").write_text(json.dumps(seconds, indent=1))
        # A hundredth of the label map.
        assert len(sent) == 2 and max(sent) < np.prod(LARGE) / 100

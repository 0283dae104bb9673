"""The page in a browser, driven as an annotator does: drags, clicks, keys, buttons."""

from __future__ import annotations

import base64
import contextlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from playwright.sync_api import BrowserContext, Page, Request

AXIAL, CORONAL, SAGITTAL = 0, 1, 2
PATIENCE = 240.0
"""Seconds to wait for anything: the browser draws in software, on cores that others use."""
_COUNT = """
window.handled = {keydown: 0, pointerup: 0}
addEventListener('keydown', ({key}) => { handled.keydown += !['Control', 'Shift'].includes(key) }, true)
addEventListener('pointerup', () => { handled.pointerup++ }, true)
"""
"""What is typed and clicked can reach the page after the driver's call has returned; this says what has."""
FRAME_SECONDS = 20.0
"""Seconds after an answer until it is drawn, at most."""

_PLACE = """([plane, voxel]) => {
    const {viewer} = window.dualclickmed
    const tile = viewer.tiles.find((one) => one.plane === plane)
    const [x, y] = viewer.projection(tile)(voxel.map((index) => index + 0.5))
    const corner = document.getElementById('over').getBoundingClientRect()
    return [corner.x + x, corner.y + y]
}"""
_MAP = """() => {
    const {map} = window.dualclickmed.session
    let text = ''
    for (let at = 0; at < map.data.length; at += 32768)
        text += String.fromCharCode(...map.data.subarray(at, at + 32768))
    return btoa(text)
}"""

Voxel = tuple[int, int, int]


class Annotator:
    """A tab with the page.

    Args:
        context: of the browser; everything but `url` is kept out of its reach.
        url: the server.
    """

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.url = url
        self.outside: list[str] = []
        context.route("**/*", lambda route: route.continue_() if self._own(route.request) else route.abort())
        self.page: Page = context.new_page()
        self.page.add_init_script(_COUNT)
        self.page.set_default_timeout(1000 * PATIENCE)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self) -> float:
        """Enter the server's address; returns the seconds until the first image is shown."""
        start = time.monotonic()
        self.page.goto(self.url)
        self.shown()
        return time.monotonic() - start

    def shown(self) -> None:
        """Wait until an image is shown."""
        self.page.wait_for_selector("body[data-ready=true]")
        self.wait("window.dualclickmed.viewer.opened && window.dualclickmed.viewer.tiles.length === 4")

    def wait(self, expression: str) -> None:
        """Wait until an expression is true. The page forbids what Playwright's own waiting needs."""
        deadline = time.monotonic() + PATIENCE
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, f"waited in vain for {expression}; {self.errors}"
            time.sleep(0.02)

    def answered(self) -> float:
        """Wait for the answer to what was just given; returns the milliseconds that the page says it took."""
        self.wait("!window.dualclickmed.session.history.stale.length && !window.dualclickmed.session.asking")
        self.page.wait_for_timeout(100)
        return float(self.page.evaluate("window.dualclickmed.session.answer?.milliseconds ?? 0"))

    def go(self, voxel: Voxel) -> None:
        """Move the crosshair, and so all planes, to a voxel of the page."""
        self.page.evaluate("voxel => { window.dualclickmed.viewer.crosshair = voxel }", list(voxel))
        self.page.wait_for_timeout(150)

    def press(self, key: str) -> None:
        """Press a key, as `Control+z`; the page has acted on it when this returns."""
        with self._handled("keydown"):
            self.page.keyboard.press(key)

    def click(self, plane: int, voxel: Voxel, outside: bool = False) -> None:
        x, y = self.place(plane, voxel)
        if outside:
            self.page.keyboard.down("Shift")
        with self._handled("pointerup"):
            self.page.mouse.click(x, y)
        if outside:
            self.page.keyboard.up("Shift")

    def drag(self, plane: int, start: Sequence[float], end: Sequence[float]) -> None:
        (x0, y0), (x1, y1) = self.place(plane, start), self.place(plane, end)
        self.page.mouse.move(x0, y0)
        self.page.mouse.down()
        for part in (0.3, 0.6, 1.0):
            self.page.mouse.move(x0 + part * (x1 - x0), y0 + part * (y1 - y0))
        with self._handled("pointerup"):
            self.page.mouse.up()

    def place(self, plane: int, voxel: Sequence[float]) -> tuple[float, float]:
        """The pixel of a voxel in a plane."""
        x, y = self.page.evaluate(_PLACE, [plane, list(voxel)])
        return float(x), float(y)

    def pixel(self, plane: int, voxel: Voxel) -> tuple[int, int, int]:
        """The colour that is seen at a voxel."""
        x, y = self.place(plane, voxel)
        clip = {"x": int(x) - 1, "y": int(y) - 1, "width": 3, "height": 3}
        shown = Image.open(io.BytesIO(self.page.screenshot(clip=clip))).convert("RGB")  # type: ignore[arg-type]
        red, green, blue = np.asarray(shown).reshape(-1, 3).mean(axis=0).astype(int).tolist()
        return red, green, blue

    def sees_red(self, plane: int, voxel: Voxel) -> None:
        """Wait until a voxel has the first label's colour; a frame may come later than the answer."""
        self._sees(plane, voxel, lambda red, green, blue: red > green + 20 and red > blue + 20)

    def sees_grey(self, plane: int, voxel: Voxel) -> None:
        """Wait until a voxel has no label's colour."""
        self._sees(plane, voxel, lambda *colour: max(colour) - min(colour) < 12)

    def _sees(self, plane: int, voxel: Voxel, wanted: Callable[..., bool]) -> None:
        deadline = time.monotonic() + FRAME_SECONDS
        while not wanted(*(colour := self.pixel(plane, voxel))):
            assert time.monotonic() < deadline, f"{voxel} has the colour {colour}"
            time.sleep(0.1)

    def add_label(self, name: str) -> None:
        self.press("n")
        self.page.keyboard.type(name)
        self.press("Enter")

    def label_map(self) -> npt.NDArray[np.uint8]:
        """The page's label map (x, y, z)."""
        voxels = np.frombuffer(base64.b64decode(self.page.evaluate(_MAP)), np.uint8)
        return voxels.reshape(self.about["shape"], order="F")

    @property
    def about(self) -> dict[str, Any]:
        return dict(self.page.evaluate("window.dualclickmed.session.about"))

    @property
    def given(self) -> dict[str, Any]:
        return dict(self.page.evaluate("window.dualclickmed.session.given"))

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def picture(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.wait_for_timeout(400)
        self.page.screenshot(path=path)

    @contextlib.contextmanager
    def _handled(self, event: str) -> Iterator[None]:
        before = self.page.evaluate("event => handled[event]", event)
        yield
        self.wait(f"handled.{event} > {before}")

    def _own(self, request: Request) -> bool:
        own = request.url.startswith((self.url, "blob:", "data:"))
        if not own:
            self.outside.append(request.url)
        return own

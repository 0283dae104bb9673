"""OHIF in a browser, driven as an annotator does: rows, clicks, buttons. Pixels come from its own volume."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from playwright.sync_api import BrowserContext, FloatRect, Page, Request, expect

VIEWS = ("mpr-axial", "mpr-sagittal", "mpr-coronal")
"""The viewports of OHIF's MONAI Label mode; the first is active at the start."""
WITHOUT_STUDIES = FloatRect(x=285, y=50, width=1315, height=900)
"""The views and the panel, without OHIF's list of studies."""
PATIENCE = 60_000.0
"""Milliseconds to wait for anything: the browser draws in software, on cores that others use."""

_LABELMAP = """() => {
    try { return window.services.segmentationService.getLabelmapVolume('1') || null } catch { return null }
}"""
_READY = f"""() => {{
    const grid = window.services?.viewportGridService.getState();
    if (!grid || grid.viewports.size < {len(VIEWS)}) return false;
    return [...grid.viewports.keys()].every(id => {{
        const view = window.services.cornerstoneViewportService.getCornerstoneViewport(id);
        return view?.getImageData?.();
    }});
}}"""
_SEGMENTATION = f"""() => {{
    const volume = ({_LABELMAP})();
    const voxels = new Uint8Array(volume.voxelManager.getCompleteScalarDataArray());
    let text = '';
    for (let at = 0; at < voxels.length; at += 32768)
        text += String.fromCharCode(...voxels.subarray(at, at + 32768));
    return {{
        voxels: btoa(text), dimensions: [...volume.dimensions], origin: [...volume.origin],
        spacing: [...volume.spacing], direction: [...volume.direction],
    }};
}}"""
_SEGMENTS = """() => {
    const segmentation = window.services.segmentationService.getSegmentations()[0];
    return Object.values(segmentation.segments || segmentation.config.segments)
        .map(segment => [segment.label, segment.segmentIndex]);
}"""
_SHOW = """world => {
    const {viewportGridService, cornerstoneViewportService} = window.services;
    for (const id of viewportGridService.getState().viewports.keys()) {
        const view = cornerstoneViewportService.getCornerstoneViewport(id);
        view.jumpToWorld(world);
        view.render();
    }
}"""
_LARGE = """([world, factor]) => {
    const {viewportGridService, cornerstoneViewportService} = window.services;
    const cameras = [];
    for (const id of viewportGridService.getState().viewports.keys()) {
        const view = cornerstoneViewportService.getCornerstoneViewport(id);
        const {position, focalPoint, parallelScale} = view.getCamera();
        cameras.push([id, {position: [...position], focalPoint: [...focalPoint], parallelScale}]);
        const moved = world.map((at, axis) => at - focalPoint[axis]);
        view.setCamera({
            position: position.map((at, axis) => at + moved[axis]),
            focalPoint: world, parallelScale: parallelScale / factor,
        });
        view.render();
    }
    return cameras;
}"""
_AS_BEFORE = """cameras => {
    for (const [id, camera] of cameras) {
        const view = window.services.cornerstoneViewportService.getCornerstoneViewport(id);
        view.setCamera(camera);
        view.render();
    }
}"""
_ON_SCREEN = """([id, world]) => {
    const view = window.services.cornerstoneViewportService.getCornerstoneViewport(id);
    const corner = view.canvas.getBoundingClientRect();
    const [x, y] = view.worldToCanvas(world);
    return [corner.x + x, corner.y + y];
}"""
_POINTS = "() => window.cornerstoneTools.annotation.state.getAnnotationManager().getNumberOfAllAnnotations()"


@dataclass(frozen=True)
class Shown:
    """OHIF's segmentation.

    Attributes:
        voxels: (i, j, k) in the viewer's own order, segment indices.
        affine: from (i, j, k) to LPS millimetres, as the viewer has it.
        segments: label to segment index.
    """

    voxels: npt.NDArray[np.uint8]
    affine: npt.NDArray[np.float64]
    segments: Mapping[str, int]

    def mask(self, label: str) -> npt.NDArray[np.bool_]:
        return self.voxels == self.segments[label]

    def labels(self) -> set[str]:
        """Those of which something is shown."""
        names = {index: label for label, index in self.segments.items()}
        return {names[int(index)] for index in np.unique(self.voxels) if index}


@dataclass(frozen=True)
class Run:
    """One press of *Run*: what was sent and what came back."""

    params: dict[str, Any]
    status: int
    body: bytes
    seconds: float


class Viewer:
    """A tab with one study.

    Args:
        context: of the browser; everything but `url` is kept out of its reach.
        url: the MONAI Label server, which serves OHIF as well.
        pictures: where `picture` writes.
    """

    def __init__(self, context: BrowserContext, url: str, pictures: Path) -> None:
        self.url = url
        self.pictures = pictures
        context.route("**/*", lambda route: route.continue_() if self._own(route.request) else route.abort())
        self.page: Page = context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self._active = VIEWS[0]

    def open(self, study: str) -> None:
        """Show a study and connect its panel to the server."""
        self.page.goto(
            f"{self.url}/ohif/monai-label?StudyInstanceUIDs={study}", wait_until="domcontentloaded"
        )
        self.page.wait_for_selector("#monailabelServerURL")
        self.page.wait_for_function(_READY)
        hint = self.page.get_by_text("Confirm and Hide")
        if hint.count():
            hint.click()
        self.page.fill("#monailabelServerURL", f"{self.url}/")
        self.page.click(".settingsTable .actionButton")
        self.page.wait_for_function(_LABELMAP)
        self.page.locator("label.tab-label", has_text="Point Prompts").click()
        self.page.locator('button[title="Run PointPrompts"]').wait_for()

    def rows(self) -> list[str]:
        """The labels that can be chosen."""
        return [row.strip() for row in self._rows().all_inner_texts()]

    def task(self, name: str) -> None:
        """Choose a task; OHIF forgets all clicks then."""
        has = self.page.locator(f'option[value="{name}"]')
        self.page.locator("select.selectBox").filter(has=has).locator("visible=true").select_option(name)

    def choose(self, label: str) -> None:
        """Choose the row of a label."""
        row = self._rows().filter(has=self.page.get_by_text(label, exact=True))
        row.click()
        expect(row).not_to_have_css("background-color", "rgba(0, 0, 0, 0)")

    def click(self, world: npt.NDArray[np.float64], view: str = VIEWS[0]) -> None:
        """Scroll all views to a place (LPS millimetres) and click on it in one of them."""
        self.show(world)
        at = [float(p) for p in world]
        # A mouse points at whole pixels, which are smaller than the tests' voxels.
        x, y = (round(p) for p in self.page.evaluate(_ON_SCREEN, [view, at]))
        before = self.page.evaluate(_POINTS)
        # OHIF's first click in another view does no more than make it the active one.
        for _ in range(1 if view == self._active else 2):
            self.page.mouse.move(x, y)
            self.page.mouse.down()
            self.page.mouse.up()
            self.page.wait_for_timeout(300)
        self._active = view
        self.page.wait_for_function(f"n => ({_POINTS})() > n", arg=before)

    def show(self, world: npt.NDArray[np.float64]) -> None:
        """Scroll all views to a place (LPS millimetres)."""
        self.page.evaluate(_SHOW, [float(p) for p in world])

    def clear(self) -> None:
        """Press *Clear All Points*."""
        self.page.get_by_text("Clear All Points").locator("visible=true").click()

    def run(self) -> Run:
        """Press *Run* and wait until the answer is shown."""
        start = time.monotonic()
        with self.page.expect_response(lambda found: "/infer/" in found.url) as caught:
            self.page.locator('button[title="Run PointPrompts"]').click()
        response = caught.value
        body = response.body()
        seconds = time.monotonic() - start
        outcome = "Successful" if response.ok else "Failed to Run Inference"
        self.page.get_by_text(outcome).last.wait_for()
        return Run(_params(response.request), response.status, body, seconds)

    def options(self, task: str, **values: str) -> None:
        """Set options of a task in *Options / Configurations*."""
        self.page.get_by_text("Options / Configurations").first.click()
        self.page.locator('select[name="selectSection"]').select_option("infer")
        self.page.locator('select[name="selectName"]').select_option(task)
        for name, value in values.items():
            self.page.locator(f'[id="infer{task}{name}"]').select_option(value)

    def confirm(self) -> None:
        """Close the options and keep them."""
        self.page.get_by_role("button", name="Confirm").click()
        self.page.locator(".optionsForm").wait_for(state="detached")

    def shown(self) -> Shown:
        """What the viewer's own segmentation holds now."""
        found = self.page.evaluate(_SEGMENTATION)
        voxels = np.frombuffer(base64.b64decode(found["voxels"]), np.uint8)
        affine = np.eye(4)
        # The rows of the viewer's direction are the directions of i, j and k.
        affine[:3, :3] = np.reshape(found["direction"], (3, 3)).T * found["spacing"]
        affine[:3, 3] = found["origin"]
        segments = dict(self.page.evaluate(_SEGMENTS))
        return Shown(voxels.reshape(found["dimensions"], order="F"), affine, segments)

    def picture(self, name: str, around: npt.NDArray[np.float64] | None = None, factor: float = 2.2) -> Path:
        """Keep a screenshot; the views are as before afterwards.

        Args:
            name: of the file.
            around: a place (LPS millimetres) that is shown in the middle and enlarged; None for all as it is.
            factor: how much it is enlarged.
        """
        self.pictures.mkdir(parents=True, exist_ok=True)
        path = self.pictures / f"{name}.jpg"
        cameras = []
        if around is not None:
            cameras = self.page.evaluate(_LARGE, [[float(p) for p in around], factor])
        self.page.wait_for_timeout(500)
        self.page.screenshot(path=path, type="jpeg", quality=80, clip=WITHOUT_STUDIES)
        self.page.evaluate(_AS_BEFORE, cameras)
        return path

    def _rows(self) -> Any:
        return self.page.locator("tr.clickable-row").locator("visible=true")

    def _own(self, request: Request) -> bool:
        return request.url.startswith((self.url, "blob:", "data:"))


def _params(request: Request) -> dict[str, Any]:
    """The parameters in a multipart request."""
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    message = BytesParser(policy=HTTP).parsebytes(head + (request.post_data_buffer or b""))
    for part in message.iter_parts():
        if part.get_param("name", header="content-disposition") == "params":
            return dict(json.loads(part.get_content()))
    raise AssertionError("the request holds no params")

"""The page in the browser: its files, and the routes that it alone uses. docs/page.md lists them.

For everything else it uses MONAI Label's own endpoints: the next image, trainings, their progress.
"""

from __future__ import annotations

import logging
import threading
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import APIRouter, Depends, File, Form, HTTPException, Request, UploadFile
from fastapi.responses import FileResponse, RedirectResponse, Response, StreamingResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.utils.async_tasks.utils import processes
from starlette.concurrency import run_in_threadpool

from ..byte_cache import ByteCache
from ..configs import wire
from ..configs.options import ServerOptions
from ..errors import UserError
from ..imaging.label_files import read_labels
from ..imaging.mask_files import write
from ..imaging.volume import Volume, load_volume
from ..infers.images import with_image
from ..infers.segmenter import Segmenter
from ..learning.record import FINAL, Record, Submission
from ..learning.runs import is_training
from ..server import checks
from ..weights.files import KINDS, default_path, read_card
from ..weights.lineage import roll_back
from . import page_answers, page_frames
from .page_requests import Asked, label_names

logger = logging.getLogger(__name__)

PREFIX = "/page"
FOLDER = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Kinds of files of `FOLDER` that are handed out."""
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self' data:; font-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
"""The page runs its own scripts, talks to its own server, and is shown in no other page's frame."""
THUMBNAIL_BYTES = 1 << 24
"""Thumbnails that are remembered, about 8 kB each."""

T = TypeVar("T")
USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))
ANNOTATOR = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR))
ADMIN = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_ADMIN))


class Learned(Protocol):
    """The part of `trainers.learning.Learning` that the page needs."""

    record: Record

    def final(self) -> dict[str, Submission]: ...

    def note_prediction(self, request: Mapping[str, Any]) -> None: ...


class Application(Protocol):
    """The part of the MONAI Label app that the page needs."""

    options: ServerOptions
    segmenter: Segmenter

    @property
    def learning(self) -> Learned: ...

    def datastore(self) -> Any: ...

    def info(self) -> dict[str, Any]: ...

    def on_save_label(self, image_id: str, label_id: str) -> dict[str, Any]: ...


class Page:
    """The page's routes.

    Args:
        app: the MONAI Label app.
        in_turn: runs work for a request in a thread, after those that came before it; ends it when the
            client leaves.
        told: makes the answer to an error.
        submitting: held while a label is stored.
    """

    def __init__(
        self,
        app: Application,
        in_turn: Callable[[Request, Callable[[], Any]], Awaitable[Any]],
        told: Callable[[Exception], Exception],
        submitting: threading.Lock,
    ) -> None:
        self.app = app
        self._in_turn = in_turn
        self._told = told
        self._submitting = submitting
        self._files = {path.name: path for path in FOLDER.iterdir() if path.suffix in TYPES}
        self._thumbnails = ByteCache(THUMBNAIL_BYTES)
        self._drawing = threading.Lock()

    def router(self) -> APIRouter:
        """All routes."""
        found = APIRouter(include_in_schema=False)
        found.add_api_route("/", self.begin, methods=["GET"])
        for path, endpoint, method in (
            ("/state", self.state, "GET"),
            ("/images", self.images, "GET"),
            ("/image", self.image, "GET"),
            ("/volume", self.volume, "GET"),
            ("/thumbnail", self.thumbnail, "GET"),
            ("/label", self.label, "GET"),
            ("/label", self.submit, "PUT"),
            ("/segment", self.segment, "POST"),
            ("/rollback", self.roll_back, "POST"),
        ):
            found.add_api_route(PREFIX + path, endpoint, methods=[method])
        found.add_api_route(PREFIX + "/{name}", self.file, methods=["GET"])
        found.add_api_route(PREFIX + "/", self.index, methods=["GET"])
        return found

    async def begin(self) -> Response:
        """Redirects the server's address to the page."""
        return RedirectResponse("page/")

    async def index(self) -> Response:
        """The page itself."""
        return self._sent("index.html")

    async def file(self, name: str) -> Response:
        """One of the page's files; what lies elsewhere has no name here."""
        return self._sent(name)

    async def state(self, user: User = USER) -> Any:
        """What the server offers, and how its learning stands."""
        return await self._thread(self._state, user)

    async def images(self, user: User = USER) -> Any:
        """Every image, with who labelled it."""
        return await self._thread(self._images)

    async def image(self, image: str, user: User = USER) -> Any:
        """What is known about an image."""
        return await self._thread(lambda: page_answers.described(self._volume(image)))

    async def volume(self, request: Request, image: str, user: User = USER) -> Response:
        """An image's voxels as NIfTI, in the page's order."""
        volume = await self._thread(lambda: self._volume(image))
        pieces = page_frames.nifti(volume)
        headers = {"Cache-Control": "no-store", "X-Image-Bytes": str(page_frames.nifti_size(volume))}
        # On the machine itself packing would take longer than sending.
        if request.client is None or request.client.host not in ("127.0.0.1", "::1"):
            pieces = _gzipped(pieces)
            headers["Content-Encoding"] = "gzip"
        return StreamingResponse(pieces, media_type="application/octet-stream", headers=headers)

    async def thumbnail(self, image: str, user: User = USER) -> Response:
        """A small picture of an image of the studies folder; archives are not asked for whole series."""
        found = await self._thread(lambda: self._thumbnail(image))
        return Response(found, media_type="image/png", headers={"Cache-Control": "private, max-age=600"})

    async def label(self, image: str, version: str | None = None, user: User = USER) -> Response:
        """The stored labels of an image, or one of the versions that were submitted."""
        found = await self._thread(lambda: self._labels(image, version))
        return Response(found, media_type=page_frames.MEDIA_TYPE)

    async def segment(
        self,
        request: Request,
        image: str,
        params: Annotated[str, Form()],
        held: Annotated[UploadFile | None, File()] = None,
        user: User = ANNOTATOR,
    ) -> Response:
        """The answer to all clicks of some labels."""
        body = None if held is None else await held.read()

        def work() -> bytes:
            asked = Asked.read(checks.json_object(params))
            path, modality = self._located(image)
            found = page_answers.segmented(self.app.segmenter, path, modality, asked, body)
            self.app.learning.note_prediction({wire.IMAGE: image, wire.MODEL: "page", **asked.points})
            return found

        try:
            found = await self._in_turn(request, work)
        except Exception as error:
            raise self._told(error) from error
        return Response(found, media_type=page_frames.MEDIA_TYPE)

    async def submit(
        self,
        image: str,
        params: Annotated[str, Form()],
        voxels: Annotated[UploadFile, File()],
        user: User = ANNOTATOR,
    ) -> Any:
        """Store a label map as the image's final label; the answer says what it was understood as."""
        body = await voxels.read()
        return await self._thread(lambda: self._submit(image, params, body, user.username))

    async def roll_back(self, kind: str, user: User = ADMIN) -> Any:
        """Serve an expert from the weights that its present ones were trained from."""

        def work() -> dict[str, str]:
            known = next((expert for expert in KINDS if expert == kind), None)
            if known is None:
                raise UserError(f"The experts are {' and '.join(KINDS)}, but {kind[:40]!r} came.")
            before, after = roll_back(known, self.app.options.model_dir)
            return {"before": before, "after": after}

        return await self._thread(work)

    async def _thread(self, work: Callable[..., T], *arguments: Any) -> T:
        try:
            return await run_in_threadpool(work, *arguments)
        except Exception as error:
            raise self._told(error) from error

    def _sent(self, name: str) -> Response:
        path = self._files.get(name)
        if path is None:
            raise HTTPException(404, f"The page has no {name[:60]!r}.")
        return FileResponse(path, media_type=TYPES[path.suffix], headers=HEADERS)

    def _state(self, user: User) -> dict[str, Any]:
        info = self.app.info()
        options = self.app.options
        return {
            "version": info.get("version"),
            "review": options.review,
            "login": settings.MONAI_LABEL_AUTH_ENABLE,
            "user": user.username if settings.MONAI_LABEL_AUTH_ENABLE else None,
            "admin": settings.MONAI_LABEL_AUTH_ROLE_ADMIN in user.roles,
            "problem": None if options.review else self.app.segmenter.experts.waiting_for(),
            "labels": list(options.labels.names),
            "strategies": options.strategies(),
            "windows": page_answers.windows(),
            "next": {name: about["description"] for name, about in info.get("strategies", {}).items()},
            "trainers": {name: about["description"] for name, about in info.get("trainers", {}).items()},
            "learning": info.get("learning", {}),
            "training": bool(processes("train")) or is_training(self.app.learning.record.folder),
            "served": {} if options.review else _served(options),
        }

    def _images(self) -> list[dict[str, Any]]:
        datastore = self.app.datastore()
        final = self.app.learning.final()
        found = []
        for image in sorted(datastore.list_images()):
            info = datastore.get_image_info(image)
            labels = datastore.get_labels_by_image_id(image)
            last = final.get(image)
            found.append(
                {
                    "id": image,
                    "title": str(info.get("SeriesDescription") or info.get("PatientID") or image)[:200],
                    "modality": str(info.get("Modality", ""))[:16],
                    "done": FINAL in labels or last is not None,
                    "labels": [] if last is None else list(last.labels),
                    "by": None if last is None else last.who,
                    "time": None if last is None else last.time,
                    "versions": [
                        {"version": s.version, "by": s.who, "time": s.time, "clicks": s.clicks}
                        for s in self.app.learning.record.versions(image)
                    ],
                }
            )
        return found

    def _located(self, image: str) -> tuple[Path, str | None]:
        request = self._request(image)
        path = request[wire.IMAGE]
        if path == image:
            path = self.app.datastore().get_image_uri(image)
        return Path(path), request.get(wire.MODALITY)

    def _request(self, image: str) -> dict[str, Any]:
        """The image as requests for an existing segmentation name it, which checks the id."""
        checks.plain_id(image)
        return with_image({wire.IMAGE: image, wire.EXISTING: "keep"}, self.app.datastore(), None)

    def _volume(self, image: str) -> Volume:
        path, modality = self._located(image)
        return self.app.segmenter.volume(path, modality)

    def _thumbnail(self, image: str) -> bytes:
        path, modality = self._located(image)
        if not path.is_file():
            raise HTTPException(404, "Series of an archive have no thumbnail.")
        key = f"{path}:{path.stat().st_mtime_ns}"
        # One at a time: a list of hundreds of images must not load as many volumes at once.
        with self._drawing:
            drawn = self._thumbnails.get(
                key, lambda: memoryview(page_answers.thumbnail(load_volume(path, modality)))
            )
        return bytes(drawn)

    def _labels(self, image: str, version: str | None) -> bytes:
        request = self._request(image)
        volume = self._volume(image)
        path, info = request[wire.EXISTING_PATH], request[wire.EXISTING_INFO]
        if version:
            known = {s.version: s for s in self.app.learning.record.versions(image)}
            if version not in known:
                raise HTTPException(404, f"There is no version {version[:40]!r} of this image's label.")
            found = known[version]
            path = self.app.learning.record.path_of(found)
            info = {"label_info": [{"name": name} for name in found.labels]}
        if path is None:
            return page_frames.packed({"labels": [], "notes": []}, {}, volume.shape)
        named = read_labels(path, volume, info, self.app.options.labels)
        return page_answers.labels_frame(named, volume.shape)

    def _submit(self, image: str, params: str, body: bytes, user: str) -> dict[str, Any]:
        sent = checks.json_object(params)
        names = label_names(sent.get("labels"))
        box = sent.get("box")
        if not isinstance(box, list):
            raise UserError("'box' must be [x0, x1, y0, y1, z0, z1].")
        volume = self._volume(image)
        mask, kept = page_answers.submitted(volume, names, box, body)
        info: dict[str, Any] = {
            "label_info": [{"name": name} for name in kept],
            "client_id": _client(sent, user),
        }
        if type(sent.get("clicks")) is int:
            info["clicks"] = sent["clicks"]
        path = write(mask, ".nii.gz")
        try:
            # Before it is stored: what cannot be read back must not become a final label.
            found = page_answers.understood(path, volume, info, self.app.options.labels)
            with self._submitting:
                stored = self.app.datastore().save_label(image, str(path), FINAL, info)
                told = self.app.on_save_label(image, stored) or {}
        finally:
            path.unlink(missing_ok=True)
        return {"labels": found, **told}


def _gzipped(pieces: Iterator[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(1, wbits=31)
    for piece in pieces:
        yield packer.compress(piece)
    yield packer.flush()


def _client(sent: Mapping[str, Any], user: str) -> str:
    """Who submits: the user who logged in, else what the annotator typed."""
    if settings.MONAI_LABEL_AUTH_ENABLE:
        return user
    name = sent.get("client")
    return name.strip()[:100] if isinstance(name, str) and name.strip() else "page"


def _served(options: ServerOptions) -> dict[str, Any]:
    """The weights that each expert is served from."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        try:
            path = default_path(kind, options.preset, options.model_dir)
            card = read_card(path)
        except UserError as error:
            found[kind] = {"name": None, "problem": str(error)}
            continue
        parent = card.get("parent")
        found[kind] = {
            "name": path.stem,
            "created": card.get("created"),
            "parent": parent.get("name") if isinstance(parent, dict) else None,
            "licence": card.get("licence"),
        }
    return found

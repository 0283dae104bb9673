"""MONAI Label's endpoints with checked arguments, run in threads, with errors answered by a sentence.

MONAI Label 0.8.5 does all its work inside ``async def``: while one request computes, uploads or waits for an
archive, all others wait. Here the same endpoints run in threads. What they are given is checked first; those
that are unsafe or fail with today's libraries are replaced.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import requests
from fastapi import APIRouter, BackgroundTasks, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.routing import APIRoute
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.endpoints import (
    activelearning,
    batch_infer,
    datastore,
    infer,
    info,
    login,
    logs,
    model,
    ohif,
    proxy,
    scoring,
    session,
    train,
    wsi_infer,
)
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.others.generic import file_checksum, remove_file
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.middleware import Middleware

from ..errors import UserError
from . import checks, uploads
from . import login as own_login
from .answers import answer_to, retry
from .guard import Guard
from .limits import WORKING, Limits
from .proxy import handed_on
from .sessions import image_in, new_folder, received
from .turns import Turns
from .uploads import Files

logger = logging.getLogger(__name__)

MODULES = (
    *(info, model, infer, wsi_infer, batch_infer, train, activelearning),
    *(scoring, datastore, logs, ohif, proxy, session),
)
KEPT = frozenset({"/openapi.json", "/docs", "/static", "/favicon.ico"})
"""Routes of MONAI Label that read nothing of a request. /reload, which builds the app anew, is not one."""
MAX_LOG_LINES = 10_000
STUCK_SECONDS = 30.0
"""After the end of its time, a request that still works is stuck."""
MAX_TASKS_WAITING = 8
"""Trainings and the like that may wait for one another."""

Endpoint = Callable[..., Coroutine[Any, Any, Any]]
T = TypeVar("T")


class Endpoints:
    """The endpoints of one server.

    Args:
        limits: what it takes on.
        ready: tells why segmentations cannot be asked for yet; None if they can.
        files: how files are read.
    """

    def __init__(self, limits: Limits, ready: Callable[[], str | None], files: Files) -> None:
        self.limits = limits
        self.ready = ready
        self.files = files
        self.turns = Turns(limits)
        # Storing a label and noting who submitted it must not be interleaved with another submission.
        self.submitting = threading.Lock()
        self._own: dict[str, Endpoint] = {
            "access_token": self.log_in,
            "api_run_inference": self.segment,
            "api_run_wsi_inference": self.no_slides,
            "api_run_wsi_v2_inference": self.no_slides,
            "api_create_session": self.create_session,
            "api_add_image": self.add_image,
            "api_save_label": self.save_label,
            "api_check_image": self.check_image,
            "api_download_dataset": self.download_dataset,
            "api_get_logs": self.read_logs,
            "gpu_info": self.gpu_info,
            "api_update_model": self.no_weights,
            "api_delete_model": self.no_weights,
            "proxy_wado": functools.partial(self.to_archive, "wado"),
            "proxy_qido": functools.partial(self.to_archive, "qido"),
            "proxy_stow": functools.partial(self.to_archive, "stow"),
            "proxy": functools.partial(self.to_archive, ""),
        }

    def router(self) -> APIRouter:
        """All endpoints, in MONAI Label's order."""
        found = APIRouter()
        found.add_api_route("/health", self.health, methods=["GET"], summary="Whether clicks are answered")
        modules = (login, *MODULES) if settings.MONAI_LABEL_AUTH_ENABLE else MODULES
        for module in modules:
            for route in module.router.routes:
                if isinstance(route, APIRoute):
                    _add(found, route, self._guarded(route))
        return found

    def _guarded(self, route: APIRoute) -> Endpoint:
        """The endpoint with its arguments checked and its errors turned into answers."""
        original: Endpoint = route.endpoint
        name = original.__name__
        own = self._own.get(name)

        @functools.wraps(original)
        async def call(**given: Any) -> Any:
            tasks = given.get("background_tasks")
            try:
                if own not in (self.no_slides, self.no_weights):
                    _check(name, given)
                if own is not None:
                    return await own(**given)
                return await run_in_threadpool(self._run, original, given)
            except Exception as error:
                # Uploads are removed by these tasks, which run after an answer alone.
                if isinstance(tasks, BackgroundTasks):
                    await tasks()
                raise answer_to(error) from error

        signature = inspect.signature(original)
        if own is not None and "request" in inspect.signature(own).parameters:
            parameters = [p for p in signature.parameters.values() if p.name != "request"]
            wanted = inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY, annotation=Request)
            signature = signature.replace(
                parameters=[p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in [wanted, *parameters]]
            )
        call.__signature__ = signature  # type: ignore[attr-defined]
        return call

    def _run(self, original: Endpoint, given: Mapping[str, Any]) -> Any:
        """In a thread: MONAI Label's endpoints are coroutines that never wait."""
        if original.__name__ in ("api_run_model", "api_run_method", "api_run"):
            _check_task(original.__module__, given)
        return _driven(original, given)

    async def health(self) -> Response:
        """200 when clicks are answered, else 503: for proxies and orchestrators. Reads nothing."""
        stuck = self.turns.line.overdue(self.limits.timeout + STUCK_SECONDS)
        problem = (
            f"All {WORKING} workers are stuck: their time was over {STUCK_SECONDS:.0f} seconds ago."
            if stuck >= WORKING
            else await run_in_threadpool(self.ready)
        )
        reader = self.files.reader
        body = {
            "ready": problem is None,
            "waiting": self.turns.line.queued,
            "stuck": stuck + (0 if reader is None else reader.stuck),
            "reading": [] if reader is None else [round(seconds, 1) for seconds in reader.running],
            "reason": problem,
        }
        return JSONResponse(body, 200 if problem is None else 503, None if problem is None else retry(5))

    async def segment(self, request: Request, **given: Any) -> Any:
        """Wait for a turn, then segment in a thread; give up once the client has left."""
        if not (given["file"] or given["image"] or given["session_id"]):
            raise UserError("A request needs an image: an id, an uploaded file or a session.")
        if given["output"] == infer.ResultType.dicom_seg and not isinstance(
            app_instance().datastore(), DICOMWebDatastore
        ):
            raise UserError("DICOM SEG can be written for images of a DICOMweb archive only.")
        if given["output"] == infer.ResultType.dicom_seg:
            given = _as_dicom_seg(given)
        work = functools.partial(uploads.segmentation, given, self.files.load)
        answer = await self.in_turn(request, work)
        if given["output"] == infer.ResultType.dicom_seg:
            given["background_tasks"].add_task(remove_file, answer.path)
        return answer

    async def in_turn(self, request: Request, work: Callable[[], T]) -> T:
        """Run `work` in a thread when its turn comes; it ends once the client has left."""
        return await self.turns.run(request, work)

    async def add_image(self, request: Request, **given: Any) -> Any:
        """Store an image that can be read."""
        work = functools.partial(uploads.new_image, app_instance(), given, self.files)
        return await self.turns.beside(request, work)

    async def save_label(self, request: Request, **given: Any) -> Any:
        """Store a label that can be read."""

        def submit() -> Any:
            with self.submitting:
                return uploads.new_label(app_instance(), given, self.files)

        return await self.turns.beside(request, submit)

    async def no_slides(self, **given: Any) -> Any:
        """Whole slides are opened by MONAI Label before any task sees the request."""
        raise HTTPException(400, "Whole-slide images are 2D; these tasks segment 3D images.")

    async def no_weights(self, **given: Any) -> Any:
        """MONAI Label would write whatever is uploaded over the weights."""
        raise HTTPException(
            403, "Weights are put in place on the server: python main.py weights import, use, rollback."
        )

    async def create_session(
        self, request: Request, files: list[UploadFile], uncompress: bool, expiry: int, **given: Any
    ) -> dict[str, Any]:
        """Keep uploaded images for a while; the names of the files become safe ones."""
        sessions = app_instance().sessions()
        if sessions is None:
            raise HTTPException(406, "Session Feature is Not Enabled")

        def store() -> dict[str, Any]:
            folder = new_folder()
            try:
                path = received(files, folder, uncompress, self.limits.upload_bytes)
                notes = self.files.image(image_in(path))
                session_id, found = sessions.add_session(str(path), min(max(expiry, 0), 1 << 31))
                return {"session_id": session_id, "session_info": found.to_json(), "notes": notes}
            finally:
                shutil.rmtree(folder, ignore_errors=True)

        return await self.turns.beside(request, store)

    async def check_image(self, image: str, check_sum: str | None = None, **given: Any) -> dict[str, Any]:
        """Whether an image is there, and is the one that the client has."""

        def check() -> dict[str, Any]:
            path = app_instance().datastore().get_image_uri(image)
            if not path or not Path(path).is_file():
                raise HTTPException(404, "Image NOT Found")
            if check_sum:
                algorithm, digest = checks.checksum(check_sum)
                if file_checksum(path, algorithm).partition(":")[2] != digest:
                    raise HTTPException(404, "Image NOT Found (checksum failed)")
            return {}

        return await run_in_threadpool(check)

    async def download_dataset(self, limit_cases: int | None = None, **given: Any) -> Response:
        """All labelled images as a ZIP, which is removed once it is sent."""

        def pack() -> str:
            try:
                return str(app_instance().datastore().get_dataset_archive(limit_cases))
            except AssertionError as error:
                raise HTTPException(404, "There is no labelled image yet.") from error

        path = await run_in_threadpool(pack)
        after = BackgroundTasks()
        after.add_task(os.unlink, path)
        return FileResponse(path, media_type="application/zip", filename="dataset.zip", background=after)

    async def read_logs(self, lines: int | None = 300, **given: Any) -> Any:
        """The log shows who worked on what; without log-in it is returned only if the server is set so."""
        if not settings.MONAI_LABEL_AUTH_ENABLE and not self.limits.logs:
            raise HTTPException(403, "The log is shown after log-in, or with --conf logs true.")
        if not 1 <= (lines or 0) <= MAX_LOG_LINES:
            raise HTTPException(400, f"'lines' must be 1 to {MAX_LOG_LINES}, but it is {lines}.")
        return await run_in_threadpool(_driven, logs.api_get_logs, {"lines": lines, **given})

    async def gpu_info(self, **given: Any) -> Any:
        """What nvidia-smi says."""
        if shutil.which("nvidia-smi") is None:
            raise HTTPException(404, "This server has no nvidia-smi.")
        return await run_in_threadpool(_driven, logs.gpu_info, given)

    async def log_in(self, **given: Any) -> Any:
        """A token for a password; MONAI Label answers a wrong one as a fault of its own."""
        try:
            return await run_in_threadpool(_driven, login.access_token, given)
        except requests.RequestException as error:
            raise own_login.refusal(error) from error

    async def to_archive(self, operation: str, request: Request, path: str, **given: Any) -> Response:
        """OHIF's requests to the archive."""
        return await handed_on(request, operation, path)


def install(app: FastAPI, limits: Limits, ready: Callable[[], str | None], files: Files) -> Endpoints:
    """Put the guarded endpoints in the place of MONAI Label's own. To be called once, before any request.

    Args:
        app: MONAI Label's.
        limits: what the server takes on.
        ready: as in `Endpoints`.
        files: likewise.
    """
    own_login.install()
    found = Endpoints(limits, ready, files)
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) in KEPT]
    app.include_router(found.router(), prefix=settings.MONAI_LABEL_API_STR)
    app.openapi_schema = None
    app.exception_handlers[RequestValidationError] = _not_valid
    origins = [str(origin) for origin in settings.MONAI_LABEL_CORS_ORIGINS or []]
    # Last: inside of the CORS middleware, so that pages can read why they were refused.
    app.user_middleware.append(Middleware(Guard, limits=limits, origins=origins))
    # MONAI Label completes the app while the server starts up, when the stack is already built.
    app.middleware_stack = app.build_middleware_stack()
    return found


def _add(router: APIRouter, route: APIRoute, endpoint: Endpoint) -> None:
    router.add_api_route(
        route.path,
        endpoint,
        methods=sorted(route.methods or ()),
        response_model=route.response_model,
        tags=route.tags,
        summary=route.summary,
        responses=route.responses,
        deprecated=route.deprecated,
        include_in_schema=route.include_in_schema,
        name=route.name,
    )


def _driven(endpoint: Endpoint, given: Mapping[str, Any]) -> Any:
    """The result of a coroutine that never waits."""
    running = endpoint(**given)
    try:
        running.send(None)
    except StopIteration as end:
        return end.value
    running.close()
    raise RuntimeError(f"{endpoint.__name__} waited for something, which it cannot do in a thread")


def _as_dicom_seg(given: Mapping[str, Any]) -> dict[str, Any]:
    """A segmentation's arguments such that its result, as a file, names the segments."""
    if given["file"] or given["session_id"]:
        raise UserError("DICOM SEG can be written for images of the archive only, not for uploaded ones.")
    sent = json.loads(given["params"] or "{}")
    params = {"label_info": [], **sent, "result_extension": ".seg.nrrd", "result_dtype": "uint8"}
    return {**given, "params": json.dumps(params)}


def _check(endpoint: str, given: dict[str, Any]) -> None:
    """Check the arguments of any endpoint by their names; uploads get names that are safe as endings."""
    file = given.get("file")
    if endpoint == "api_add_image" and not given.get("image") and isinstance(file, UploadFile):
        last = (file.filename or "").replace("\\", "/").rpartition("/")[2]
        given["image"] = last[: len(last) - len(checks.upload_ending(last))] if last else ""
        checks.plain_id(given["image"])
    for name, value in given.items():
        if isinstance(value, UploadFile):
            value.filename = f"upload{checks.upload_ending(value.filename)}"
        elif isinstance(value, str):
            _check_text(name, value)
            if name in ("params", "info") and not value.strip():
                # In some places MONAI Label takes an empty text for JSON.
                given[name] = "{}"
        elif name == "params" and value is not None:
            checks.plain_object(value, most=checks.MAX_TASK_BYTES)


def _check_text(name: str, value: str) -> None:
    if name in ("image", "id", "label") and value:
        checks.plain_id(value, "image" if name == "id" else name)
    elif name == "tag" and value:
        checks.plain_tag(value)
    elif name == "session_id":
        checks.session_id(value)
    elif name == "check_sum" and value:
        checks.checksum(value)
    elif name in ("params", "info"):
        # The tasks say themselves what is wrong with a click that is not a number.
        checks.json_object(value, name, finite=name == "info")
    elif name == "path" and value.strip("/") in (".", ".."):
        raise UserError("A path holds no dots alone.")


def _check_task(module: str, given: Mapping[str, Any]) -> None:
    """Check the arguments of a training or batch inference before a process is started for it."""
    app = app_instance()
    kind, known = {
        train.__name__: ("train", app._trainers),
        scoring.__name__: ("scoring", app._scoring_methods),
        batch_infer.__name__: ("batch_infer", app._infers),
    }[module]
    asked = given.get("model", given.get("method"))
    if asked is not None and asked not in known:
        raise HTTPException(
            404, f"There is no {str(asked)[:100]!r} to run; there are: {', '.join(known) or 'none'}."
        )
    params = given.get("params") or {}
    for name in ("model", "method", "images", "gpus"):
        if not isinstance(params.get(name, ""), str):
            raise UserError(f"{name!r} must be a text.")
    if params.get("model", asked) not in (asked, *known):
        raise UserError(f"There is no {params['model'][:100]!r} to run.")
    if any(not isinstance(params.get(name, {}), dict) for name in known):
        raise UserError("The parameters of a task must be an object.")
    from monailabel.utils.async_tasks.utils import tasks

    if sum(task["status"] == "SUBMITTED" for task in tasks(kind)) >= MAX_TASKS_WAITING:
        raise HTTPException(429, f"{MAX_TASKS_WAITING} tasks wait already.", retry(60))


async def _not_valid(request: Request, error: Exception) -> Response:
    """As FastAPI answers, but without repeating values that no JSON could hold."""
    assert isinstance(error, RequestValidationError)
    details = [
        {"loc": [str(part)[:100] for part in found["loc"]], "msg": found["msg"]} for found in error.errors()
    ]
    body = json.dumps({"detail": details[:20]})
    return Response(body, 422, media_type="application/json")

"""The protocol of ITK-SNAP's deep-learning extension, as ITK-SNAP 4.4 and newer builds (``/v2``) use it.

ITK-SNAP sends the image once, with its geometry, and each prompt as it is given; every answer is the whole
mask. Voxels are counted (x, y, z), and files hold x fastest.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.applications import Starlette
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..errors import UserError
from ..imaging.grids import SAME_GRID
from ..imaging.mask_files import gzipped
from ..imaging.placing import RAS_FROM_LPS, apart
from ..imaging.volume import from_grid
from ..server import checks
from ..server.turns import Turns
from . import interactions
from .asgi import length_of, not_found, numbers, voxel, with_errors_answered
from .holding import SessionImage, as_array
from .sessions import Budget, Sessions
from .unpacking import GZIP, Unpacker

VERSION = "0.1.6"
"""Of the protocol: the server that ITK-SNAP 4.4 was released with."""
MODEL = "dualclickmed"
_VOXEL = np.dtype("<f4")
_MAX_SIDE = 1 << 16

Handler = Callable[[Request, SessionImage], Awaitable[Response]]
Make = Callable[[npt.NDArray[np.bool_], tuple[int, int, int], bool], interactions.Interaction]


@dataclass(frozen=True, eq=False)
class Upload:
    """An array as it came, and where it lies.

    Attributes:
        data: gzip of the voxels.
        shape: (x, y, z).
        affine: (4, 4), from voxels (x, y, z) to RAS millimetres.
    """

    data: bytes
    shape: tuple[int, int, int]
    affine: npt.NDArray[np.float64]

    @property
    def nbytes(self) -> int:
        """Of the voxels once they are unpacked."""
        return math.prod(self.shape) * _VOXEL.itemsize


class ItkSnap:
    """The protocol's endpoints.

    Args:
        sessions: of this protocol.
        budget: of all protocols' sessions.
        unpacker: unpacks what clients send.
        turns: bounds what computes at once.
    """

    def __init__(
        self, sessions: Sessions[SessionImage], budget: Budget, unpacker: Unpacker, turns: Turns
    ) -> None:
        self._sessions, self._budget, self._unpacker, self._turns = sessions, budget, unpacker, turns

    def app(self) -> Starlette:
        """All endpoints, plain and under ``/v2``."""
        routes = [
            Route("/status", with_errors_answered(self._status)),
            Route("/v2/models", with_errors_answered(self._models)),
            Route("/start_session", with_errors_answered(self._start)),
            Route("/v2/start_session/{model}", with_errors_answered(self._start)),
        ]
        for prefix in ("", "/v2"):
            routes += [
                self._route(f"{prefix}/upload_raw", self._upload, "POST"),
                self._route(f"{prefix}/process_point_interaction", self._point, "GET"),
                self._route(f"{prefix}/process_scribble_interaction", self._scribble, "POST"),
                self._route(f"{prefix}/process_lasso_interaction", self._lasso, "POST"),
                self._route(f"{prefix}/reset_interactions", self._reset, "GET"),
                Route(f"{prefix}/end_session/{{session}}", with_errors_answered(self._end)),
            ]
        return Starlette(routes=routes, exception_handlers={HTTPException: not_found})

    async def _status(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "version": VERSION})

    async def _models(self, request: Request) -> Response:
        kinds = ["point", "scribble", "lasso"]
        model = {"id": MODEL, "dimensions": 3, "channels": [1], "interactions": kinds}
        return JSONResponse({"models": [model]})

    async def _start(self, request: Request) -> Response:
        model = request.path_params.get("model", MODEL)
        if model != MODEL:
            raise UserError(f"The only model here is {MODEL!r}, but {model[:100]!r} was asked for.")
        return JSONResponse({"session_id": self._sessions.claim()})

    async def _end(self, request: Request) -> Response:
        self._sessions.release(request.path_params["session"])
        return JSONResponse({"message": "The session has ended."})

    async def _upload(self, request: Request, held: SessionImage) -> Response:
        with self._budget.held(length_of(request)):
            upload = await _upload_of(request)
            voxels = math.prod(upload.shape)
            held.close()
            with held.replacing(voxels, upload.nbytes):

                def load() -> None:
                    held.open(from_grid(self._array(upload), upload.affine))

                await self._turns.run(request, load)
        return JSONResponse({"message": "The image was received."})

    async def _point(self, request: Request, held: SessionImage) -> Response:
        query = request.query_params
        texts = query.getlist("point") or [query.get(axis, "") for axis in "xyz"]
        try:
            coordinates = [float(text) for text in texts]
        except ValueError as error:
            raise UserError(f"A point must be three numbers, but {texts} came.") from error
        volume = held.conversation.volume
        raw = voxel(numbers(coordinates, 3, "A point"), volume.raw_shape)
        ((z, y, x),) = volume.to_canonical([raw]).tolist()
        return await self._added(request, held, interactions.point((z, y, x), _foreground(request)))

    async def _scribble(self, request: Request, held: SessionImage) -> Response:
        return await self._add_mask(request, held, interactions.scribble)

    async def _lasso(self, request: Request, held: SessionImage) -> Response:
        return await self._add_mask(request, held, interactions.lasso)

    async def _add_mask(self, request: Request, held: SessionImage, make: Make) -> Response:
        positive, volume = _foreground(request), held.conversation.volume
        with self._budget.held(length_of(request)):
            upload = await _upload_of(request)
            if upload.shape != volume.raw_shape:
                raise UserError(
                    f"A mask of the image's size {volume.raw_shape} is needed, but {upload.shape} came."
                )
            if not apart(upload.affine, volume.affine, upload.shape) < SAME_GRID:
                raise UserError(
                    "A mask must lie where the image lies, but its spacing, origin or direction differ."
                )

            def made() -> interactions.Interaction:
                with self._budget.held(upload.nbytes):
                    mask = volume.from_raw_array(self._array(upload) != 0)
                return make(mask, (0, 0, 0), positive)

            done = await self._turns.run(request, made)
        return await self._added(request, held, done)

    async def _reset(self, request: Request, held: SessionImage) -> Response:
        held.next_object()
        return JSONResponse({"message": "The interactions were reset."})

    async def _added(self, request: Request, held: SessionImage, done: interactions.Interaction) -> Response:
        def answer() -> str:
            held.change(lambda its: its.add(done))
            conversation = held.conversation
            mask = conversation.volume.to_raw_array(conversation.mask.astype(np.int8))
            data = b"".join(gzipped([mask.tobytes(order="F")]))
            return base64.b64encode(data).decode("ascii")

        result = await self._turns.run(request, answer)
        return JSONResponse({"status": "success", "result": result})

    def _route(self, path: str, handler: Handler, method: str) -> Route:
        async def call(request: Request) -> Response:
            with self._sessions.using(request.path_params["session"]) as held:
                async with held.lock:
                    return await handler(request, held)

        return Route(f"{path}/{{session}}", with_errors_answered(call), methods=[method])

    def _array(self, upload: Upload) -> npt.NDArray[Any]:
        """(x, y, z), x fastest."""
        data = self._unpacker.unpack(GZIP, upload.data, upload.nbytes)
        return as_array(data, _VOXEL, upload.shape[::-1]).T


async def _upload_of(request: Request) -> Upload:
    """The two parts of a form: the voxels, and where they lie.

    Raises:
        UserError: one of them is missing or cannot be used.
    """
    try:
        form = await request.form(max_files=2, max_fields=8, max_part_size=checks.MAX_JSON_BYTES)
    except HTTPException as error:
        raise UserError(f"The form cannot be read: {str(error.detail)[:200]}") from error
    try:
        meta = checks.json_object((await _part(form, "metadata")).decode("utf-8", "replace"), "metadata")
        return Upload(await _part(form, "file"), _shape(meta), _affine(meta))
    finally:
        await form.close()


async def _part(form: FormData, name: str) -> bytes:
    found = form.get(name)
    if isinstance(found, UploadFile):
        return await found.read()
    if found is None:
        raise UserError(f"A form with the parts 'file' and 'metadata' is needed, but {name!r} is missing.")
    return found.encode()


def _shape(meta: dict[str, Any]) -> tuple[int, int, int]:
    sides = numbers(meta.get("dimensions"), 3, "'dimensions'")
    if not all(side == int(side) and 1 <= side <= _MAX_SIDE for side in sides):
        raise UserError(f"'dimensions' must be whole numbers from 1 to {_MAX_SIDE}, but they are {sides}.")
    if meta.get("components_per_pixel", 1) != 1:
        raise UserError("An image must have one number in each voxel, but this one has several.")
    return int(sides[0]), int(sides[1]), int(sides[2])


def _affine(meta: dict[str, Any]) -> npt.NDArray[np.float64]:
    direction = numbers(meta.get("direction", [1, 0, 0, 0, 1, 0, 0, 0, 1]), 9, "'direction'")
    found = np.eye(4)
    found[:3, :3] = np.reshape(direction, (3, 3)) * numbers(meta.get("spacing", [1, 1, 1]), 3, "'spacing'")
    found[:3, 3] = numbers(meta.get("origin", [0, 0, 0]), 3, "'origin'")
    return RAS_FROM_LPS @ found


def _foreground(request: Request) -> bool:
    text = request.query_params.get("foreground", "true").lower()
    if text not in ("true", "false", "1", "0"):
        raise UserError(f"'foreground' must be true or false, but it is {text[:40]!r}.")
    return text in ("true", "1")

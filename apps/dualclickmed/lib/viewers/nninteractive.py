"""nnInteractive's protocol, version 2, for napari, 3D Slicer and MITK with its plugins.

A client claims a session, sends the image once, and then one interaction after the other; each answer is the
part of the mask that changed. What is sent and answered: docs/clients.md.

Arrays have the client's own axes. They are taken for (z, y, x), as SimpleITK and 3D Slicer give them; nothing
tells which way the patient lies.
"""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..errors import UserError
from ..imaging.geometry import Box, ordered_corners
from ..imaging.volume import from_array
from ..server import checks
from ..server.limits import Limits
from ..server.turns import Turns
from . import interactions
from .asgi import body_of, flag, length_of, not_found, numbers, problem, voxel, with_errors_answered
from .conversation import Change
from .holding import SessionImage, as_array
from .packed import PackedError, pack, read_header, whole_shape
from .sessions import Budget, Sessions
from .unpacking import BLOSC2, Unpacker

logger = logging.getLogger(__name__)

LEASE_HEADER, META_HEADER = "X-Lease-Token", "X-Meta"
OCTETS = "application/octet-stream"
CAPABILITIES: dict[str, Any] = {
    "supported_interactions": {
        "points": True, "bbox2d": True, "bbox3d": True, "scribble": True, "lasso": True,
    },
    # Of no meaning here: there is one channel for each kind of interaction, as clients expect.
    "channel_mapping": {
        "prev_seg": 0, "bbox2d": [1, 2], "bbox3d": [1, 2], "lasso": [1, 2], "points": [3, 4],
        "scribble": [5, 6],
    },
    "num_interaction_channels": 7,
    "supports_initial_label": True,
    "supports_zero_shot_label_refinement": True,
    "preferred_scribble_thickness": [1, 1, 1],
    "interaction_decay": 1.0,
    "patch_size": [128, 128, 128],
    "do_autozoom": True,
    "inference_session_version": 2,
    "supports_undo": True,
}  # fmt: skip
_MOST_HEADER = 1 << 16

Handler = Callable[[Request, SessionImage], Awaitable[Response]]


class NnInteractive:
    """The protocol's endpoints.

    Args:
        sessions: of this protocol.
        budget: of all protocols' sessions.
        unpacker: unpacks what clients send.
        turns: bounds what computes at once.
        limits: of requests.
        licence: of the weights, which clients show.
        key: what clients have to send; empty for nothing.
    """

    def __init__(
        self,
        sessions: Sessions[SessionImage],
        budget: Budget,
        unpacker: Unpacker,
        turns: Turns,
        limits: Limits,
        licence: str,
        key: str = "",
    ) -> None:
        self._sessions, self._budget, self._unpacker = sessions, budget, unpacker
        self._turns, self._limits = turns, limits
        self._capabilities = {**CAPABILITIES, "license": licence}
        self._key = key.encode()

    def app(self) -> Starlette:
        """All endpoints."""
        in_session: dict[str, Handler] = {
            "/set_image": self._set_image,
            "/set_target_buffer": self._set_target_buffer,
            "/set_do_autozoom": self._set_do_autozoom,
            "/reset_interactions": self._reset_interactions,
            "/add_point_interaction": self._add_point,
            "/add_bbox_interaction": self._add_box,
            "/add_scribble_interaction": self._add_scribble,
            "/add_lasso_interaction": self._add_lasso,
            "/add_initial_seg_interaction": self._add_initial,
            "/undo": self._undo,
            "/predict": self._predict,
        }
        routes = [
            self._route("/healthz", self._healthz, "GET"),
            self._route("/capabilities", self._read_capabilities, "GET"),
            self._route("/claim", self._claim, "POST"),
            self._route("/release", self._release, "POST"),
            self._route("/heartbeat", self._heartbeat, "POST"),
            self._route("/lease_status", self._lease_status, "GET"),
            *(self._route(path, self._within(handler), "POST") for path, handler in in_session.items()),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: not_found})

    # Sessions ---------------------------------------------------------------------------------------------

    async def _healthz(self, request: Request) -> Response:
        return JSONResponse({"ok": True})

    async def _read_capabilities(self, request: Request) -> Response:
        return JSONResponse(self._capabilities)

    async def _claim(self, request: Request) -> Response:
        return JSONResponse(
            {
                "lease_token": self._sessions.claim(),
                "idle_timeout_seconds": self._sessions.idle_seconds,
                "liveness_timeout_seconds": self._sessions.liveness_seconds,
                "max_sessions": self._sessions.most,
            }
        )

    async def _release(self, request: Request) -> Response:
        self._sessions.release(_token(request))
        return JSONResponse({"released": True})

    async def _heartbeat(self, request: Request) -> Response:
        return JSONResponse({"remaining_seconds": self._sessions.beat(_token(request))})

    async def _lease_status(self, request: Request) -> Response:
        remaining = self._sessions.remaining(_token(request))
        idle = self._sessions.idle_seconds
        return JSONResponse({"remaining_seconds": remaining, "idle_timeout_seconds": idle})

    # The image --------------------------------------------------------------------------------------------

    async def _set_image(self, request: Request, held: SessionImage) -> Response:
        meta = _meta(request)
        properties = meta.get("image_properties") or {}
        if not isinstance(properties, dict):
            raise UserError("'image_properties' must be an object.")
        spacing = numbers(properties.get("spacing") or [1.0, 1.0, 1.0], 3, "The spacing")
        async with self._body(request) as body:
            packed = read_header(body, self._budget.most)
            shape = whole_shape(packed.shape, 3)
            with held.replacing(int(np.prod(shape)), packed.nbytes):

                def load() -> None:
                    array = as_array(self._unpacked(body), packed.dtype, shape)
                    held.open(from_array(array, (spacing[0], spacing[1], spacing[2])))

                await self._turns.run(request, load)
        return JSONResponse({"original_image_shape": list(packed.shape)})

    async def _set_target_buffer(self, request: Request, held: SessionImage) -> Response:
        given = await self._json(request)
        shape = numbers(given.get("shape"), 3, "The shape of a target buffer")
        if tuple(shape) != held.conversation.volume.shape:
            raise UserError(
                f"A target buffer must have the image's shape {held.conversation.volume.shape}, "
                f"but it has {tuple(int(n) for n in shape)}."
            )
        held.conversation.show_nothing()
        return JSONResponse({})

    async def _set_do_autozoom(self, request: Request, held: SessionImage) -> Response:
        # The region always follows the prompts.
        flag(await self._json(request), "do_autozoom")
        return JSONResponse({})

    async def _reset_interactions(self, request: Request, held: SessionImage) -> Response:
        await self._json(request)
        held.next_object()
        return JSONResponse({})

    # Interactions -----------------------------------------------------------------------------------------

    async def _add_point(self, request: Request, held: SessionImage) -> Response:
        given = await self._json(request)
        shape = held.conversation.volume.shape
        index = voxel(numbers(given.get("coordinates"), 3, "A point"), shape)
        return await self._added(request, held, interactions.point(index, _included(given)), given)

    async def _add_box(self, request: Request, held: SessionImage) -> Response:
        given = await self._json(request)
        drawn = _box(given.get("bbox_coords"))
        done = interactions.box(drawn, _included(given), held.conversation.volume.shape)
        return await self._added(request, held, done, given)

    async def _add_scribble(self, request: Request, held: SessionImage) -> Response:
        return await self._add_mask(request, held, interactions.scribble)

    async def _add_lasso(self, request: Request, held: SessionImage) -> Response:
        return await self._add_mask(request, held, interactions.lasso)

    async def _add_mask(
        self, request: Request, held: SessionImage, make: Callable[..., interactions.Interaction]
    ) -> Response:
        given = _meta(request)
        positive, shape = _included(given), held.conversation.volume.shape
        corner, size = _place(given.get("interaction_bbox"), shape)
        async with self._body(request) as body:
            done = await self._turns.run(request, lambda: make(self._mask(body, size), corner, positive))
        return await self._added(request, held, done, given)

    async def _add_initial(self, request: Request, held: SessionImage) -> Response:
        given = _meta(request)
        shape = held.conversation.volume.shape
        predict = flag(given, "run_prediction", False)
        async with self._body(request) as body:
            await self._turns.run(
                request, lambda: held.change(lambda its: its.begin_with(self._mask(body, shape)))
            )
        # Without an interaction there is nothing to correct: the mask is its own answer.
        return _prediction(None, ran=predict)

    async def _undo(self, request: Request, held: SessionImage) -> Response:
        await self._json(request)
        undone = await self._turns.run(request, lambda: held.change(lambda its: its.undo()))
        return _prediction(undone, ran=undone is not None)

    async def _predict(self, request: Request, held: SessionImage) -> Response:
        await self._json(request)
        change = await self._turns.run(request, lambda: held.change(lambda its: its.predict()))
        return _prediction(change, ran=True)

    async def _added(
        self, request: Request, held: SessionImage, done: interactions.Interaction, given: dict[str, Any]
    ) -> Response:
        predict = flag(given, "run_prediction", True)
        change = await self._turns.run(request, lambda: held.change(lambda its: its.add(done, predict)))
        return _prediction(change, ran=predict)

    # Requests ---------------------------------------------------------------------------------------------

    def _route(self, path: str, endpoint: Callable[[Request], Awaitable[Response]], method: str) -> Route:
        answer = with_errors_answered(endpoint)

        async def call(request: Request) -> Response:
            if not self._may(request):
                return problem(401, "This server needs its key: Authorization: Bearer KEY.")
            return await answer(request)

        return Route(path, call, methods=[method])

    def _may(self, request: Request) -> bool:
        given = request.headers.get("authorization", "").encode("latin-1")
        return not self._key or hmac.compare_digest(given, b"Bearer " + self._key)

    def _within(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def call(request: Request) -> Response:
            with self._sessions.using(_token(request)) as held:
                async with held.lock:
                    return await handler(request, held)

        return call

    @asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        """A request's array as it came; it counts in the budget while it is needed."""
        with self._budget.held(length_of(request)):
            yield await body_of(request, self._limits)

    async def _json(self, request: Request) -> dict[str, Any]:
        body = await body_of(request, self._limits)
        return checks.json_object(body.decode("utf-8", "replace"), "body")

    def _unpacked(self, body: bytes) -> bytearray:
        packed = read_header(body, self._budget.most)
        chunks = [(chunk.start, chunk.stop, chunk.nbytes) for chunk in packed.chunks]
        return self._unpacker.unpack(BLOSC2, body, packed.nbytes, chunks)

    def _mask(self, body: bytes, size: tuple[int, ...]) -> npt.NDArray[np.bool_]:
        packed = read_header(body, self._budget.most)
        shape = whole_shape(packed.shape, 3)
        if shape != size:
            raise PackedError(f"A mask of shape {size} is needed here, but one of {shape} came.")
        with self._budget.held(packed.nbytes):
            return as_array(self._unpacked(body), packed.dtype, shape) != 0


def _token(request: Request) -> str:
    return request.headers.get(LEASE_HEADER, "")


def _meta(request: Request) -> dict[str, Any]:
    text = request.headers.get(META_HEADER, "")
    if len(text) > _MOST_HEADER:
        raise UserError(f"{META_HEADER} may have {_MOST_HEADER} characters, but it has {len(text)}.")
    return checks.json_object(text, META_HEADER)


def _included(given: dict[str, Any]) -> bool:
    return flag(given, "include_interaction")


def _box(value: Any) -> Box:
    """A half-open box of three pairs, which may be reversed."""
    if not isinstance(value, list) or len(value) != 3:
        raise UserError(f"A box must be three pairs of numbers, but {str(value)[:100]} came.")
    edges = [edge for pair in value for edge in numbers(pair, 2, "Each side of a box")]
    (z0, y0, x0), (z1, y1, x1) = ordered_corners(edges)
    if z0 == z1 or y0 == y1 or x0 == x1:
        raise UserError(f"Each side of a box must hold a voxel, but {value} came.")
    return Box((z0, y0, x0), (z1, y1, x1))


def _place(value: Any, shape: tuple[int, ...]) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """Where a part of the image begins, and its size; all of the image without a value.

    Raises:
        UserError: it does not lie in the image.
    """
    if value is None:
        return (0, 0, 0), shape
    box = _box(value)
    whole = all(edge == int(edge) for edge in (*box.lo, *box.hi))
    if not whole or min(box.lo) < 0 or any(b > n for b, n in zip(box.hi, shape, strict=True)):
        raise UserError(f"'interaction_bbox' must be whole voxels of the image of {shape}, but is {value}.")
    z, y, x = (int(edge) for edge in box.lo)
    return (z, y, x), tuple(int(side) for side in box.sides)


def _prediction(change: Change | None, ran: bool) -> Response:
    """An answer as clients apply it: the part of the mask that changed, and where it belongs."""
    if change is None or change.region is None or not ran:
        meta: dict[str, Any] = {"ran_prediction": ran, "bbox": None, "dtype": "uint8", "shape": []}
        return Response(b"", media_type=OCTETS, headers={META_HEADER: json.dumps(meta)})
    voxels = change.voxels.astype(np.uint8)
    meta = {
        "ran_prediction": True,
        "bbox": [[side.start, side.stop] for side in change.region],
        "dtype": "uint8",
        "shape": list(voxels.shape),
    }
    return Response(pack(voxels), media_type=OCTETS, headers={META_HEADER: json.dumps(meta)})

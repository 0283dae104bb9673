"""What both protocols share: errors as sentences, and checks of requests."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from ..cancellation import Stopped
from ..errors import UserError
from ..server.limits import Limits
from ..server.line import BusyError, LeftError
from .sessions import FullError, GoneError

logger = logging.getLogger(__name__)

CLIENT_LEFT = 499
Endpoint = Callable[[Request], Awaitable[Response]]


def with_errors_answered(endpoint: Endpoint) -> Endpoint:
    """The endpoint with its errors turned into statuses and sentences."""

    @functools.wraps(endpoint)
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except UserError as error:
            logger.info("Refused: %s", error)
            return problem(400, str(error))
        except GoneError as error:
            return problem(410, str(error))
        except (BusyError, FullError) as error:
            return problem(503, str(error), error.retry_after)
        except Stopped as error:
            return problem(503, str(error), 1)
        except MemoryError:
            logger.exception("Out of memory")
            return problem(503, "The server's memory does not suffice for this image now.", 60)
        except (LeftError, ClientDisconnect):
            return problem(CLIENT_LEFT, "The client left.")
        except asyncio.TimeoutError:
            return problem(408, "The request did not arrive in time.")

    return answer


def problem(status: int, detail: str, retry_after: int | None = None) -> Response:
    """An answer that says what is wrong."""
    headers = None if retry_after is None else {"Retry-After": str(retry_after)}
    return JSONResponse({"detail": detail}, status, headers)


async def not_found(request: Request, error: Exception) -> Response:
    """For paths and methods that a protocol does not have."""
    status = error.status_code if isinstance(error, HTTPException) else 404
    return problem(status, f"There is no {request.method} {request.url.path[:100]} here.")


async def body_of(request: Request, limits: Limits) -> bytes:
    """The whole of a request's body, which the guard bounds."""
    return await asyncio.wait_for(request.body(), limits.timeout)


def length_of(request: Request) -> int:
    """How long a request's body is.

    Raises:
        UserError: it does not say.
    """
    text = request.headers.get("content-length", "")
    if not text.isdecimal():
        raise UserError("A request with an array must say its Content-Length, but this one does not.")
    return int(text)


def flag(given: Any, name: str, default: bool | None = None) -> bool:
    """A truth value of a request.

    Raises:
        UserError: it is something else, or missing without a default.
    """
    value = given.get(name, default)
    if not isinstance(value, bool):
        raise UserError(f"{name!r} must be true or false, but it is {str(value)[:40]!r}.")
    return value


def numbers(value: Any, count: int, what: str) -> list[float]:
    """A list of `count` finite numbers.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(value, (list, tuple)) or len(value) != count:
        raise UserError(f"{what} must be {count} numbers, but {str(value)[:100]} came.")
    for each in value:
        if isinstance(each, bool) or not isinstance(each, (int, float)) or not _is_moderate(each):
            raise UserError(f"{what} must be {count} finite numbers, but {str(value)[:100]} came.")
    return [float(each) for each in value]


def voxel(values: Sequence[float], shape: Sequence[int], what: str = "A point") -> tuple[int, int, int]:
    """The voxel that coordinates lie in; voxel 0 reaches from -0.5 to 0.5.

    Raises:
        UserError: it lies outside of the image.
    """
    found = tuple(math.floor(value + 0.5) for value in values)
    if not all(0 <= at < n for at, n in zip(found, shape, strict=True)):
        raise UserError(
            f"{what} must lie inside the image of shape {tuple(shape)}, but {list(values)} lies outside."
        )
    return found[0], found[1], found[2]


def _is_moderate(value: float) -> bool:
    """Whether a number is finite and fits into 64 bits."""
    try:
        return abs(float(value)) < 2**53
    except OverflowError:
        return False

"""Errors as answers to clients: a sentence, and the HTTP status.

400: the client can correct the request; 404: not found; 409: not possible in the present state; 413: too
large; 503: the server is busy or cannot read its files now; 507: the disk is full. Anything else is a fault
of the server: 500, with the details in the log only.
"""

from __future__ import annotations

import errno
import logging
from typing import Any

import numpy as np
import requests
from fastapi import HTTPException
from filelock import Timeout
from monailabel.interfaces.exception import (
    ImageNotFoundException,
    LabelNotFoundException,
    MONAILabelException,
)

from ..cancellation import Stopped
from ..errors import UserError
from .line import BusyError, LeftError

logger = logging.getLogger(__name__)

CLIENT_LEFT = 499
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk."""
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


class StorageFullError(UserError):
    """What is kept for clients has no room for more."""

    status = 507


def answer_to(error: Exception) -> HTTPException:
    """The answer to a request that ended in an error; faults of the server are logged."""
    if isinstance(error, HTTPException):
        return _untold(error) if error.status_code == 500 else error
    if isinstance(error, BusyError):
        return HTTPException(503, f"{error} Try again in {error.retry_after} s.", retry(error.retry_after))
    if isinstance(error, Stopped):
        return HTTPException(503, str(error), retry(1))
    if isinstance(error, LeftError):
        return HTTPException(CLIENT_LEFT, "The client left.")
    if isinstance(error, UserError):
        return HTTPException(error.status, str(error))
    if isinstance(error, (ImageNotFoundException, LabelNotFoundException)):
        return HTTPException(404, _sentence(error))
    if isinstance(error, MONAILabelException):
        return HTTPException(400, _sentence(error))
    if isinstance(error, requests.RequestException):
        logger.warning("The archive did not answer: %s", error)
        missing = getattr(error.response, "status_code", None) == 404
        return HTTPException(404 if missing else 502, "The archive does not have it, or did not answer.")
    return _of_the_machine(error)


def retry(seconds: int) -> dict[str, str]:
    """The header that says when to come back."""
    return {"Retry-After": str(seconds)}


def _of_the_machine(error: Exception) -> HTTPException:
    logger.error("Answered with an error", exc_info=error)
    if isinstance(error, MemoryError):
        return HTTPException(503, "The server's memory does not suffice for this image now.", retry(60))
    if isinstance(error, Timeout):
        return HTTPException(503, "Another process holds the studies' lock; try again.", retry(5))
    if isinstance(error, FileNotFoundError):
        return HTTPException(409, "A file of the studies was removed meanwhile; list the images anew.")
    if isinstance(error, OSError):
        return _of_the_disk(error)
    if isinstance(error, np.linalg.LinAlgError):
        return HTTPException(400, "The image or label has axes that cannot be told apart.")
    return _untold(error)


def _of_the_disk(error: OSError) -> HTTPException:
    if error.errno in FULL:
        return HTTPException(507, "The server's disk is full; nothing was stored.", retry(60))
    if error.errno in _READ_ONLY:
        return HTTPException(
            409, "The server may not write to its folders, so that nothing was stored: they are read-only."
        )
    return HTTPException(
        503, f"The server cannot use its files now: {error.strerror or 'unknown'}.", retry(5)
    )


def _untold(error: Any) -> HTTPException:
    return HTTPException(500, "The server failed at this request, and not through it; its log says why.")


def _sentence(error: Exception) -> str:
    return str(getattr(error, "msg", "") or error)[:300]

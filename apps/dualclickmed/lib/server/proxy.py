"""Forwards OHIF's DICOMweb requests to the archive, and nothing else.

MONAI Label's own proxy forwards dots in paths, which lead out of DICOMweb to the rest of the archive, and the
browser's headers with its log-in; it has no time-out, and the whole server waits meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from urllib.parse import quote

import requests
from fastapi import HTTPException, Request
from fastapi.responses import Response, StreamingResponse
from monailabel.config import settings
from starlette.concurrency import run_in_threadpool

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
_SENT = ("accept", "content-type")
_RETURNED = ("content-type", "content-length", "content-encoding", "etag", "last-modified")
_BLOCK = 1 << 18


async def handed_on(request: Request, operation: str, path: str) -> Response:
    """The archive's answer to a DICOMweb request.

    Args:
        request: as it came.
        operation: wado, qido, stow or nothing.
        path: below the archive's DICOMweb address.

    Raises:
        HTTPException: 404 where the studies are no archive, 400 for a path that leaves DICOMweb, 502 or 504
            when the archive does not answer.
    """
    address = f"{_archive()}/{_path_on_archive(operation, path)}"
    if request.url.query:
        address = f"{address}?{request.url.query}"
    body = await request.body() if request.method == "POST" else None
    headers = {name: value for name in _SENT if (value := request.headers.get(name)) is not None}
    return await run_in_threadpool(_fetch, request.method, address, headers, body)


def _fetch(method: str, address: str, headers: dict[str, str], body: bytes | None) -> Response:
    timeout = (CONNECT_SECONDS, settings.MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT)
    token = _google_token()
    if token is not None:
        headers = {**headers, "Authorization": f"Bearer {token}"}
    try:
        answer = requests.request(
            method,
            address,
            headers=headers,
            data=body,
            auth=None if token is not None else _credentials(),
            stream=True,
            timeout=timeout,
            allow_redirects=False,
        )
    except requests.Timeout as error:
        raise HTTPException(504, "The archive did not answer in time.") from error
    except requests.RequestException as error:
        logger.warning("The archive did not answer: %s", error)
        raise HTTPException(502, "The archive did not answer.") from error
    returned = {name: value for name in _RETURNED if (value := answer.headers.get(name)) is not None}
    return StreamingResponse(_blocks(answer), status_code=answer.status_code, headers=returned)


def _blocks(answer: requests.Response) -> Iterator[bytes]:
    """The body as it came, still encoded, without ever holding a whole series."""
    try:
        yield from answer.raw.stream(_BLOCK, decode_content=False)
    finally:
        answer.close()


def _archive() -> str:
    studies = str(settings.MONAI_LABEL_STUDIES)
    if not studies.startswith(("http://", "https://")):
        raise HTTPException(404, "The studies are a folder on this server, not an archive with DICOMweb.")
    return studies.rstrip("/")


def _path_on_archive(operation: str, path: str) -> str:
    parts = path.split("/")
    if any(part in (".", "..") for part in parts) or "\\" in path or not path.isprintable():
        raise HTTPException(400, f"The path {path[:100]!r} leads out of DICOMweb.")
    # Some versions of OHIF ask for metadata as a query.
    if operation == "qido" and path.endswith("metadata"):
        operation = "wado"
    prefix = {
        "wado": settings.MONAI_LABEL_WADO_PREFIX,
        "qido": settings.MONAI_LABEL_QIDO_PREFIX,
        "stow": settings.MONAI_LABEL_STOW_PREFIX,
    }.get(operation)
    quoted = "/".join(quote(part, safe="@:,;=+$!*'()~") for part in parts)
    return f"{prefix}/{quoted}" if prefix else quoted


def _credentials() -> tuple[str, str] | None:
    user, password = settings.MONAI_LABEL_DICOMWEB_USERNAME, settings.MONAI_LABEL_DICOMWEB_PASSWORD
    return (user, password) if user and password else None


def _google_token() -> str | None:
    if "googleapis.com" not in settings.MONAI_LABEL_STUDIES:
        return None
    import google.auth
    import google.auth.transport.requests

    found, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
    found.refresh(google.auth.transport.requests.Request())
    return str(found.token)

"""Refuses requests that no endpoint should see: from other sites' pages, for unknown host names, too large.

A server on one's own machine needs no password, so any page in the annotator's browser could send requests to
it. The headers `Origin` and `Host`, which the browser sets, tell such requests from the annotator's own;
where they are missing, as for pictures in a page, `Sec-Fetch-Site` tells at least whether the request is
another site's.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import socket
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .limits import Limits

logger = logging.getLogger(__name__)

MAX_BODY = 1 << 20
"""Bytes of a request that uploads nothing."""
PAGES = ("/ohif/", "/page/", "/docs", "/")
"""Paths of pages, and all below the first of them: links from elsewhere may open them."""
BODY_SECONDS = 60.0
"""Silence after which a request whose body is not complete is given up."""
REFUSED_SECONDS = 10.0
"""How long the rest of a refused request is still taken.

Were the connection closed with some of it unread, the client would be cut off and would not see the answer.
"""
_LOOPBACK_NAMES = ("localhost",)
UPLOADS = ("multipart/form-data", "multipart/related", "application/dicom")
"""Kinds of bodies that upload something."""


class BodyError(Exception):
    """A request's body is too large, or stopped coming."""


class _Body:
    """What a request sends, counted and timed; to be called as ASGI's ``receive``.

    Attributes:
        problem: status and sentence once there is something wrong with it.
    """

    def __init__(self, receive: Receive, most: int) -> None:
        self.problem: tuple[int, str] | None = None
        self._receive, self._most = receive, most
        self._seen, self._complete, self._silent = 0, False, False

    async def __call__(self) -> Message:
        try:
            # A call after the end of the body waits until the client leaves.
            message = await asyncio.wait_for(self._receive(), None if self._complete else BODY_SECONDS)
        except asyncio.TimeoutError as error:
            self._silent = True
            self.problem = 408, f"Nothing more of the request came for {BODY_SECONDS:.0f} seconds."
            raise BodyError from error
        self._complete = not message.get("more_body", False)
        self._seen += len(message.get("body", b""))
        if self._seen > self._most:
            self.problem = 413, _too_large(self._most)
            raise BodyError
        return message

    async def rest(self) -> None:
        """Read and discard the rest of the body, for a limited time."""
        until = asyncio.get_running_loop().time() + REFUSED_SECONDS
        while not self._complete and not self._silent:
            left = until - asyncio.get_running_loop().time()
            try:
                message = await asyncio.wait_for(self._receive(), left)
            except asyncio.TimeoutError:
                return
            self._complete = not message.get("more_body", False)


class Guard:
    """ASGI middleware. Other than HTTP passes untouched.

    Args:
        app: what comes next.
        limits: sizes and names.
        origins: whose pages may call the server, as ``scheme://host[:port]``.
        uploads: kinds of bodies that may be as large as an upload.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        origins: Sequence[str] = (),
        uploads: Sequence[str] = UPLOADS,
    ) -> None:
        self.app = app
        self.limits = limits
        self._uploads = tuple(uploads)
        self.origins = frozenset(origin.rstrip("/").lower() for origin in origins)
        machine = {socket.gethostname().lower(), socket.getfqdn().lower()}
        # Exact names, because the owner of a domain can make any subdomain.
        self._own_names = frozenset({*_LOOPBACK_NAMES, *machine, *limits.hosts})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        most = self._most(headers)
        body = _Body(receive, most)
        refusal = self._refusal(headers, scope)
        if refusal is not None:
            await _answer(send, body, *refusal)
            return
        if _length(headers) > most:
            await _answer(send, body, 413, _too_large(most))
            return
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                if body.problem is not None and not started:
                    # The endpoint turned the interruption into another error.
                    await _answer(send, body, *body.problem)
                    started = True
                    return
                started = True
                message["headers"] = [*message.get("headers", []), (b"x-content-type-options", b"nosniff")]
            elif body.problem is not None:
                return
            await send(message)

        try:
            await self.app(scope, body, sending)
        except BodyError:
            if not started and body.problem is not None:
                await _answer(send, body, *body.problem)

    def _refusal(self, headers: Mapping[bytes, str], scope: Scope) -> tuple[int, str] | None:
        host = headers.get(b"host", "").lower()
        if not self._is_own(_name_of(f"//{host}")):
            return 403, (
                f"This server is not known as {host[:100]!r}. If it is meant to be, start it with "
                "--conf hosts NAME."
            )
        origin = headers.get(b"origin", "").lower()
        if not origin and headers.get(b"sec-fetch-site", "").lower() == "cross-site":
            if _opens_page(headers, scope):
                return None
            return 403, "Pages of other sites may not call this server."
        if not origin or origin in self.origins or _netloc(origin) == host:
            return None
        if _is_loopback(_name_of(origin)) and _is_loopback(_name_of(f"//{host}")):
            # Another program of this machine, such as a viewer under development.
            return None
        return 403, (
            f"Pages of {origin[:100]!r} may not call this server. If they are meant to, name them when it is "
            "started: MONAI_LABEL_CORS_ORIGINS='[\"SCHEME://HOST:PORT\"]'."
        )

    def _is_own(self, name: str | None) -> bool:
        if name is None:
            return False
        # A foreign name can be made to resolve to this machine; an address cannot.
        return "*" in self.limits.hosts or name in self._own_names or _is_address(name)

    def _most(self, headers: Mapping[bytes, str]) -> int:
        kind = headers.get(b"content-type", "").lower().strip()
        return self.limits.upload_bytes if kind.startswith(self._uploads) else MAX_BODY


def _opens_page(headers: Mapping[bytes, str], scope: Scope) -> bool:
    """Whether the request opens one of the pages by a link; later requests then come from the page itself."""
    follows = headers.get(b"sec-fetch-mode") == "navigate" and headers.get(b"sec-fetch-dest") == "document"
    path = scope.get("path", "")
    page = path in PAGES or path.startswith(PAGES[0])
    return follows and scope.get("method") == "GET" and page


def _netloc(origin: str) -> str:
    """Host and port of an origin; empty for one that is none ("null")."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _name_of(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_loopback(name: str | None) -> bool:
    if name is None:
        return False
    return name in _LOOPBACK_NAMES or (_is_address(name) and ipaddress.ip_address(name).is_loopback)


def _length(headers: Mapping[bytes, str]) -> int:
    try:
        return int(headers.get(b"content-length", "0"))
    except ValueError:
        return 0


def _too_large(most: int) -> str:
    return f"A request may hold {most} bytes, but this one holds more (--conf upload_gb)."


async def _answer(send: Send, asked: _Body, status: int, detail: str) -> None:
    """Answer at once, then read the rest of the request, so that the client gets to read the answer."""
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await asked.rest()
    await send({"type": "http.response.body", "body": b""})

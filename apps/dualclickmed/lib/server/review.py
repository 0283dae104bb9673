"""A server that shows images and labels and changes nothing (``--conf review true``)."""

from __future__ import annotations

import json

from starlette.types import ASGIApp, Receive, Scope, Send

READING = frozenset({"GET", "HEAD", "OPTIONS"})
ALLOWED = ("/activelearning/", "/auth/token")
"""Paths of POST requests that store nothing but which image was shown to whom."""


class ReadOnly:
    """ASGI middleware that refuses whatever segments, stores, removes or trains."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in READING or scope["path"].startswith(ALLOWED):
            await self.app(scope, receive, send)
            return
        body = json.dumps({"detail": "This server is for review: it only shows images and labels."}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": body})

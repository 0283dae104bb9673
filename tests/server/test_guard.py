"""Who may talk to the server, and how much."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from typing import Any

import pytest
from dualclickmed.server.guard import MAX_BODY, Guard
from dualclickmed.server.limits import Limits


async def _endpoint(scope: Any, receive: Any, send: Any) -> None:
    more, size = True, 0
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


async def _careless(scope: Any, receive: Any, send: Any) -> None:
    """An endpoint that answers whatever happens, as FastAPI does for a body that it cannot read."""
    try:
        await _endpoint(scope, receive, send)
    except Exception:
        await send({"type": "http.response.start", "status": 400, "headers": []})
        await send({"type": "http.response.body", "body": b"cannot be read"})


def ask(
    headers: dict[str, str],
    body: Iterable[bytes] = (b"",),
    limits: Limits | None = None,
    origins: tuple[str, ...] = (),
    endpoint: Any = _endpoint,
    path: str = "/info/",
) -> tuple[int, bytes]:
    parts = list(body)
    messages = [
        {"type": "http.request", "body": part, "more_body": n < len(parts) - 1}
        for n, part in enumerate(parts)
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    named = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
    scope = {"type": "http", "method": "GET", "path": path, "headers": named}
    asyncio.run(Guard(endpoint, limits or Limits(), origins)(scope, receive, send))
    assert {message["type"] for message in sent[1:]} == {"http.response.body"}
    assert [message.get("more_body", False) for message in sent[1:]] == [True] * (len(sent) - 2) + [False]
    return sent[0]["status"], b"".join(message["body"] for message in sent[1:])


HOST = {"Host": "127.0.0.1:8000"}


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost", "[::1]:8000", "192.168.1.7", socket.gethostname()]
)
def test_own_names_and_addresses_are_answered(host: str) -> None:
    assert ask({"Host": host}) == (200, b"0")


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8000", "", "[::1"]
)
def test_a_name_that_was_made_to_point_here_is_refused(host: str) -> None:
    status, body = ask({"Host": host})
    assert status == 403
    assert b"--conf hosts" in body


def test_names_can_be_allowed() -> None:
    assert ask({"Host": "seg.hospital.example"}, limits=Limits(hosts=("seg.hospital.example",)))[0] == 200
    assert ask({"Host": "anything.example"}, limits=Limits(hosts=("*",)))[0] == 200


@pytest.mark.parametrize(
    "origin", ["http://127.0.0.1:8000", "http://localhost:3000", "https://viewer.example"]
)
def test_own_pages_local_ones_and_those_allowed_may_call(origin: str) -> None:
    assert ask({**HOST, "Origin": origin}, origins=("https://viewer.example/",)) == (200, b"0")


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example", "http://[bad"]
)
def test_other_pages_may_not(origin: str) -> None:
    status, body = ask({**HOST, "Origin": origin}, origins=("https://viewer.example",))
    assert status == 403
    assert b"MONAI_LABEL_CORS_ORIGINS" in body


def test_a_local_page_may_not_call_a_server_of_another_machine() -> None:
    assert ask({"Host": "10.0.0.5:8000", "Origin": "http://localhost:3000"})[0] == 403


def test_sizes_are_limited_by_what_was_announced() -> None:
    assert ask({**HOST, "Content-Length": str(MAX_BODY + 1)})[0] == 413
    upload = {**HOST, "Content-Type": "multipart/form-data; boundary=x", "Content-Length": str(MAX_BODY + 1)}
    assert ask(upload)[0] == 200
    assert ask(upload, limits=Limits(upload_bytes=1000))[0] == 413


@pytest.mark.parametrize("endpoint", [_endpoint, _careless])
def test_sizes_are_limited_by_what_comes(endpoint: Any) -> None:
    limits = Limits(upload_bytes=100)
    upload = {**HOST, "Content-Type": "multipart/form-data; boundary=x"}
    assert ask(upload, [b"x" * 50, b"x" * 50], limits, endpoint=endpoint) == (200, b"100")
    status, body = ask(upload, [b"x" * 50, b"x" * 51, b"x" * 10**6], limits, endpoint=endpoint)
    assert status == 413
    assert b"may hold 100 bytes" in body


CROSS_SITE = {**HOST, "Sec-Fetch-Site": "cross-site"}
LINK = {**CROSS_SITE, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@pytest.mark.parametrize(
    ("headers", "path", "status"),
    [
        (CROSS_SITE, "/info/", 403),
        ({**CROSS_SITE, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, "/datastore/image", 403),
        ({**HOST, "Sec-Fetch-Site": "same-origin"}, "/info/", 200),
        ({**HOST, "Sec-Fetch-Site": "none"}, "/info/", 200),
        (LINK, "/ohif/viewer", 200),
        (LINK, "/", 200),
        (LINK, "/datastore/image", 403),
        ({**LINK, "Sec-Fetch-Dest": "iframe"}, "/ohif/viewer", 403),
        ({**CROSS_SITE, "Origin": "https://viewer.example"}, "/info/", 200),
        ({**CROSS_SITE, "Origin": "https://evil.example"}, "/info/", 403),
    ],
)
def test_other_sites_may_link_to_the_pages_and_no_more(
    headers: dict[str, str], path: str, status: int
) -> None:
    assert ask(headers, origins=("https://viewer.example",), path=path)[0] == status


def test_a_body_of_which_nothing_more_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dualclickmed.server.guard.BODY_SECONDS", 0.05)

    async def reads_on(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body", True):
            continue
        await _endpoint(scope, receive, send)

    headers = {**HOST, "Content-Type": "multipart/form-data; boundary=x"}
    messages = [{"type": "http.request", "body": b"x", "more_body": True}]
    sent: list[Any] = []

    async def receive() -> Any:
        if not messages:
            await asyncio.sleep(3600)
        return messages.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    named = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
    asyncio.run(Guard(reads_on, Limits())({"type": "http", "headers": named}, receive, send))
    assert sent[0]["status"] == 408


@pytest.mark.parametrize(("parts", "seconds"), [(3, 60.0), (None, 0.05)])
def test_what_a_refused_client_still_sends_is_taken_for_a_while(
    parts: int | None, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be cut off before it reads the answer; None: it never ends."""
    monkeypatch.setattr("dualclickmed.server.guard.REFUSED_SECONDS", seconds)
    events: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(0)
        events.append("taken")
        return {"type": "http.request", "body": b"x", "more_body": events.count("taken") != parts}

    async def send(message: Any) -> None:
        events.append(message)

    headers = {**HOST, "Content-Length": str(MAX_BODY + 1)}
    named = [(k.lower().encode(), v.encode()) for k, v in headers.items()]
    asyncio.run(Guard(_endpoint, Limits())({"type": "http", "headers": named}, receive, send))
    assert events[0]["status"] == 413 and b"may hold" in events[1]["body"]
    assert events[-1] == {"type": "http.response.body", "body": b""}
    assert set(events[2:-1]) == {"taken"}
    assert parts is None or events.count("taken") == parts

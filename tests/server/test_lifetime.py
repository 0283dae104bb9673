"""Connections on which nothing happens are closed, and no others."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
import uvicorn
from dualclickmed.server import lifetime

IDLE = 0.6


async def _slow(scope: Any, receive: Any, send: Any) -> None:
    """Answers after four times as long as a connection may be idle."""
    await asyncio.sleep(4 * IDLE)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def _serve(talk: Any) -> Any:
    server = uvicorn.Server(uvicorn.Config(_slow, port=0, lifespan="off", log_level="critical"))
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    closing = asyncio.create_task(lifetime._close_idle(server))
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        return await asyncio.wait_for(talk(port), 60)
    finally:
        closing.cancel()
        server.should_exit = server.force_exit = True
        await running


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifetime, "IDLE_SECONDS", IDLE)
    monkeypatch.setattr(lifetime, "_LOOK_SECONDS", IDLE / 10)


@pytest.mark.parametrize(
    "begun", [b"", b"GET /info/ HT", b"GET / HTTP/1.1\r\nHost: a\r\n"], ids=["nothing", "a line", "a head"]
)
def test_a_connection_that_sends_no_whole_request_is_closed(begun: bytes) -> None:
    async def talk(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(begun)
        try:
            return await reader.read()
        except ConnectionResetError:
            return b""
        finally:
            writer.close()

    assert asyncio.run(_serve(talk)) == b""


def test_a_connection_whose_request_is_worked_on_stays() -> None:
    async def talk(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = await reader.readuntil(b"ok")
        # And is closed after the answer.
        rest = b""
        with suppress(ConnectionResetError):
            rest = await reader.read()
        writer.close()
        return answer + rest

    answer = asyncio.run(_serve(talk))
    assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"ok")

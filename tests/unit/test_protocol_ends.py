"""Connections that end although nobody asked: clients that say nothing, clients that read nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from service.api import protocol

pytestmark = pytest.mark.asyncio
LARGE = 64 * 2**20


async def large_reply(scope: Any, receive: Any, send: Any) -> None:
    """Answers with more than a socket takes."""
    headers = [(b"content-length", str(LARGE).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(LARGE)})


@asynccontextmanager
async def connected(header_timeout_s: float) -> AsyncIterator[tuple[socket.socket, asyncio.Event]]:
    """A client's socket, and whether the server has given its connection up."""
    ended = asyncio.Event()

    class Noting(protocol.protocol_for(header_timeout_s)):  # type: ignore[misc]  # a class made at run time
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            ended.set()

    config = uvicorn.Config(large_reply, log_config=None, access_log=False, ws="none", timeout_keep_alive=0)
    config.load()
    loop, state = asyncio.get_running_loop(), ServerState()
    server = await loop.create_server(lambda: Noting(config, state, {}), "127.0.0.1", 0)
    with socket.socket() as client:
        client.setblocking(False)
        await loop.sock_connect(client, server.sockets[0].getsockname())
        yield client, ended
        server.close()


async def test_a_connection_that_says_nothing_is_closed() -> None:
    async with connected(header_timeout_s=0.05) as (client, ended):
        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 1), 60) == b""
        await asyncio.wait_for(ended.wait(), 60)


async def test_a_client_that_does_not_take_its_last_reply_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "CLOSE_TIMEOUT_S", 0.05)
    async with connected(header_timeout_s=60) as (client, ended):
        await asyncio.get_running_loop().sock_sendall(client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.wait_for(ended.wait(), 60)

"""Connections that end although nobody asked: clients that say nothing, clients that read nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from live_service import read_all
from uvicorn.server import ServerState

from service.api import protocol
from service.api.small_reads import READ_BYTES, in_small_reads

pytestmark = pytest.mark.asyncio
LARGE = 64 * 2**20


async def large_reply(scope: Any, receive: Any, send: Any) -> None:
    """Answers with more than a socket takes."""
    headers = [(b"content-length", str(LARGE).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(LARGE)})


@asynccontextmanager
async def connected(
    header_timeout_s: float, app: Any = large_reply, max_connections: int = 9, keep_alive_s: int = 0
) -> AsyncIterator[tuple[socket.socket, asyncio.Event]]:
    """A client's socket, and whether the server has given its connection up."""
    ended = asyncio.Event()

    class Noting(protocol.protocol_for(header_timeout_s, max_connections)):  # type: ignore[misc]  # a class made at run time
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            ended.set()

    config = uvicorn.Config(
        app, log_config=None, access_log=False, ws="none", timeout_keep_alive=keep_alive_s
    )
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


async def test_there_is_room_until_more_was_sent_than_the_client_takes() -> None:
    rooms, is_noted = [], asyncio.Event()

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        rooms.append(scope["textgen.has_room"]())
        await large_reply(scope, receive, send)
        rooms.append(scope["textgen.has_room"]())
        is_noted.set()

    async with connected(60, noting) as (client, _):
        await asyncio.get_running_loop().sock_sendall(client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.wait_for(is_noted.wait(), 60)
    assert rooms == [True, False]


async def test_a_client_that_does_not_take_its_last_reply_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "CLOSE_TIMEOUT_S", 0.05)
    async with connected(header_timeout_s=60) as (client, ended):
        await asyncio.get_running_loop().sock_sendall(client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.wait_for(ended.wait(), 60)
        client.setblocking(True)
        assert 0 < len(read_all(client)) < LARGE


async def test_an_application_can_drop_a_connection() -> None:
    async def dropping(scope: Any, receive: Any, send: Any) -> None:
        scope["textgen.abort"]()

    async with connected(60, dropping) as (client, ended):
        await asyncio.get_running_loop().sock_sendall(client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.wait_for(ended.wait(), 60)
        client.setblocking(True)
        assert read_all(client) == b""


async def test_a_refused_connection_ends_after_its_answer_and_reads_nothing_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the application does, and whatever else the client sends."""
    heard, fed = asyncio.Queue[str](), []

    async def dropping(scope: Any, receive: Any, send: Any) -> None:
        heard.put_nowait((await receive())["type"])
        scope["textgen.abort"]()
        heard.put_nowait("dropped")

    async with connected(60, dropping) as (client, ended):
        loop = asyncio.get_running_loop()
        head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        await loop.sock_sendall(client, head + b"no chunk\r\n")
        assert [await asyncio.wait_for(heard.get(), 60) for _ in range(2)] == ["http.disconnect", "dropped"]
        assert not ended.is_set()
        monkeypatch.setattr(protocol.Protocol, "_feed", lambda self, data: fed.append(data))
        await loop.sock_sendall(client, head)
        await asyncio.wait_for(ended.wait(), 60)
        client.setblocking(True)
        assert read_all(client).startswith(b"HTTP/1.1 400 ")
    assert fed == []


async def test_a_refusal_ends_what_the_service_sends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LINGER_S", 3600.0)
    async with connected(header_timeout_s=60) as (client, ended):
        loop, answer = asyncio.get_running_loop(), b""
        await loop.sock_sendall(client, b"nonsense\r\n\r\n")
        while piece := await asyncio.wait_for(loop.sock_recv(client, 65536), 60):
            answer += piece
        assert answer.startswith(b"HTTP/1.1 400 ") and not ended.is_set()


async def test_requests_behind_a_refusal_are_not_heard() -> None:
    """In the same piece of data, one of them a question that even a connection too many may ask."""
    heard: list[str] = []

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        heard.append(scope["path"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def asking(path: bytes) -> bytes:
        return b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path

    async with connected(60, noting, max_connections=0, keep_alive_s=60) as (client, ended):
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(client, asking(b"/livez"))
        assert (await asyncio.wait_for(loop.sock_recv(client, 65536), 60)).startswith(b"HTTP/1.1 204 ")
        await loop.sock_sendall(client, asking(b"/") + asking(b"/livez"))
        await asyncio.wait_for(ended.wait(), 60)
        client.setblocking(True)
        answer = read_all(client)
    assert answer.startswith(b"HTTP/1.1 429 ") and answer.count(b"HTTP/1.1") == 1
    assert heard == ["/livez"]


async def test_a_connection_is_not_idle_while_a_later_request_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the wait for a next request would end in the middle of its answer."""
    made: list[protocol.Protocol] = []
    begin = protocol.Protocol.connection_made
    monkeypatch.setattr(
        protocol.Protocol, "connection_made", lambda self, to: (made.append(self), begin(self, to))
    )
    timers: list[Any] = []

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        timers.append(made[0].timeout_keep_alive_task)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        timers.append(made[0].timeout_keep_alive_task is not None)

    async with connected(60, noting, keep_alive_s=60) as (client, _):
        loop = asyncio.get_running_loop()
        for _ in range(2):
            await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await asyncio.wait_for(loop.sock_recv(client, 65536), 60)).startswith(b"HTTP/1.1 204 ")
    assert timers == [None, True, None, True]


# ---- bodies that nobody has asked for -------------------------------------------------------------------


@pytest.mark.parametrize("loop_factory", ["asyncio", "uvloop"])
@pytest.mark.parametrize("num_requests", [1, 40])
async def test_a_connection_holds_little_of_the_bodies_that_nobody_asked_for(
    loop_factory: str, num_requests: int
) -> None:
    """Counted in bytes: a client's whole megabyte stays in its socket until the application wants it."""
    if loop_factory == "uvloop":
        pytest.importorskip("uvloop")
    await asyncio.to_thread(_hold_little, loop_factory, num_requests)


def _hold_little(loop_factory: str, num_requests: int) -> None:
    factory = (
        asyncio.new_event_loop if loop_factory == "asyncio" else pytest.importorskip("uvloop").new_event_loop
    )
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_holding_little(num_requests))


async def _holding_little(num_requests: int) -> None:
    go, sizes = asyncio.Event(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await go.wait()
        size, is_more = 0, True
        while is_more:
            message = await receive()
            size, is_more = size + len(message["body"]), message["more_body"]
        sizes.append(size)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(app, log_config=None, access_log=False, ws="none")
    config.load()
    loop, state = asyncio.get_running_loop(), ServerState()
    make = in_small_reads(protocol.protocol_for(60.0, max_connections=9))
    server = await loop.create_server(
        lambda: make(config=config, server_state=state, app_state={}), "127.0.0.1", 0
    )
    size = 2**20 // num_requests
    asked = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (size, b"a" * size)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(asked * num_requests)
    async with asyncio.timeout(60):
        while not any(each.flow.read_paused for each in state.connections):  # type: ignore[union-attr]
            await asyncio.sleep(0)
        (connection,) = state.connections
        held = sum(len(cycle.body) for cycle in connection._unanswered)  # type: ignore[union-attr]
        assert 0 < held <= 2 * READ_BYTES
        go.set()
        for _ in range(num_requests):
            await reader.readuntil(b"\r\n\r\n")
    assert sizes == [size] * num_requests
    writer.close()
    server.close()

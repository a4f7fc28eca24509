"""Streams on a real socket: frames to the byte, the text as without streaming, one end, whoever leaves."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from exchanges import make_exchange, stays
from live_service import Live, events, expect, read_all

from service.api import sse
from service.api.exchange import Exchange
from service.api.replies import NativeFrames
from service.errors import Draining
from service.tasks.events import Event, Token

LONG = {"prompt": "go on", "max_new_tokens": 240, "ignore_eos": True, "seed": 5}
DOCUMENT = "The ship left at dawn. Nobody saw it go, and nobody asked. " * 12
CASES: list[tuple[str, dict[str, Any]]] = [
    ("/generate", {"prompt": "hello", "max_new_tokens": 40, "seed": 1}),
    ("/generate", {"prompt": ["a", "计算机科学是一种"], "n": 3, "max_new_tokens": 20, "seed": 2}),
    ("/generate", {"prompt": "hello", "echo": True, "max_new_tokens": 5, "seed": 3}),
    ("/generate", {"prompt": "hello", "stop": ["e", "7"], "max_new_tokens": 60, "seed": 4}),
    ("/summarize", {"text": DOCUMENT, "max_new_tokens": 16, "seed": 5}),
    ("/qa", {"question": "When?", "context": DOCUMENT, "seed": 6}),
    ("/tasks/generate", {"prompt": "hello", "max_new_tokens": 9, "seed": 7}),
]


def texts(reply: dict[str, Any]) -> dict[int, str]:
    """What a non-streaming reply says, by choice."""
    if "choices" in reply:
        return {choice["index"]: choice["text"] for choice in reply["choices"]}
    return {0: reply.get("summary", reply.get("answer"))}


def raw_request(path: str, body: Any) -> bytes:
    data = json.dumps(body).encode()
    fields = f"Host: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    return f"POST {path} HTTP/1.1\r\n{fields}\r\n\r\n".encode() + data


@pytest.mark.parametrize(("path", "body"), CASES)
def test_deltas_put_together_are_the_text_without_streaming(live: Live, path: str, body: Any) -> None:
    whole = live.post(path, body).json()
    joined: dict[int, str] = dict.fromkeys(texts(whole), "")
    for kind, data in events(live.post(path, {**body, "stream": True}).text):
        if kind == "token":
            joined[data["index"]] += data["text"]
    assert joined == texts(whole)


@pytest.mark.parametrize(("path", "body"), CASES)
def test_a_stream_ends_with_exactly_one_done(live: Live, path: str, body: Any) -> None:
    kinds = [kind for kind, _ in events(live.post(path, {**body, "stream": True}).text)]
    assert [kind for kind in kinds if kind in ("done", "error")] == ["done"] and kinds[-1] == "done"


def test_done_holds_what_the_reply_holds_besides_the_text(live: Live) -> None:
    path, body = CASES[0]
    whole = live.post(path, body).json()
    done = events(live.post(path, {**body, "stream": True}).text)[-1][1]
    assert set(done) == set(whole) and done["seed"] == whole["seed"] and done["usage"] == whole["usage"]


def test_the_bytes_of_a_stream_are_frames_and_nothing_else(live: Live) -> None:
    text = live.post("/generate", {**CASES[0][1], "stream": True}).text
    assert re.fullmatch(r"(event: (token|done)\ndata: \{.*\}\n\n)+", text)


def test_a_stream_has_the_headers_that_proxies_need(live: Live) -> None:
    headers = live.post("/generate", {**CASES[0][1], "stream": True}).headers
    assert headers["content-type"].startswith("text/event-stream")
    assert (headers["cache-control"], headers["x-accel-buffering"]) == ("no-cache", "no")


def test_a_deadline_within_a_stream_is_its_last_frame(live: Live) -> None:
    found = events(
        live.post(
            "/generate", {**LONG, "prompt": ["go on"] * 16, "n": 16, "stream": True, "timeout_s": 0.2}
        ).text
    )
    assert found[-1][0] == "error" and found[-1][1]["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_leaves_frees_its_sequences(serve: Callable[..., Live], is_stream: bool) -> None:
    live = serve()
    with live.connect() as sock:
        sock.sendall(raw_request("/generate", {**LONG, "n": 8, "stream": is_stream}))
        expect(lambda: live.num_sequences() == 8, "the work to start")
    expect(lambda: live.num_sequences() == 0, "the sequences to end")
    expect(lambda: live.metric("textgen_requests_finished_total", outcome="abort") == 1, "the count")
    expect(lambda: live.metric("textgen_kv_blocks_used_ratio") == 0, "the blocks to return")
    ends = [live.metric("textgen_requests_finished_total", outcome=outcome) for outcome in ("ok", "abort")]
    assert ends == [0, 1]


def test_a_client_that_stops_reading_is_cut_off(serve: Callable[..., Live]) -> None:
    live = serve(send_timeout_s=0.2)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        sock.connect(("127.0.0.1", live.port))
        body = {"prompt": ["x" * 200] * 16, "n": 4, "echo": True, "logprobs": 10, "max_new_tokens": 40}
        sock.sendall(raw_request("/generate", {**body, "ignore_eos": True, "stream": True}))
        expect(lambda: live.metric("textgen_requests_finished_total", outcome="abort") >= 1, "the cut")
        expect(lambda: live.num_sequences() == 0, "the sequences to end")
        ends = [
            live.metric("textgen_requests_finished_total", outcome=outcome) for outcome in ("ok", "abort")
        ]
        assert ends == [0, 1] and read_all(sock).startswith(b"HTTP/1.1 200 ")


def test_requests_on_one_connection_are_answered_in_order(live: Live) -> None:
    one = raw_request("/generate", {"prompt": "a", "max_new_tokens": 1, "seed": 1})
    with live.connect() as sock:
        sock.sendall(one * 2 + b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert read_all(sock).count(b"HTTP/1.1 200 OK") == 3


class SilentTask:
    """A task that says nothing until it is told to."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()

    async def events(self) -> AsyncIterator[Event]:
        await self.may_end.wait()
        for nothing in ():
            yield nothing


class TwoAtOnce(SilentTask):
    """Has two events ready, and then none until it may end."""

    async def events(self) -> AsyncIterator[Event]:
        yield Token(0, "one", is_followed=True)
        yield Token(0, "two")
        await self.may_end.wait()


async def body_chunks(task: SilentTask, exchange: Exchange, on_chunk: Callable[[], None]) -> list[bytes]:
    """Stream a task to its end; `on_chunk` is called at every write."""
    stream = sse.EventStream(task.events(), NativeFrames("x", "m"), exchange)
    chunks = []

    async def send(message: Any) -> None:
        if message.get("body"):
            chunks.append(message["body"])
            on_chunk()

    await asyncio.wait_for(stream({}, stays, send), 10)
    return chunks


@pytest.mark.asyncio
async def test_what_is_ready_is_written_at_once_and_together() -> None:
    task = TwoAtOnce()
    chunks = await body_chunks(task, make_exchange(), task.may_end.set)
    assert len(chunks) == 1
    assert chunks[0].index(b"one") < chunks[0].index(b"two")


@pytest.mark.asyncio
async def test_what_is_ready_goes_out_before_an_error_from_outside() -> None:
    exchange = make_exchange()

    class Failing(TwoAtOnce):
        async def events(self) -> AsyncIterator[Event]:
            yield Token(0, "one", is_followed=True)
            exchange.fail(Draining("over", 1.0))  # nothing was written yet
            yield Token(0, "two")
            await self.may_end.wait()

    sent = b"".join(await body_chunks(Failing(), exchange, lambda: None))
    assert sent.index(b"one") < sent.index(b"two") < sent.index(b"draining")


@pytest.mark.asyncio
async def test_an_idle_stream_says_that_it_lives() -> None:
    task, sent = SilentTask(), []
    exchange = make_exchange()
    stream = sse.EventStream(task.events(), NativeFrames("x", "m"), exchange, heartbeat_s=0.01)

    async def send(message: Any) -> None:
        sent.append(message)
        if message.get("body") == b": keep-alive\n\n":
            task.may_end.set()

    await asyncio.wait_for(stream({}, stays, send), 10)
    assert sent[1]["body"] == b": keep-alive\n\n"

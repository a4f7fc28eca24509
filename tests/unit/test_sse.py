"""Frames to the byte, and streams that are ended from outside."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any

import pytest
from exchanges import make_exchange, stays
from starlette.types import Message, Receive

from service.api.client import ClientGone
from service.api.exchange import Exchange
from service.api.problems import Problem
from service.api.sse import EventStream, frame
from service.errors import DeadlineExceeded
from service.tasks.calls import GenerateResult, Timings, Usage
from service.tasks.events import Done, Event, Token


def test_a_frame_is_one_data_line_and_an_empty_one() -> None:
    assert frame({"a": 1}) == b'data: {"a":1}\n\n'


def test_a_native_frame_names_its_type() -> None:
    assert frame({"a": 1}, "token") == b'event: token\ndata: {"a":1}\n\n'


@pytest.mark.parametrize("text", ["\n", "\r\n", "\n\ndata: x", "\u2028", "\0", "计算机", "\U0001f600", '"'])
def test_no_text_breaks_out_of_its_frame(text: str) -> None:
    data = frame({"text": text}).decode()
    assert data.count("\n") == 2 and "\r" not in data
    assert json.loads(data.removeprefix("data: ")) == {"text": text}


# ---- ends -----------------------------------------------------------------------------------------------

DONE = Done(GenerateResult(1, (), Usage(1, 1, 0, 0), Timings(0, 0, 0, 0)))


class Work:
    """A task with two events, the last of which may never come; notes whether it was left."""

    def __init__(self, is_endless: bool = False) -> None:
        self.is_endless, self.is_left = is_endless, False

    async def __aenter__(self) -> AsyncIterator[Event]:
        return self.events()

    async def __aexit__(self, *_: object) -> None:
        self.is_left = True

    async def events(self) -> AsyncIterator[Event]:
        yield Token(0, "a")
        await (asyncio.Event().wait() if self.is_endless else asyncio.sleep(0))
        yield DONE


class Names:
    """Frames that say what they are."""

    def of(self, event: Event) -> Iterable[bytes]:
        return [b"done|" if event is DONE else b"token|"]

    def of_problem(self, problem: Problem, request_id: str) -> Iterable[bytes]:
        return [f"error {problem.code}|".encode()]


class Socket:
    """Takes messages; holds back those with a certain frame until it is let go."""

    def __init__(self, held: bytes = b"-") -> None:
        self.held, self.body = held, b""
        self.holds, self.may_go = asyncio.Event(), asyncio.Event()

    async def send(self, message: Message) -> None:
        body = message.get("body", b"")
        if self.held in body:
            self.holds.set()
            await self.may_go.wait()
        self.body += body


async def stream_of(work: Work, receive: Receive = stays) -> tuple[EventStream, Exchange]:
    exchange = make_exchange(receive)
    task: Any = work
    events = await exchange.job.enter_async_context(task)
    return EventStream(events, Names(), exchange), exchange


def gone_after(ticks: int) -> Receive:
    """A `receive` that tells of the client's leaving after so many turns of the event loop."""

    async def receive() -> Message:
        for _ in range(ticks):
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    return receive


@pytest.mark.asyncio
@pytest.mark.parametrize("ticks", range(12))
async def test_no_task_is_left_whenever_the_client_leaves(ticks: int) -> None:
    work = Work()
    before = asyncio.all_tasks()
    with suppress(ClientGone):
        stream, _ = await stream_of(work, gone_after(ticks))
        await stream({}, stays, Socket().send)
    await asyncio.sleep(0)
    assert (asyncio.all_tasks() - before, work.is_left) == (set(), True)


@pytest.mark.asyncio
async def test_a_deadline_while_the_last_frame_is_written_adds_no_other_one() -> None:
    (stream, exchange), socket = await stream_of(Work()), Socket(held=b"done")
    sending = asyncio.create_task(stream({}, stays, socket.send))
    await socket.holds.wait()
    exchange.fail(DeadlineExceeded())
    socket.may_go.set()
    await sending
    assert (socket.body, exchange.outcome) == (b"token|done|", "")


@pytest.mark.asyncio
async def test_a_deadline_before_the_last_frame_makes_it() -> None:
    (stream, exchange), socket = await stream_of(Work(is_endless=True)), Socket(held=b"token")
    sending = asyncio.create_task(stream({}, stays, socket.send))
    await socket.holds.wait()
    exchange.fail(DeadlineExceeded())
    socket.may_go.set()
    await sending
    assert (socket.body, exchange.outcome) == (b"token|error deadline_exceeded|", "deadline_exceeded")


@pytest.mark.asyncio
async def test_a_job_whose_request_ends_before_its_stream_begins_is_left() -> None:
    work = Work()
    stream, exchange = await stream_of(work)
    exchange.fail(DeadlineExceeded())
    with pytest.raises(DeadlineExceeded):
        await stream({}, stays, Socket().send)
    assert work.is_left

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

from service.api.chat import ChatFrames
from service.api.chat_schemas import ChatBody
from service.api.client import ClientGone
from service.api.exchange import Exchange
from service.api.openai import CompletionFrames
from service.api.openai_frames import OpenAIFrames
from service.api.openai_schemas import CompletionBody
from service.api.problems import Problem
from service.api.replies import NativeFrames
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


TEXTS = ["Hi", " there", '"\n', "\0", "\u2028\x85", "计算机", "\U0001f600"]
TURNS = [{"role": "user", "content": "Hi"}]
HEAD = {"id": "cmpl-1", "model": "small"}


def openai_frames(kind: str, options: dict[str, bool] | None) -> OpenAIFrames:
    if kind == "chat":
        return ChatFrames(HEAD, ChatBody(messages=TURNS, stream=True, stream_options=options))
    return CompletionFrames(HEAD, CompletionBody(prompt="Hi", stream=True, stream_options=options))


@pytest.mark.parametrize("options", [None, {"include_usage": True}])
@pytest.mark.parametrize("kind", ["completion", "chat"])
def test_frames_of_texts_are_to_the_byte_what_encoding_each_of_them_gives(
    kind: str, options: dict[str, bool] | None
) -> None:
    frames, shapes = openai_frames(kind, options), openai_frames(kind, options)
    events = [Token(index, text) for text in TEXTS for index in (0, 1)]
    events += [Token(0, "", finish_reason="stop"), Token(1, "end", finish_reason="length")]
    beginning = {**HEAD, "usage": None} if options else HEAD
    for event in events:
        expected = [frame({**beginning, "choices": [choice]}) for choice in shapes.choices(event)]
        assert list(frames.of(event)) == expected


@pytest.mark.parametrize("text", TEXTS)
def test_a_native_frame_of_a_text_is_to_the_byte_what_encoding_it_gives(text: str) -> None:
    frames = NativeFrames("gen-1", "small")
    assert list(frames.of(Token(3, text))) == [frame({"index": 3, "text": text}, "token")]


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


class Talk(Work):
    """A task with some tokens, one in each turn of the event loop."""

    async def events(self) -> AsyncIterator[Event]:
        for _ in range(3):
            yield Token(0, "a")
            await asyncio.sleep(0)
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


@pytest.mark.asyncio
async def test_a_client_with_room_gets_the_same_frames() -> None:
    (stream, exchange), socket = await stream_of(Work()), Socket()
    exchange.client.has_room = lambda: True
    await stream({}, stays, socket.send)
    assert socket.body == b"token|done|"


@pytest.mark.asyncio
async def test_a_frame_that_is_being_written_is_not_written_again_once_there_is_room() -> None:
    (stream, exchange), socket = await stream_of(Talk()), Socket(held=b"token")
    sending = asyncio.create_task(stream({}, stays, socket.send))
    await socket.holds.wait()
    exchange.client.has_room = lambda: True  # before the write that waited has its turn
    socket.held = b"-"
    await asyncio.sleep(0)
    socket.may_go.set()
    await sending
    assert socket.body == b"token|" * 3 + b"done|"

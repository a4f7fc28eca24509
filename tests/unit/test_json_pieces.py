"""JSON in pieces: the same bytes as at once, with turns for others in between."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from service.api.client import ClientGone
from service.api.json_pieces import compact, in_pieces
from service.api.json_reply import LARGE_REPLY_BYTES, json_response
from service.api.sse import frame, frame_in_pieces

OBJECTS: list[dict[str, Any]] = [
    {},
    {"a": 1},
    {"choices": []},
    {"choices": [{"text": '计"\n'}]},
    {"id": "x", "choices": [{"i": 0}, {"i": 1}, [2], None], "usage": {"n": 3}, "more": ["a"]},
    {"first": [1, 2], "second": [3]},
]


def with_iterators(value: dict[str, Any]) -> dict[str, Any]:
    return {name: iter(item) if isinstance(item, list) else item for name, item in value.items()}


@pytest.mark.parametrize("value", OBJECTS)
def test_pieces_joined_are_the_json_made_at_once(value: dict[str, Any]) -> None:
    assert "".join(in_pieces(with_iterators(value))) == compact(value)


@pytest.mark.parametrize("value", OBJECTS)
def test_a_frame_in_pieces_is_the_frame_made_at_once(value: dict[str, Any]) -> None:
    assert b"".join(frame_in_pieces(with_iterators(value), "done")) == frame(value, "done")


@pytest.mark.parametrize("character", ["\x85", "\u2028", "\u2029"])
def test_what_ends_a_line_for_some_is_escaped(character: str) -> None:
    text = f"one{character}é\n"
    assert compact({"text": text}).splitlines() == [compact({"text": text})]
    assert json.loads(compact({character: text})) == {character: text}
    assert len(frame({"text": text}, "token").decode().splitlines()) == 3


@pytest.mark.asyncio
async def test_others_have_their_turn_between_two_elements() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def elements() -> Any:
        for place in range(10):
            seen.append(turns)
            yield place

    seen: list[int] = []
    other = asyncio.create_task(count())
    reply = await json_response({"choices": elements()})
    assert reply.body == b'{"choices":[0,1,2,3,4,5,6,7,8,9]}'
    other.cancel()
    assert seen == sorted(set(seen)) and len(seen) == 10


class Exchange:
    """The part of an exchange that a reply needs."""

    def __init__(self, send_timeout_s: float = 10.0) -> None:
        self.service = SimpleNamespace(settings=SimpleNamespace(send_timeout_s=send_timeout_s))

    async def run(self, work: Any) -> Any:
        return await work


def long_choices(made: list[int]) -> Any:
    """Ten elements of more than half of what is sent at once."""
    for index in range(10):
        made.append(index)
        yield "x" * (LARGE_REPLY_BYTES * 2 // 3)


@pytest.mark.asyncio
async def test_a_large_reply_is_made_while_it_is_sent() -> None:
    sent, made, made_when_sent = [], [], []

    async def send(message: Any) -> None:
        sent.append(message)
        made_when_sent.append(len(made))

    reply = await json_response({"choices": long_choices(made), "end": 1})
    assert len(made) == 2
    await reply({"type": "http", "textgen.exchange": Exchange()}, None, send)  # type: ignore[arg-type]
    assert "content-length" not in reply.headers
    assert (
        b"".join(m.get("body", b"") for m in sent)
        == compact({"choices": list(long_choices([])), "end": 1}).encode()
    )
    assert made_when_sent[:5] == [2, 2, 3, 4, 5]
    assert not sent[-1].get("more_body", False) and all(m["more_body"] for m in sent[1:-1])


@pytest.mark.asyncio
async def test_who_does_not_take_a_large_reply_is_gone() -> None:
    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    reply = await json_response({"choices": long_choices([])})
    with pytest.raises(ClientGone):
        await reply({"type": "http", "textgen.exchange": Exchange(0.001)}, None, send)  # type: ignore[arg-type]

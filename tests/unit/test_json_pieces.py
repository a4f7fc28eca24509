"""JSON in pieces: the same bytes as at once, with turns for others in between."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from service.api.json_pieces import compact, encoded, in_pieces
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
    assert await encoded({"choices": elements()}) == b'{"choices":[0,1,2,3,4,5,6,7,8,9]}'
    other.cancel()
    assert seen == sorted(set(seen)) and len(seen) == 10

"""What a body may hold, and what all bodies together may."""

import json
import random
from typing import Any

import pytest

from service.api.bodies import (
    FREE_BODY_BYTES,
    MAX_PARTS,
    MAX_VALUES,
    SMALL_BODY_BYTES,
    BodyRoom,
    parse_json,
)
from service.api.client import Client
from service.api.problems import HttpProblem
from service.errors import QueueFull


def with_parts(count: int, rng: random.Random) -> bytes:
    """JSON with so many arrays, objects and names, between strings that hold what looks like more of them."""
    noise = "".join(rng.choices('[{:,\\" é', k=50))
    items: list[object] = []
    left = count - 1  # the array around them
    while left:
        kind = rng.choice(["array", "object", "string"])
        if kind == "object" and left > 1:
            items.append({noise: 1})
            left -= 2
        elif kind == "array":
            items.append([])
            left -= 1
        else:
            items.append(noise)
    return json.dumps(items, ensure_ascii=rng.random() < 0.5).encode()


@pytest.mark.parametrize("seed", range(4))
def test_parts_are_counted_exactly(seed: int) -> None:
    rng = random.Random(seed)
    assert isinstance(parse_json(with_parts(MAX_PARTS, rng)), list)
    with pytest.raises(HttpProblem, match=str(MAX_PARTS)):
        parse_json(with_parts(MAX_PARTS + 1, rng))


def test_values_are_counted_where_they_are_no_text() -> None:
    most = b"[" + b"1," * MAX_VALUES + b"1]"
    assert len(parse_json(most)) == MAX_VALUES + 1
    with pytest.raises(HttpProblem, match=f"{MAX_VALUES} values"):
        parse_json(b"[0," + most[1:])
    assert parse_json(b'["' + b"," * (MAX_VALUES + 1) + b'"]') == ["," * (MAX_VALUES + 1)]


@pytest.mark.parametrize("data", [b'"' + b"[" * 30_000, b'"\\' + b"[" * 30_000, b'"' + b'\\"[' * 30_000])
def test_a_string_without_end_is_said_to_be_broken(data: bytes) -> None:
    with pytest.raises(HttpProblem, match="not JSON"):
        parse_json(data)


def test_room_is_given_back() -> None:
    room = BodyRoom(1000)
    for _ in range(3):
        with room.holding("") as hold:
            hold(SMALL_BODY_BYTES + 400)
            hold(SMALL_BODY_BYTES + 1000)
            with room.holding("") as other:
                other(SMALL_BODY_BYTES)
                with pytest.raises(QueueFull):
                    other(SMALL_BODY_BYTES + 1)


def test_one_key_leaves_room_for_the_others() -> None:
    room = BodyRoom(1000)
    with room.holding("one") as one, room.holding("other") as other:
        one(SMALL_BODY_BYTES + 750)
        with pytest.raises(QueueFull, match="this key"):
            one(SMALL_BODY_BYTES + 751)
        other(SMALL_BODY_BYTES + 250)
        with pytest.raises(QueueFull, match="at once"):
            other(SMALL_BODY_BYTES + 251)


def test_small_bodies_have_only_so_much_room_that_large_ones_cannot_fill() -> None:
    room = BodyRoom(1000, small=SMALL_BODY_BYTES)
    with room.holding("") as first, room.holding("") as second:
        first(SMALL_BODY_BYTES + 1000)
        second(2 * FREE_BODY_BYTES)
        with pytest.raises(QueueFull, match="too many bodies"):
            second(2 * FREE_BODY_BYTES + 1)
        with room.holding("") as third:
            third(FREE_BODY_BYTES)  # as much as its headers may be
    with room.holding("") as again:
        again(SMALL_BODY_BYTES + 1000)


@pytest.mark.asyncio
async def test_a_body_of_single_bytes_is_kept_in_one_piece() -> None:
    sizes: list[int] = []
    pieces = iter(b"abc")

    async def receive() -> dict[str, Any]:
        piece = next(pieces)
        return {"type": "http.request", "body": bytes([piece]), "more_body": piece != ord("c")}

    scope = {"type": "http", "headers": [(b"transfer-encoding", b"chunked")]}
    client = Client(scope, receive, receive, "id")  # type: ignore[arg-type]  # nothing is sent
    await client.read_body(sizes.append, 10, 1.0)
    assert (await client.receive())["body"] == b"abc"
    assert sizes == [1, 2, 3]


@pytest.mark.asyncio
async def test_a_body_that_is_refused_is_let_go_at_once() -> None:
    """The error's trace lives on while the client is answered."""
    sizes = iter([10_000, 10_001])

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": bytes(next(sizes)), "more_body": True}

    def hold(size: int) -> None:
        if size > 10_000:
            raise QueueFull("too many")

    scope = {"type": "http", "headers": [(b"transfer-encoding", b"chunked")]}
    client = Client(scope, receive, receive, "id")  # type: ignore[arg-type]  # nothing is sent
    with pytest.raises(QueueFull) as caught:
        await client.read_body(hold, 10**6, 1.0)
    of_frames = [entry.frame.f_locals.values() for entry in caught.traceback]
    assert not [v for values in of_frames for v in values if isinstance(v, bytes | bytearray) and v]

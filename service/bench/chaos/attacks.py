"""What hostile clients send, and what the contract answers. `hostile` sends it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass

from service.bench.chaos.raw import head, post

MARK = "MARK7f3a"  # must not come back
_GIGABYTE = 1 << 30

Pieces = AsyncIterator[bytes] | Iterable[bytes]


@dataclass(frozen=True, slots=True)
class Attack:
    """Something unkind to send.

    Args:
        name: for the reader.
        pieces: makes what is sent.
        wanted: allowed pairs of status and code; an empty code: not looked at; status 0: just closed.
        within_s: how long the answer may take.
        max_bytes: how much the server may take in before it answers.
    """

    name: str
    pieces: Callable[[], Pieces]
    wanted: tuple[tuple[int, str], ...]
    within_s: float = 0.5
    max_bytes: int = 64 << 20


def _field(name: str, value: str) -> Callable[[], Pieces]:
    """A body with one raw JSON value beside a prompt."""
    return lambda: [post("/generate", f'{{"prompt": "a", "max_new_tokens": 2, "{name}": {value}}}'.encode())]


def _whole(data: bytes) -> Callable[[], Pieces]:
    return lambda: [data]


def _completion(**fields: object) -> Callable[[], Pieces]:
    return _whole(post("/v1/completions", json.dumps(fields).encode()))


async def _drip(start: bytes, drop: bytes, every_s: float, seconds: float) -> AsyncIterator[bytes]:
    yield start
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        await asyncio.sleep(every_s)
        yield drop


def _flood(start: bytes, piece: bytes, num_bytes: int) -> Iterator[bytes]:
    yield start
    for _ in range(num_bytes // len(piece)):
        yield piece


_CHUNKED = head("/generate", ["Transfer-Encoding: chunked"])
_BIG = b"10000\r\n" + b"a" * 65536 + b"\r\n"
_INVALID = ((422, "invalid_request"),)
_BAD = ((400, "bad_request"),)
_BROKEN = ((400, ""), (0, ""))

ATTACKS: tuple[Attack, ...] = (
    Attack(
        "1 GB body, announced",
        _whole(head("/generate", [f"Content-Length: {_GIGABYTE}"])),
        ((413, "body_too_large"),),
    ),
    Attack(
        "1 GB body, announced and sent",
        lambda: _flood(head("/generate", [f"Content-Length: {_GIGABYTE}"]), b"a" * 65536, _GIGABYTE),
        ((413, "body_too_large"),),
    ),
    Attack(
        "1 GB body, chunked",
        lambda: _flood(_CHUNKED, _BIG, _GIGABYTE),
        ((413, "body_too_large"),),
        2.0,
    ),
    Attack(
        "a body that drips",
        lambda: _drip(head("/generate", ["Content-Length: 1000"]), b"a", 0.2, 10),
        ((408, "request_timeout"),),
        4.0,
    ),
    Attack(
        "a body that never comes",
        _whole(head("/generate", ["Content-Length: 1000"])),
        ((408, "request_timeout"),),
        4.0,
    ),
    Attack(
        "headers that drip",
        lambda: _drip(b"POST /generate HTTP/1.1\r\nHost: a\r\nX-A: ", b"a", 0.2, 14),
        ((408, ""), (0, "")),
        12.0,
    ),
    Attack(
        "10,000 bytes of headers",
        _whole(post("/generate", b"{}", [f"X-{i}: {MARK * 12}" for i in range(100)])),
        ((431, "headers_too_large"),),
    ),
    Attack(
        "endless headers",
        lambda: _flood(b"POST /generate HTTP/1.1\r\nX-A: ", b"a" * 65536, 64 << 20),
        ((431, ""), (400, ""), (0, "")),
        2.0,
    ),
    Attack(
        "endless trailers",
        lambda: _flood(_CHUNKED + b"2\r\n{}\r\n0\r\nX-A: ", b"a" * 65536, 64 << 20),
        ((431, "headers_too_large"),),
        2.0,
    ),
    Attack(
        "trailers that drip",
        lambda: _drip(_CHUNKED + b"2\r\n{}\r\n0\r\nX-A: ", b"a", 0.2, 10),
        ((408, "request_timeout"),),
        4.0,
    ),
    Attack(
        "10,000 requests at once on one connection",
        _whole(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n" * 10_000),
        ((0, ""),),
    ),
    Attack(
        "a URL of 70,000 bytes",
        _whole(post("/" + "a" * 70_000, b"{}")),
        ((431, ""), (414, ""), (404, ""), (400, "")),
    ),
    Attack("a stop string of a million characters", _field("stop", json.dumps(MARK * 125_000)), _INVALID),
    Attack(
        "a million token ids",
        _completion(prompt=[1] * 1_000_000),
        ((422, ""), (400, "")),
        1.0,
    ),
    Attack(
        "800,000 arrays of one token id",
        _completion(prompt=[[1]] * 800_000),
        _BAD,
    ),
    Attack(
        "a million stop token ids",
        _completion(prompt="a", stop_token_ids=[1] * 1_000_000),
        ((400, "invalid_request"),),
    ),
    Attack("a million stop strings", _field("stop", json.dumps(["a"] * 800_000)), _INVALID),
    Attack("JSON 100,000 arrays deep", _whole(post("/generate", b'{"prompt": ' + b"[" * 100_000)), _BAD),
    Attack(
        "JSON 100,000 arrays deep and closed",
        _field("stop", "[" * 100_000 + "]" * 100_000),
        (*_BAD, *_INVALID),
    ),
    Attack("NaN", _field("temperature", "NaN"), (*_BAD, *_INVALID)),
    Attack("Infinity", _field("temperature", "1e999"), (*_BAD, *_INVALID)),
    Attack("a seed of 2^70", _field("seed", str(2**70)), _INVALID),
    Attack("a number of 5,000 digits", _field("seed", "9" * 5000), (*_BAD, *_INVALID)),
    Attack("true for a number", _field("top_k", "true"), _INVALID),
    Attack("an unknown field of 10,000 characters", _field(MARK * 1250, "1"), _INVALID),
    Attack("a lone surrogate", _field("stop", '"\\ud800"'), (*_BAD, *_INVALID)),
    Attack(
        "a lone surrogate as the prompt",
        _whole(post("/generate", b'{"prompt": "\\udfff"}')),
        (*_BAD, *_INVALID),
    ),
    Attack(
        "an escaped NUL as the prompt",
        _whole(post("/generate", b'{"prompt": "\\u0000", "max_new_tokens": 2}')),
        ((200, ""), *_INVALID),
    ),
    Attack("a NUL byte in the JSON", _whole(post("/generate", b'{"prompt": "\0"}')), _BAD),
    Attack("bytes that are not UTF-8", _whole(post("/generate", b'{"prompt": "\xff\xfe"}')), _BAD),
    Attack("no body", _whole(post("/generate", b"")), (*_BAD, *_INVALID)),
    Attack("an array for a body", _whole(post("/generate", b"[]")), (*_BAD, *_INVALID)),
    Attack(
        "the same key twice",
        _whole(post("/generate", b'{"prompt": "a", "prompt": "b", "max_new_tokens": 2}')),
        ((200, ""), *_BAD, *_INVALID),
    ),
    Attack(
        "a content type of XML",
        _whole(post("/generate", b"<a/>").replace(b"application/json", b"text/xml")),
        ((415, "unsupported_media_type"),),
    ),
    Attack(
        "a compressed body",
        _whole(post("/generate", b"\x1f\x8b", ["Content-Encoding: gzip"])),
        ((415, ""), (400, "")),
    ),
    Attack("not HTTP", _whole(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"), _BROKEN),
    Attack(
        "an unknown method",
        _whole(b"BREW /generate HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
        (*_BROKEN, (405, "")),
    ),
    Attack("a negative length", _whole(head("/generate", ["Content-Length: -5"])), _BROKEN),
    Attack(
        "two lengths", _whole(head("/generate", ["Content-Length: 2", "Content-Length: 3"]) + b"{}"), _BROKEN
    ),
    Attack(
        "a length and chunks",
        _whole(head("/generate", ["Content-Length: 2", "Transfer-Encoding: chunked"]) + b"0\r\n\r\n"),
        (*_BROKEN, *_INVALID),
    ),
    Attack(
        "a chunk size that is none",
        _whole(_CHUNKED + b"zz\r\n{}\r\n"),
        _BROKEN,
    ),
    Attack("a NUL in a header", _whole(head("/generate", ["X-A: a\0b"])), _BROKEN),
    Attack(
        "a request id of 10,000 bytes",
        _whole(post("/generate", b"{}", [f"X-Request-ID: {MARK * 100}"])),
        _INVALID,
    ),
)

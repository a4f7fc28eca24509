"""Sockets without manners: bytes are sent as they stand, and what comes back is read as far as it comes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

_ANSWER_S = 15.0
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """What came back.

    Args:
        status: 0 when the server closed the connection without an answer.
        code: of the error body, in either dialect.
        text: the whole answer.
        seconds: from the last byte needed for it, or the first sent, to its end.
        num_sent: bytes sent until it came.
    """

    status: int
    code: str
    text: str
    seconds: float
    num_sent: int


def post(path: str, body: bytes, headers: Iterable[str] = ()) -> bytes:
    """A request with a JSON body and its true length."""
    return head(path, [f"Content-Length: {len(body)}", *headers]) + body


def head(path: str, headers: Iterable[str] = ()) -> bytes:
    """The head of a POST; the connection ends after the answer."""
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    return "\r\n".join([*lines, "Connection: close", *headers, "", ""]).encode("latin-1")


async def exchange(port: int, pieces: AsyncIterator[bytes] | Iterable[bytes]) -> RawAnswer:
    """Send pieces until an answer begins or they end, then read the answer.

    Args:
        port: of the server, on 127.0.0.1.
        pieces: what is sent; an asynchronous iterator may take its time.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began_at = time.monotonic()
    sent = [0]
    sending = asyncio.create_task(_send(writer, pieces, sent))
    try:
        answer = await asyncio.wait_for(_read(reader), _ANSWER_S)
    except TimeoutError:
        answer = b""
    seconds = time.monotonic() - began_at
    sending.cancel()
    with suppress(asyncio.CancelledError, ConnectionError):
        await sending
    writer.transport.abort()
    return _parse(answer, seconds, sent[0])


async def _send(
    writer: asyncio.StreamWriter, pieces: AsyncIterator[bytes] | Iterable[bytes], sent: list[int]
) -> None:
    async for piece in _each(pieces):
        writer.write(piece)
        await writer.drain()
        sent[0] += len(piece)


async def _each(pieces: AsyncIterator[bytes] | Iterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(pieces, AsyncIterator):
        async for piece in pieces:
            yield piece
    else:
        for piece in pieces:
            yield piece


async def _read(reader: asyncio.StreamReader) -> bytes:
    """Up to the end of the connection or of a body of known length."""
    data = b""
    while b"\r\n\r\n" not in data or len(data) < _length(data):
        try:
            piece = await reader.read(_CHUNK)
        except ConnectionError:
            break
        if not piece:
            break
        data += piece
    return data


def _length(data: bytes) -> int:
    """Bytes of the whole answer, where its head tells; else more than there will be."""
    top, _, _ = data.partition(b"\r\n\r\n")
    for line in top.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(top) + 4 + int(line.split(b":")[1])
    return 1 << 40


def _parse(answer: bytes, seconds: float, num_sent: int) -> RawAnswer:
    text = answer.decode("utf-8", "replace")
    parts = text.split(" ", 2)
    status = int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0
    return RawAnswer(status, _code(text.partition("\r\n\r\n")[2]), text, seconds, num_sent)


def _code(body: str) -> str:
    try:
        answer: Any = json.loads(body)
        return str(answer["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return ""

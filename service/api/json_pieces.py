"""Compact JSON made piece by piece, so that a reply of megabytes holds up nobody.

Encoding is one call that nothing can interrupt. An object whose value is an iterator is encoded element by
element; `json_reply` and `sse` let the event loop turn between them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from starlette.responses import JSONResponse

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))  # making one costs as much as a frame

# JSON may hold these as they are, but `str.splitlines` and some readers of event streams part lines there.
_LINE_ENDS = {"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def compact(value: Any) -> str:
    """JSON without spaces, texts as they are but for what some clients take for the end of a line."""
    text = _ENCODER.encode(value)
    if text.isascii():
        return text
    for character, escaped in _LINE_ENDS.items():  # they stand in strings only
        text = text.replace(character, escaped)
    return text


class CompactResponse(JSONResponse):
    """A reply of compact JSON."""

    def render(self, content: Any) -> bytes:
        """See `compact`."""
        return compact(content).encode()


def in_pieces(value: Mapping[str, Any]) -> Iterator[str]:
    """The JSON of an object; each element of a value that is an iterator ends a piece.

    Returns:
        Texts that make the JSON when joined.
    """
    text = "{"
    for index, (name, item) in enumerate(value.items()):
        text += f"{',' if index else ''}{compact(name)}:"
        if not isinstance(item, Iterator):
            text += compact(item)
            continue
        text += "["
        for element_index, element in enumerate(item):
            yield f"{text}{',' if element_index else ''}{compact(element)}"
            text = ""
        text += "]"
    yield text + "}"


_AT_ONCE = 4096  # items that one call encodes


def compact_in_parts(value: Any) -> str:
    """As `compact`, for a thread: no call holds the interpreter for long, however many items there are."""
    if isinstance(value, dict):
        return (
            "{" + ",".join(f"{compact(name)}:{compact_in_parts(item)}" for name, item in value.items()) + "}"
        )
    if not isinstance(value, list):
        return compact(value)
    if any(isinstance(item, dict | list) for item in value[:1]):
        return "[" + ",".join(map(compact_in_parts, value)) + "]"
    parts = (compact(value[start : start + _AT_ONCE])[1:-1] for start in range(0, len(value), _AT_ONCE))
    return "[" + ",".join(parts) + "]"


async def taking_turns(pieces: Iterable[bytes]) -> list[bytes]:
    """All pieces; others have their turn on the event loop while they are made."""
    made = []
    for piece in pieces:
        made.append(piece)
        await asyncio.sleep(0)
    return made

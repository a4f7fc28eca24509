"""Replies of JSON that hold up nobody, however large: made in turns, and sent while they are made.

Read `replies` for what they say.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api.client import ClientGone
from service.api.exchange import Exchange
from service.api.json_pieces import compact, compact_in_parts, in_pieces

LARGE_REPLY_BYTES = 2**20
_SMALL = 500  # items, made in a millisecond or two


async def json_response(value: Mapping[str, Any]) -> Response:
    """A reply of compact JSON, made in turns with what else is to be done, a large one while it is sent."""
    pieces, ready, size = map(str.encode, in_pieces(value)), [], 0
    for piece in pieces:
        ready.append(piece)
        size += len(piece)
        if size > LARGE_REPLY_BYTES:
            return LargeResponse(itertools.chain([b"".join(ready)], pieces))
        await asyncio.sleep(0)
    return Response(b"".join(ready), media_type="application/json")


async def json_of(exchange: Exchange, make: Callable[[], Any], size: int) -> Response:
    """A reply of any JSON, made on the event loop or, where it may be large, in a thread.

    Args:
        exchange: the request.
        make: gives what the reply says.
        size: how many items that has, about.
    """
    if size <= _SMALL:
        return Response(compact(make()).encode(), media_type="application/json")
    text = await exchange.run(asyncio.to_thread(lambda: compact_in_parts(make())))
    return Response(text.encode(), media_type="application/json")


class LargeResponse(Response):
    """A reply that is never whole in memory: each piece is made in a thread when the one before it was taken.

    Args:
        pieces: of its JSON.
    """

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__(media_type="application/json")
        del self.headers["content-length"]
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it while the client takes it and there is time."""
        exchange: Exchange = scope["textgen.exchange"]
        await exchange.run(self._send_all(send, exchange.service.settings.send_timeout_s))

    async def _send_all(self, send: Send, timeout_s: float) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        while (piece := await asyncio.to_thread(next, self._pieces, None)) is not None:
            try:
                async with asyncio.timeout(timeout_s):
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            except TimeoutError as error:
                raise ClientGone from error
        await send({"type": "http.response.body", "body": b""})

"""The client's side of one request: what it sends, whether it is still there, and what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Receive, Scope, Send

from service.api.problems import HttpProblem

DRAIN_S = 2.0


class ClientGone(Exception):
    """The client left, or stopped reading; there is nobody to answer."""


class Client:
    """See the module's docstring.

    Args:
        scope, receive, send: of the request, as the server gave them.
        request_id: goes back with the answer.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self.status = 0  # of the answer; 0 until it starts
        self._scope, self._receive, self._send, self._request_id = scope, receive, send, request_id
        # whether a piece of the answer would be taken without a wait; False where the server does not tell
        self.has_room: Callable[[], bool] = scope.get("textgen.has_room", bool)
        headers = dict(scope["headers"])
        self._is_body_left = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        self._may_drain = b"expect" not in headers  # a client that waits for 100 sends nothing to drain
        self._body: bytes | None = None  # that was read here, and that the application has not read yet

    # ---- what it sends ------------------------------------------------------------------------------------

    async def receive(self) -> Message:
        """What the application reads: the body that `read_body` has read, or what comes."""
        if self._body is None:
            return await self._next()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def _next(self) -> Message:
        """Wait for what comes, and note the end of the body."""
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._is_body_left = False
        return message

    async def read_body(self, hold: Callable[[int], None], limit: int, timeout_s: float) -> None:
        """Read a whole body, counting as it comes; `receive` gives it to the application.

        Args:
            hold: is told how many bytes there are by now, see `bodies.BodyRoom`.
            limit: maximum bytes.
            timeout_s: for all of it.

        Raises:
            HttpProblem: 413, more than `limit` bytes; 408, not complete after `timeout_s`.
            QueueFull: there is no room for it.
            ClientGone: the client left within it, or right behind it.
        """
        body, piece, is_more = bytearray(), b"", True  # in one piece: a client may send single bytes
        try:
            async with asyncio.timeout(timeout_s):
                while is_more:
                    message = await self._next()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    piece = message.pop("body", b"")
                    if len(body) + len(piece) > limit:
                        raise HttpProblem("body_too_large", f"the body is larger than {limit} bytes")
                    hold(len(body) + len(piece))
                    body += piece
                    is_more = self._is_body_left
        except Exception as error:
            body, piece = bytearray(), b""  # else the trace would keep them until all is said
            if isinstance(error, TimeoutError):
                text = f"the body did not arrive within {timeout_s:g} s"
                raise HttpProblem("request_timeout", text) from None
            raise
        is_gone = self._scope.get("textgen.is_gone")  # the server may know before the event loop does
        if is_gone is not None and is_gone():
            raise ClientGone
        self._body = bytes(body)

    # ---- what it is told ----------------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        """Pass on the answer with its request id; a body nobody read ends the connection, politely."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self._request_id
            if self._is_body_left:
                headers["Connection"] = "close"
        elif self._is_body_left and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            with suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_S):  # a reset connection would cost it the answer
                    while self._is_body_left and self._may_drain:
                        await self._next()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        """Send a whole answer of JSON."""
        fields = {"content-type": "application/json", "content-length": str(len(body)), **headers}
        raw = [(name.lower().encode(), value.encode()) for name, value in fields.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})

    async def cut(self) -> None:
        """Drop the connection, so that a client that reads nothing holds no buffer; server permitting."""
        abort: Callable[[], Any] | None = self._scope.get("textgen.abort")
        if abort is not None:
            abort()
            await asyncio.sleep(0)  # lets the server notice before this request returns


async def end_tasks(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have cleaned up; how they ended is read elsewhere. All are cancelled
    at once: who waits here may be cancelled, too, and must leave none behind.
    """
    running = [task for task in tasks if not task.done()]
    for task in running:
        task.cancel()
    if running:
        await asyncio.wait(running)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # marks it as seen

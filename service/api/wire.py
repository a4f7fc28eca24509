"""uvicorn's HTTP/1.1 protocol with the contract's answers to what never becomes a request.

Broken HTTP, headers that do not end and headers that do not come are answered here, in the one error body;
such bytes have no route, so they are not counted as requests. A request may also drop its own connection
(`scope["textgen.abort"]`), which ASGI has no word for.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.gate import MAX_HEADER_BYTES
from service.api.problems import STATUSES, Problem
from service.api.security import request_id_from

HEADER_TIMEOUT_S = 15.0
CLOSE_TIMEOUT_S = 30.0
_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class WireProtocol(HttpToolsProtocol):
    """One connection. See the module's docstring."""

    _header_bytes = 0  # of the request whose headers are being read; 0 between requests
    _header_timer: asyncio.TimerHandle | None = None
    _is_refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start waiting for headers."""
        super().connection_made(transport)  # type: ignore[arg-type]  # a stream's, always
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless this connection was refused; count header bytes as they come."""
        if self._is_refused:
            return
        if self._header_timer is not None:
            self._header_bytes += len(data)
        super().data_received(data)
        if self._header_timer is not None and self._header_bytes > MAX_HEADER_BYTES:
            self._refuse("headers_too_large", f"the headers are larger than {MAX_HEADER_BYTES} bytes")

    def on_message_begin(self) -> None:
        """Start a request; give it the means to drop its connection."""
        super().on_message_begin()
        self.scope["textgen.abort"] = self.transport.abort  # type: ignore[typeddict-unknown-key]
        if self._header_timer is None:
            self._await_headers()

    def on_headers_complete(self) -> None:
        """The headers are all there; their size is judged by the application, which knows the route."""
        self._stop_waiting()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer broken HTTP in our words."""
        self._refuse("bad_request", "this is not an HTTP/1.1 request")

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; one that does not even take its last reply is dropped later."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)

    def _await_headers(self) -> None:
        self._header_bytes = 0
        self._header_timer = self.loop.call_later(HEADER_TIMEOUT_S, self._headers_are_late)

    def _stop_waiting(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
        self._header_timer = None

    def _headers_are_late(self) -> None:
        self._header_timer = None
        if self._header_bytes:
            self._refuse("request_timeout", f"the headers did not arrive within {HEADER_TIMEOUT_S:g} s")
        else:
            self.transport.close()

    def _refuse(self, code: str, message: str) -> None:
        """Answer, if a response can still begin, and end the connection."""
        self._is_refused = True
        self._stop_waiting()
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if is_answering or self.transport.is_closing():
            self.transport.abort()  # an answer in the middle of another one would be worse than none
            return
        self.transport.write(_response(code, message))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(1.0, self.transport.abort)  # lets the client read before a reset can hit it


def _response(code: str, message: str) -> bytes:
    """A whole HTTP response with the error body."""
    status = STATUSES[code]
    request_id = request_id_from(None)
    body = Problem(code, message).encoded("native", request_id)
    lines: list[Any] = [
        b"HTTP/1.1 %d %s" % (status, _REASONS[status]),
        b"content-type: application/json",
        b"content-length: %d" % len(body),
        b"x-request-id: " + request_id.encode(),
        b"connection: close",
    ]
    return b"\r\n".join([*lines, b"", body])

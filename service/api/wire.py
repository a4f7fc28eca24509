"""uvicorn's HTTP/1.1 protocol with the contract's answers to what never becomes a request.

Broken HTTP, headers that do not end and headers that do not come are answered here, in the one error body;
such bytes have no route, so they are not counted as requests. Two things that ASGI has no word for are put
into the scope: `textgen.abort` drops the connection, `textgen.is_gone` says whether the client has left, even
if the event loop has not read that yet. Read `gate` next, which uses them.
"""

from __future__ import annotations

import asyncio
import select
import sys
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.api.head import MAX_HEADER_BYTES
from service.api.problems import STATUSES, Problem
from service.api.security import request_id_from

HEADER_TIMEOUT_S = 20.0
CLOSE_TIMEOUT_S = 30.0
WATCH_PAUSED_S = 0.1
MAX_PIPELINED = 100  # requests behind the one that is answered
_REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


def protocol_for(header_timeout_s: float) -> type[WireProtocol]:
    """The protocol with this many seconds for the headers of a request, whatever drips in."""
    return type("WireProtocol", (WireProtocol,), {"header_timeout_s": header_timeout_s})


class WireProtocol(HttpToolsProtocol):
    """One connection. See the module's docstring."""

    header_timeout_s = HEADER_TIMEOUT_S
    _header_bytes = 0  # of the request whose headers are being read; 0 between requests
    _bare_bytes = 0  # received since the headers or the last piece of a body: chunk sizes, trailers
    _header_timer: asyncio.TimerHandle | None = None
    _watcher: asyncio.TimerHandle | None = None  # while requests wait behind the one that is answered
    _has_headers = False  # of the request that is being received
    _is_refused = False
    _running: RequestResponseCycle | None = None  # the request that is being answered; `cycle` is the newest

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start waiting for headers."""
        super().connection_made(transport)  # type: ignore[arg-type]  # a stream's, always
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection; every request that it brought is told, not just the newest."""
        self._stop_waiting()
        super().connection_lost(exc)
        for cycle in (self._running, *(cycle for cycle, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless this connection was refused; count what is no body as it comes."""
        if self._is_refused:
            return
        if self._header_timer is not None:
            self._header_bytes += len(data)
        else:
            self._bare_bytes += len(data)
        self._unset_keepalive_if_required()
        self._feed(data)
        if self._header_timer is None and self.timeout_keep_alive_task is None and not self._is_busy():
            self._await_headers()  # bytes that begin no request, such as empty lines, hold no connection open
        if max(self._header_bytes, self._bare_bytes) > MAX_HEADER_BYTES:
            self._refuse("headers_too_large", f"the headers are larger than {MAX_HEADER_BYTES} bytes")

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("")

    def _without_upgrade(self, rest: bytes) -> None:
        """Read a request that offers HTTP/2 or a web socket again without the offer, as HTTP has it for
        servers that decline: the parser takes it for the end of HTTP and would lose the body.

        Args:
            rest: what came after the request's headers.
        """
        if self._is_refused:
            return
        method = self.parser.get_method()
        if method == b"CONNECT":
            self.send_400_response("")
            return
        lines = [method + b" " + self.url + b" HTTP/" + self.parser.get_http_version().encode()]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self._feed(b"\r\n".join([*lines, b"", rest]))

    def on_message_complete(self) -> None:
        """The body is all there."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def on_message_begin(self) -> None:
        """Start a request; give it the means to drop its connection."""
        super().on_message_begin()
        self._has_headers = False
        self.scope["textgen.abort"] = self._drop  # type: ignore[typeddict-unknown-key]
        self.scope["textgen.is_gone"] = self._is_gone  # type: ignore[typeddict-unknown-key]
        if self._header_timer is None:
            self._await_headers()
            self._header_bytes = 1  # some of what is being fed: it has begun

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; trailers come here too, and are dropped: they must not pass for headers."""
        if not self._has_headers:
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._bare_bytes = 0
        super().on_body(body)

    def on_headers_complete(self) -> None:
        """The headers are all there; their size is judged by the application, which knows the route."""
        if self.parser.should_upgrade() or self._is_refused:
            return  # read again in a moment, see `_without_upgrade`; or never
        self._has_headers = True
        self._stop_waiting()
        self._header_bytes = self._bare_bytes = 0
        super().on_headers_complete()
        if self.pipeline and self._watcher is None:
            self._watch_paused()
        if len(self.pipeline) > MAX_PIPELINED:
            self._refuse("bad_request", "too many requests at once on one connection")
        if self.scope["http_version"] == "1.0":
            _send_unchunked(self.cycle)

    def send_400_response(self, msg: str) -> None:
        """Answer broken HTTP in our words."""
        self._refuse("bad_request", "this is not an HTTP/1.1 request")

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; one that does not even take its last reply is dropped later."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Begin to answer a request."""
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _watch_paused(self) -> None:
        """While a request waits behind another nothing is read, not even the end of the connection: look."""
        self._watcher = None
        if not self.pipeline or self.transport.is_closing():
            return
        if self._is_gone():
            self.transport.abort()
        else:
            self._watcher = self.loop.call_later(WATCH_PAUSED_S, self._watch_paused)

    def _is_busy(self) -> bool:
        """Whether a request is being received or answered."""
        return self._is_refused or (self.cycle is not None and not self.cycle.response_complete)

    def _drop(self) -> None:
        """Drop the connection at once; one that was refused here ends by itself, after its answer."""
        if not self._is_refused:
            self.transport.abort()

    def _is_gone(self) -> bool:
        """Whether the client has closed the connection; asks the socket, which knows before the loop does."""
        if self.transport.is_closing():
            return True
        found = self.transport.get_extra_info("socket")
        return found is not None and _has_hung_up(found.fileno())

    def _await_headers(self) -> None:
        self._header_bytes = 0
        self._header_timer = self.loop.call_later(self.header_timeout_s, self._headers_are_late)

    def _stop_waiting(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
        self._header_timer = None

    def _headers_are_late(self) -> None:
        self._header_timer = None
        if self._is_busy():  # with what came before, and perhaps reading nothing meanwhile
            self._header_timer = self.loop.call_later(self.header_timeout_s, self._headers_are_late)
        elif self._header_bytes:
            text = f"the headers did not arrive within {self.header_timeout_s:g} s"
            self._refuse("request_timeout", text)
        else:
            self.transport.close()

    def _refuse(self, code: str, message: str) -> None:
        """Answer, if a response can still begin, and end the connection; once."""
        if self._is_refused:
            return
        is_answering = self._is_busy() and (self.cycle.response_started or bool(self.pipeline))
        self._is_refused = True
        self._stop_waiting()
        if is_answering or self.transport.is_closing():
            self.transport.abort()  # an answer in the middle of another one would be worse than none
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.waiting_for_100_continue = False  # nothing may follow the answer
            self.cycle.disconnected = True  # its body is broken: the application is told, and not heard
            self.cycle.message_event.set()
        self.transport.write(_response(code, message))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(1.0, self.transport.abort)  # lets the client read before a reset can hit it


def _has_hung_up(descriptor: int) -> bool:
    """Whether the other side of a socket has closed it; False where the system cannot tell."""
    if sys.platform != "linux" or descriptor < 0:
        return False
    poll = select.poll()
    poll.register(descriptor, select.POLLRDHUP)
    return bool(poll.poll(0))


def _send_unchunked(cycle: RequestResponseCycle) -> None:
    """Let a reply without a length end with its connection: HTTP/1.0 knows no chunks."""
    send = cycle.send
    is_open_ended = False

    async def unchunked(message: Any) -> None:
        nonlocal is_open_ended
        if message["type"] == "http.response.start":
            is_open_ended = all(name.lower() != b"content-length" for name, _ in message["headers"])
            if is_open_ended:
                cycle.chunked_encoding = False
        elif is_open_ended:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    cycle.send = unchunked  # type: ignore[method-assign]  # made for each request, asked for when it starts


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

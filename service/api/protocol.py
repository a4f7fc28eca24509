"""uvicorn's HTTP/1.1 protocol with the contract's answers to what never becomes a request.

Broken HTTP, headers that do not end and headers that do not come are answered here, in the one error body;
such bytes have no route, so they are not counted as requests. Three things that ASGI has no word for are put
into the scope: `textgen.abort` drops the connection, `textgen.is_gone` says whether the client has left, even
if the event loop has not read that yet, `textgen.has_room` whether sending need not wait. `client` uses them.
What is overridden is private to uvicorn, so `pyproject.toml` bounds its version. What clients may rely on is
said in `docs/operations.md` ("Overload", "Connections"); for each override a test fails without it, in
`tests/api/test_protocol.py` or `tests/unit/test_protocol_ends.py`.
"""

from __future__ import annotations

import asyncio
import select
import sys
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.api.head import HEALTH_PATHS, MAX_HEADER_BYTES
from service.api.problems import Problem
from service.api.security import request_id_from
from service.api.small_reads import READ_BYTES

CLOSE_TIMEOUT_S = 30.0
LINGER_S = 1.0  # for a refusal to be read before a reset can hit it
MAX_PIPELINED = 100  # requests behind the one that is answered
# Connections beyond the limit that may ask whether the service lives, and how soon they must.
NUM_EXTRA, EXTRA_TIMEOUT_S = 128, 2.0


def protocol_for(
    header_timeout_s: float, max_connections: int, on_refused: Callable[[], None] = lambda: None
) -> type[Protocol]:
    """The protocol with some limits.

    Args:
        header_timeout_s: seconds for the headers of a request, whatever drips in.
        max_connections: open at a time; an idle one gives way to a newcomer, else the newcomer is refused.
        on_refused: told of each that is.
    """
    limits = {"header_timeout_s": header_timeout_s, "max_connections": max_connections}
    return type("Protocol", (Protocol,), {**limits, "on_refused": staticmethod(on_refused)})


class Protocol(HttpToolsProtocol):
    """One connection. See the module's docstring."""

    header_timeout_s: float
    max_connections: int
    on_refused: Callable[[], None]
    _is_extra = False  # whether it is one too many
    _timer: asyncio.TimerHandle | None = None  # while headers are awaited or read
    _is_reading_headers = False
    _bare_bytes = 0  # received since the last headers or piece of a body: headers, chunk sizes, trailers
    _is_refused = False
    _unanswered: tuple[RequestResponseCycle, ...] = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start waiting for headers, which one too many may only bring for a look at the service's health."""
        super().connection_made(transport)  # type: ignore[arg-type]  # a stream's, always
        num_extra = len(self.connections) - self.max_connections
        if num_extra > 0:
            others = (other for other in self.connections if isinstance(other, Protocol))
            if (other := next((each for each in others if each.timeout_keep_alive_task), None)) is not None:
                self.connections.discard(other)
                other.transport.close()
            else:
                self._is_extra = True
                self.header_timeout_s = min(EXTRA_TIMEOUT_S, self.header_timeout_s)
        if num_extra > NUM_EXTRA:
            self._is_refused = True
            self.on_refused()
            self.transport.abort()
            return
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell every request that the connection brought, not just the newest."""
        self._stop_waiting()
        super().connection_lost(exc)
        for cycle in self._unanswered:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Feed the parser, unless this connection was refused; count what is no body as it comes."""
        if self._is_refused:
            return
        self._bare_bytes += len(data)
        self._unset_keepalive_if_required()
        self._feed(data)
        if self._bare_bytes > MAX_HEADER_BYTES:
            self._refuse("headers_too_large", f"the headers are larger than {MAX_HEADER_BYTES} bytes")
        elif self._timer is None and self.timeout_keep_alive_task is None and not self._is_busy():
            self._await_headers()  # bytes that begin no request, such as empty lines, hold no connection open

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("")

    def _decline_upgrade(self, rest: bytes) -> None:
        """Read a request that offers HTTP/2 or a web socket again without the offer: the parser takes it for
        the end of HTTP and would lose the body.

        Args:
            rest: what came after the request's headers.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            self.send_400_response("")
            return
        lines = [method + b" " + self.url + b" HTTP/" + self.parser.get_http_version().encode()]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn has it
        self._feed(b"\r\n".join([*lines, b"", rest]))

    # ---- what the parser reports ------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a request; give it the means to see its client and to drop it."""
        super().on_message_begin()
        self.scope["textgen.abort"] = self._drop  # type: ignore[typeddict-unknown-key]
        self.scope["textgen.is_gone"] = self._is_gone  # type: ignore[typeddict-unknown-key]
        self.scope["textgen.has_room"] = self._has_room  # type: ignore[typeddict-unknown-key]
        self._is_reading_headers = True
        if self._timer is None:
            self._await_headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; trailers come here too, and are dropped: they must not pass for headers."""
        if self._is_reading_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request on; the size of its headers is judged where the route is known."""
        if self.parser.should_upgrade() or self._is_refused:
            return  # read again in a moment, see `_decline_upgrade`; or never
        self._is_reading_headers = False
        self._bare_bytes = 0
        self._stop_waiting()
        if self._is_extra and self.url.partition(b"?")[0].decode("latin-1") not in HEALTH_PATHS:
            self.on_refused()
            self._refuse("queue_full", "too many connections are open", retry_after_s=1.0)
            return
        super().on_headers_complete()
        waiting = [cycle for cycle in self._unanswered if not cycle.response_complete]
        self._unanswered = (*waiting, self.cycle)
        if len(waiting) > MAX_PIPELINED:
            self._refuse("bad_request", "too many requests at once on one connection")
        elif waiting:
            self.flow.resume_reading()  # else nobody would see that the client leaves
        if self.scope["http_version"] == "1.0":
            _send_unchunked(self.cycle)

    def on_body(self, body: bytes) -> None:
        """Take a piece of a body."""
        self._bare_bytes = 0
        super().on_body(body)
        if sum(len(cycle.body) for cycle in self._unanswered) >= READ_BYTES:
            self.flow.pause_reading()  # until the application asks for more

    def on_message_complete(self) -> None:
        """The body is all there."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    # ---- ends -------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Answer broken HTTP in our words."""
        self._refuse("bad_request", "this is not an HTTP/1.1 request")

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; one that does not even take its last reply is dropped later."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(CLOSE_TIMEOUT_S, self.transport.abort)

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
        connection = self.transport.get_extra_info("socket")
        if sys.platform != "linux" or connection is None or connection.fileno() < 0:
            return False  # the system cannot tell
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLRDHUP)
        return bool(poll.poll(0))

    def _has_room(self) -> bool:
        """Whether what is sent now need not wait."""
        return not self.flow.write_paused

    def _await_headers(self) -> None:
        self._timer = self.loop.call_later(self.header_timeout_s, self._headers_are_late)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _headers_are_late(self) -> None:
        self._timer = None
        if self._is_busy():  # with what came before, and perhaps reading nothing meanwhile
            self._await_headers()
        elif self._is_reading_headers:
            text = f"the headers did not arrive within {self.header_timeout_s:g} s"
            self._refuse("request_timeout", text)
        else:
            self.transport.close()

    def _refuse(self, code: str, message: str, retry_after_s: float | None = None) -> None:
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
        problem = Problem(code, message, retry_after_s=retry_after_s)
        request_id = request_id_from(None)
        body = problem.encoded("native", request_id)
        lines: list[Any] = [
            STATUS_LINE[problem.status("native")].strip(),
            b"content-type: application/json",
            b"content-length: %d" % len(body),
            b"x-request-id: " + request_id.encode(),
            b"connection: close",
            *(f"{name.lower()}: {value}".encode() for name, value in problem.headers("native").items()),
        ]
        self.transport.write(b"\r\n".join([*lines, b"", body]))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.abort)


def _send_unchunked(cycle: RequestResponseCycle) -> None:
    """Let a reply without a length end with its connection: HTTP/1.0 knows no chunks."""
    send = cycle.send
    cycle.chunked_encoding = False

    async def unchunked(message: Any) -> None:
        if message["type"] == "http.response.body":
            cycle.expected_content_length = len(message.get("body", b""))  # as much as comes
        await send(message)

    cycle.send = unchunked  # type: ignore[method-assign]  # made for each request, asked for when it starts

"""The middleware every request passes: request id, counting, keys, limits, one log line. Pure ASGI.

Whatever can be refused without looking into the body is refused here, before the body is read; the body is
then read whole, within its limits of size and time. It is also the last resort for exceptions, and the one
place where requests are counted: received = finished + in flight holds whenever the event loop is looked at.
Read `native` next for what happens behind it.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.bodies import body_refusal, drain, read_body
from service.api.exchange import ClientGone, Exchange, attach
from service.api.head import check_head
from service.api.page import is_page
from service.api.problems import problem_for
from service.api.security import request_id_from
from service.api.state import ServiceState
from service.logs import get_logger
from service.metrics import ENDPOINTS

_TASK = re.compile(r"/tasks/[^/]+")
_OPEN = {"/livez", "/readyz"}
_OPS = {"/", "/metrics", "/info", "/docs", "/redoc", "/openapi.json"}


def endpoint_of(path: str) -> str:
    """The route template of a path, for a label; `other` for paths that take no work."""
    if _TASK.fullmatch(path):
        return "/tasks/{name}"
    return path if path in ENDPOINTS else "other"


class Gate:
    """See the module's docstring.

    Args:
        app: the application behind it.
        state: the service.
    """

    def __init__(self, app: ASGIApp, state: ServiceState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        path = scope["path"]
        exchange = Exchange(
            request_id_from(headers.get(b"x-request-id")),
            endpoint_of(path),
            "openai" if path.startswith("/v1/") else "native",
        )
        attach(scope, exchange)
        if scope["method"] != "POST":
            await self._answer(scope, receive, send, exchange, headers)
            return
        self._enter(exchange)
        try:
            await self._answer(scope, receive, send, exchange, headers)
        finally:
            self._leave(exchange)

    def _enter(self, exchange: Exchange) -> None:
        self._state.metrics.request_received(exchange.endpoint)
        self._state.exchanges.add(exchange)

    def _leave(self, exchange: Exchange) -> None:
        duration_s = time.monotonic() - exchange.started_at
        outcome = exchange.outcome or ("ok" if 0 < exchange.status < 400 else "abort")
        self._state.exchanges.discard(exchange)
        self._state.metrics.request_finished(exchange.endpoint, outcome, duration_s, exchange.tenant)
        _log(exchange, outcome, duration_s)

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, exchange: Exchange, headers: dict[bytes, bytes]
    ) -> None:
        reply = _Reply(receive, send, exchange, headers)
        try:
            await self._admit(scope, reply, exchange, headers)
        except ClientGone:
            exchange.outcome = "abort"
            await _cut(scope)
        except asyncio.CancelledError:
            exchange.outcome = exchange.outcome or "abort"  # the server ends while this is under way
            raise
        except Exception as error:
            problem = problem_for(error)
            exchange.failed(problem, error)
            if exchange.status:
                await _cut(scope)
                return
            await reply.refuse(error)

    async def _admit(
        self, scope: Scope, reply: _Reply, exchange: Exchange, headers: dict[bytes, bytes]
    ) -> None:
        """Refuse what can be refused now, then let the request through."""
        check_head(scope["http_version"], scope["headers"])
        if self._needs_key(scope["path"], headers):
            exchange.tenant = self._state.keyring.tenant(headers.get(b"authorization", b""))
            exchange.is_alone = self._state.keyring.num_keys == 1
        if scope["method"] == "HEAD":  # as GET; the server leaves the body out
            scope = {**scope, "method": "GET"}
        if scope["method"] != "POST" or exchange.endpoint == "other":
            await self._app(scope, reply.receive, reply.send)
            return
        self._state.keyring.enter(exchange.tenant)
        try:
            with self._state.body_room.holding(exchange.party) as hold:
                await self._work(scope, reply, exchange, headers, hold)
        finally:
            self._state.keyring.leave(exchange.tenant)

    async def _work(
        self,
        scope: Scope,
        reply: _Reply,
        exchange: Exchange,
        headers: dict[bytes, bytes],
        hold: Callable[[int], None],
    ) -> None:
        """Read the body, if there is a use for it, and pass the request on."""
        served, settings = self._state.require_served(), self._state.settings
        body_refusal(headers, settings.max_body_bytes)
        reading = read_body(reply.receive, hold, settings.max_body_bytes, settings.body_timeout_s)
        body = await exchange.wait_for(reading)
        if _is_gone(scope):
            raise ClientGone
        served.engine.check_room(exchange.party)
        await self._app(scope, _replay(body, reply.receive), reply.send)

    def _needs_key(self, path: str, headers: dict[bytes, bytes]) -> bool:
        if is_page(path, headers.get(b"accept", b"")):
            return False
        if path in _OPS:
            return self._state.settings.ops_require_key
        return path not in _OPEN


class _Reply:
    """The client's side of a request: notes what was read and what was answered."""

    def __init__(self, receive: Receive, send: Send, exchange: Exchange, headers: dict[bytes, bytes]) -> None:
        self._receive, self._send, self._exchange = receive, send, exchange
        has_body = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        self._is_body_left = has_body
        self._may_drain = b"expect" not in headers  # a client that waits for 100 sends nothing to drain

    async def receive(self) -> Message:
        """Pass on what comes, and note the end of the body."""
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._is_body_left = False
        return message

    async def send(self, message: Message) -> None:
        """Pass on the answer with its request id; a body nobody read ends the connection, politely."""
        if message["type"] == "http.response.start":
            self._exchange.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self._exchange.request_id
            if self._is_body_left:
                headers["Connection"] = "close"
        elif self._is_body_left and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            if self._may_drain:
                await drain(self.receive)
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def refuse(self, error: Exception) -> None:
        """Answer with the error's body."""
        problem, dialect = problem_for(error), self._exchange.dialect
        body = problem.encoded(dialect, self._exchange.request_id)
        extra = problem.headers(dialect) | dict(getattr(error, "headers", None) or {})
        headers = {"content-type": "application/json", "content-length": str(len(body)), **extra}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": problem.status(dialect), "headers": raw})
        await self.send({"type": "http.response.body", "body": body})


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that first gives the body that was read, then whatever comes after it."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return first.pop() if first else await receive()

    return replayed


def _is_gone(scope: Scope) -> bool:
    """Whether the client left while its request waited to be read; False where the server cannot tell."""
    asked = scope.get("textgen.is_gone")
    return asked is not None and bool(asked())


async def _cut(scope: Scope) -> None:
    """Drop the connection at once, so that a client that reads nothing holds no buffer; server permitting."""
    abort = scope.get("textgen.abort")
    if abort is not None:
        abort()
        await asyncio.sleep(0)  # lets the server notice before this request returns


def _log(exchange: Exchange, outcome: str, duration_s: float) -> None:
    """The one line of a request: no prompt, no answer, no key."""
    fields: dict[str, object] = {"tenant": exchange.tenant} if exchange.tenant else {}
    if exchange.usage is not None:
        fields["prompt_tokens"] = exchange.usage.prompt_tokens
        fields["completion_tokens"] = exchange.usage.completion_tokens
        fields["cached_tokens"] = exchange.usage.cached_tokens
    if exchange.timings is not None:
        fields["queue_ms"] = exchange.timings.queue_ms
        fields["prefill_ms"] = exchange.timings.prefill_ms
        fields["decode_ms"] = exchange.timings.decode_ms
    get_logger().info(
        "request",
        request_id=exchange.request_id,
        endpoint=exchange.endpoint,
        outcome=outcome,
        status=exchange.status,
        total_ms=round(duration_s * 1000, 1),
        **fields,
    )

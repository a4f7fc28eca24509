"""One HTTP request from the door to its end: who asks, what it holds, until when, and how it ends.

`Gate` is the middleware every request passes; it makes an `Exchange` of each. Whatever can be refused without
looking into the body is refused before the body is read. What a request is given on its way (a place among
its key's, room for its body, a job in the engine) it gives back at its end, in one place. It ends once: with
its answer, or because the client left, its time was over, or the service stops. Requests are counted here,
too: received = finished + in flight holds whenever the event loop is looked at.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.bodies import check_body_headers
from service.api.client import Client, ClientGone, end_tasks
from service.api.client_address import client_address
from service.api.head import HEALTH_PATHS, check_head
from service.api.page import is_page
from service.api.problems import Dialect, Problem, problem_for
from service.api.security import request_id_from
from service.api.state import Served, ServiceState
from service.engine.quota import ADDRESS_MARK
from service.errors import DeadlineExceeded
from service.logs import get_logger
from service.metrics import endpoint_of
from service.tasks.calls import Origin, Result
from service.tasks.events import Done, Event
from service.tasks.run import Running
from service.tracing import Outcome

T = TypeVar("T")
_TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens")  # of `Usage`, in the log
_TIMES = ("queue_ms", "prefill_ms", "decode_ms")  # of `Timings`
_OPS = {"/", "/metrics", "/info", "/docs", "/redoc", "/openapi.json"}


class Gate:
    """The middleware, pure ASGI: every HTTP request becomes an exchange.

    Args:
        app: the application behind it.
        state: the service.
    """

    def __init__(self, app: ASGIApp, state: ServiceState) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            await Exchange(self._state, scope, receive, send).serve(self._app)
        else:
            await self._app(scope, receive, send)


class Exchange:
    """One request. Lives on the event loop only.

    Args:
        service: what serves it.
        scope, receive, send: the request, as the server gave it.
    """

    served: Served  # the model; known of requests that take work

    def __init__(self, service: ServiceState, scope: Scope, receive: Receive, send: Send) -> None:
        self.service = service
        self.started_at = time.monotonic()
        self.endpoint = endpoint_of(scope["path"])
        self.dialect: Dialect = "openai" if scope["path"].startswith("/v1/") else "native"  # or a route's
        self.spelling: Mapping[str, str] = {}  # what the caller calls our fields
        self._headers = dict(scope["headers"])
        self.request_id = request_id_from(self._headers.get(b"x-request-id"))
        self.client = Client(scope, receive, send, self.request_id)
        self.key_id = ""  # of the key that asks; "" without keys
        self.tenant = ""  # whose share of the service it takes; "" where there is nobody to be fair to
        self.deadline = math.inf  # on the event loop's clock
        self.outcome = ""  # `ok`, `abort` or an error code, once it is known
        self.problem: Problem | None = None  # why it was refused, or failed
        self.result: Result | None = None
        self.job = AsyncExitStack()  # what `admit` began; left at the end, or before
        self._permits = AsyncExitStack()  # given back at the end, whichever it is
        self._receive = receive
        self._scope: Scope = {**scope, "textgen.exchange": self}
        self._worker: asyncio.Task[Any] | None = None
        self._failure: Exception | None = None

    # ---- from the door to the end --------------------------------------------------------------------------

    async def serve(self, app: ASGIApp) -> None:
        """Let the application answer, and count the request if it may take work."""
        if self._scope["method"] != "POST":
            await self._answer(app)
            if self.problem is not None and self._scope["path"] not in HEALTH_PATHS:
                get_logger().info("refused", **self._account())
            return
        self.service.metrics.request_received(self.endpoint)
        self.service.in_flight.add(self.fail)
        with self.service.tracing.request(self.endpoint, self._headers) as trace:
            try:
                await self._answer(app)
            finally:
                self._end(trace)

    def _end(self, trace: Outcome) -> None:
        outcome = self.outcome or ("ok" if 0 < self.client.status < 400 else "abort")
        duration_s = time.monotonic() - self.started_at
        self.service.in_flight.discard(self.fail)
        self.service.metrics.request_finished(self.endpoint, outcome, duration_s, self.key_id)
        get_logger().info("request", **self._account(), outcome=outcome, total_ms=round(duration_s * 1000, 1))
        trace.status, trace.error = self.client.status, "" if outcome == "ok" else outcome
        trace.model, trace.work = self.service.metrics.model, self.result

    def _account(self) -> dict[str, object]:
        """What the log tells of it: no prompt, no answer, no key, and no path but our own templates."""
        endpoint = path if (path := self._scope["path"]) in _OPS else self.endpoint
        fields: dict[str, object] = {"request_id": self.request_id, "method": self._scope["method"]}
        fields |= {"endpoint": endpoint, "status": self.client.status}
        if self.key_id:
            fields["tenant"] = self.service.keyring.names.get(self.key_id) or self.key_id
        if self.problem is not None:
            fields |= {"code": self.problem.code, "param": self.problem.param}
        if self.result is not None:
            for part, names in ((self.result.usage, _TOKENS), (self.result.timings, _TIMES)):
                fields |= {name: getattr(part, name) for name in names}
        return fields

    async def _answer(self, app: ASGIApp) -> None:
        """The last resort for exceptions, whatever raised them."""
        try:
            async with self._permits:
                await self._admit(app)
        except ClientGone:
            self.outcome = "abort"
            await self.client.cut()
        except asyncio.CancelledError:
            self.outcome = self.outcome or "abort"  # the server ends while this is under way
            raise
        except Exception as error:
            problem = self.failed(error)
            if self.client.status:
                await self.client.cut()
                return
            headers = problem.headers(self.dialect) | dict(getattr(error, "headers", None) or {})
            body = problem.encoded(self.dialect, self.request_id)
            await self.client.answer(problem.status(self.dialect), headers, body)

    async def _admit(self, app: ASGIApp) -> None:
        """Refuse what can be refused now, read the body if there is a use for it, and pass the request on."""
        check_head(self._scope["http_version"], self._scope["headers"])
        service, settings = self.service, self.service.settings
        path, method = self._scope["path"], self._scope["method"]
        is_open = not settings.ops_require_key if path in _OPS else path in HEALTH_PATHS
        if method == "POST" or not (is_open or is_page(path, self._headers.get(b"accept", b""))):
            self.key_id = service.keyring.key_id(self._headers.get(b"authorization", b""))
        self.tenant = self._find_tenant()
        if method == "HEAD":  # as GET; the server leaves the body out
            self._scope["method"] = "GET"
        elif method == "POST" and self.endpoint != "other":
            await self._permits.enter_async_context(self.job)
            self._permits.enter_context(service.keyring.place(self.key_id))
            hold = self._permits.enter_context(service.body_room.holding(self.tenant))
            service.require_served()
            check_body_headers(self._headers, settings.max_body_bytes)
            reading = self.client.read_body(hold, settings.max_body_bytes, settings.body_timeout_s)
            await self.run(reading, is_reading=True)
            self.served = service.require_served()  # much may have happened meanwhile
            self.served.engine.check_room(self.tenant)
        await app(self._scope, self.client.receive, self.client.send)

    def _find_tenant(self) -> str:
        """Of several keys, the key; without keys, the address."""
        num_keys, scope = self.service.keyring.num_keys, self._scope
        if num_keys:
            return self.key_id if num_keys > 1 else ""
        forwarded = (value for name, value in scope["headers"] if name == b"x-forwarded-for")
        peer = (scope.get("client") or ("", 0))[0]
        address = client_address(peer, forwarded, self.service.settings.trusted_proxies)
        return ADDRESS_MARK + address if address else ""

    # ---- work ---------------------------------------------------------------------------------------------

    def origin(self, is_streamed: bool, timeout_s: float | None = None) -> Origin:
        """Who asks, for a task call; from now on there is a deadline.

        Args:
            is_streamed: whether the answer is sent as it comes.
            timeout_s: the request's own wish; it can only shorten the server's time.
        """
        limit_s = self.service.settings.request_timeout_s
        self.deadline = self.started_at + min(limit_s, timeout_s or limit_s)
        return Origin(self.tenant, self.key_id, is_streamed, self.deadline)

    async def result_of(self, task: Running) -> Result:
        """Admit a task and run it to its end; from then on there is time to send what it says. Raises as
        `run`, and what the task raises.
        """
        self.result = await self.run(_last(task))
        self.deadline = max(self.deadline, time.monotonic() + self.service.settings.send_timeout_s)
        return self.result

    async def admit(self, task: Running) -> AsyncIterator[Event]:
        """Admit a task as this request's job. Raises as `result_of`."""
        return await self.run(self.job.enter_async_context(task))

    async def run(self, work: Coroutine[Any, Any, T], is_reading: bool = False) -> T:
        """Do some work of this request while the client is there and there is time.

        Args:
            work: ends when it is cancelled.
            is_reading: whether it reads what the client sends, and so notices by itself that it left.

        Raises:
            ClientGone: the client left first.
            DeadlineExceeded: the time is over.
            Exception: what `fail` was told.
        """
        if self._failure is not None:
            work.close()
            raise self._failure
        self._worker = worker = asyncio.current_task()
        assert worker is not None, "an exchange lives on the event loop"
        watch: list[asyncio.Task[None]] = []
        loop = asyncio.get_running_loop()
        # At the loop's next turn: work that is refused at once needs no watcher.
        begin = None if is_reading else loop.call_soon(lambda: watch.append(loop.create_task(self._watch())))
        limit = asyncio.timeout_at(None if self.deadline == math.inf else self.deadline)
        try:
            async with limit:
                return await work
        except TimeoutError:
            if limit.expired():
                raise DeadlineExceeded from None
            raise
        except asyncio.CancelledError:
            if self._failure is None:
                raise
            worker.uncancel()  # it was `fail` who cancelled
            raise self._failure from None
        finally:
            self._worker = None
            if begin is not None:
                begin.cancel()
            await end_tasks(*watch)

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.fail(ClientGone())

    def fail(self, error: Exception) -> None:
        """End the request from outside: its work is cancelled, and `error` is what the client is told."""
        if self._failure is None:
            self._failure = error
            if self._worker is not None:
                self._worker.cancel()

    def failed(self, error: BaseException) -> Problem:
        """Note how the request ends, and give what its caller is told; our own faults go to the log."""
        self.problem = problem_for(error, self._scope["path"]).spelled(self.spelling)
        self.outcome = self.problem.code
        if self.outcome == "internal":
            get_logger().error("request failed", request_id=self.request_id, exc_info=error)
        return self.problem


async def _last(task: Running) -> Result:
    async with task as events:
        async for event in events:
            if isinstance(event, Done):
                return event.result
    raise AssertionError("a task's events end with Done")


def exchange_of(request: Request) -> Exchange:
    """The exchange that this request is part of."""
    exchange: Exchange = request.scope["textgen.exchange"]
    return exchange

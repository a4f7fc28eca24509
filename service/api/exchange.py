"""One HTTP request on its way: who asks, since when, how it ends, and how it is ended from outside.

`Exchange.run` is the one place where work races against a client that leaves, a deadline, and a service that
shuts down. `gate` makes an exchange for each request; routes find it with `exchange_of`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from service.api.problems import Dialect, Problem
from service.errors import DeadlineExceeded
from service.logs import get_logger
from service.tasks.calls import Origin, Result, Timings, Usage

T = TypeVar("T")
GRACE_S = 0.25  # the engine ends a job at its deadline; if it does not, the exchange does, this much later


class ClientGone(Exception):
    """The client left, or stopped reading; there is nobody to answer."""


@dataclass(eq=False, slots=True)
class Exchange:
    """State of one request. Lives on the event loop only."""

    request_id: str
    endpoint: str  # one of `service.metrics.ENDPOINTS`
    dialect: Dialect
    started_at: float = field(default_factory=time.monotonic)
    tenant: str = ""
    is_alone: bool = False  # its key is the only one: there is nobody to be fair to
    status: int = 0  # 0 until the response starts
    outcome: str = ""  # `ok`, `abort` or an error code, once it is known
    usage: Usage | None = None
    timings: Timings | None = None
    deadline: float = float("inf")  # on the clock of `time.monotonic`
    _failure: Exception | None = None
    _worker: asyncio.Task[Any] | None = None

    @property
    def party(self) -> str:
        """Whose share of the engine this request takes; "" where all of it is there for everybody."""
        return "" if self.is_alone else self.tenant

    def origin(self, limit_s: float, is_streamed: bool, timeout_s: float | None = None) -> Origin:
        """Who asks and until when, for a task call.

        Args:
            limit_s: the server's longest time for a request.
            is_streamed: whether the answer is sent as it comes.
            timeout_s: the request's own wish; it can only shorten the time.
        """
        self.deadline = self.started_at + min(limit_s, timeout_s or limit_s)
        return Origin(self.party, self.tenant, self.deadline, is_streamed)

    def fail(self, error: Exception) -> None:
        """End the request from outside: its work is cancelled and `error` is what the client is told."""
        self._failure = self._failure or error
        if self._worker is not None:
            self._worker.cancel()

    def account(self, result: Result) -> None:
        """Note what the request used, for its log line."""
        self.usage, self.timings = result.usage, result.timings

    def failed(self, problem: Problem, error: BaseException) -> None:
        """Note how the request ends; what is our own fault goes to the log with its trace."""
        self.outcome = problem.code
        if problem.code == "internal":
            get_logger().error("request failed", request_id=self.request_id, exc_info=error)

    async def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for `work`, which notices by itself that the client leaves, or for `fail`."""
        if self._failure is not None:
            work.close()
            raise self._failure
        task = self._worker = asyncio.current_task()
        assert task is not None, "an exchange lives on the event loop"
        try:
            return await work
        except asyncio.CancelledError:
            if self._failure is None:
                raise
            task.uncancel()  # it was `fail` who cancelled
            raise self._failure from None
        finally:
            self._worker = None

    async def run(self, work: Coroutine[Any, Any, T], receive: Receive) -> T:
        """Run `work` while the client is there and there is time.

        Raises:
            ClientGone: the client left first.
            DeadlineExceeded: the time is over.
        """
        worker = self._worker = asyncio.ensure_future(work)
        watcher = asyncio.ensure_future(_until_gone(receive))
        if self._failure is not None:
            worker.cancel()
        try:
            timeout = max(self.deadline + GRACE_S - time.monotonic(), 0)
            await asyncio.wait(
                {worker, watcher},
                timeout=None if timeout == float("inf") else timeout,
                return_when=asyncio.FIRST_COMPLETED,
            )
            return await self._outcome_of(worker, watcher)
        finally:
            self._worker = None
            await end_tasks(worker, watcher)

    async def _outcome_of(self, worker: asyncio.Task[T], watcher: asyncio.Task[None]) -> T:
        is_done = worker.done()
        await end_tasks(worker)
        if self._failure is not None and (not is_done or worker.cancelled()):
            raise self._failure
        if is_done:
            return worker.result()
        raise ClientGone if watcher.done() else DeadlineExceeded


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


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


def exchange_of(request: Request) -> Exchange:
    """The exchange that `gate` made for this request."""
    found: Exchange = request.scope["textgen.exchange"]
    return found


def attach(scope: MutableMapping[str, Any], exchange: Exchange) -> None:
    """Put an exchange where `exchange_of` finds it."""
    scope["textgen.exchange"] = exchange

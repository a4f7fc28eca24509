"""The service without a socket: the same application on a loop of its own, in a thread of this process.

What is asked of it goes the whole way of a request over HTTP, so texts, checks and errors are the same.
Read `client` for what asks it, and `llm` for what people import.
"""

from __future__ import annotations

import asyncio
import gc
import queue
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

import httpx
from fastapi import FastAPI
from starlette.types import Message

from service.app import create_app
from service.errors import Draining
from service.life import Life
from service.settings import Settings, load_settings

# A service guards itself against strangers; here there are none, and one call may be a whole data set.
_ROOM: Mapping[str, Any] = {
    "api_keys": (),
    "api_keys_file": None,
    "ops_require_key": False,
    "max_body_bytes": 2**31,
    "max_job_sequences": 10**5,
    "max_waiting": 10**6,
    "request_timeout_s": 86400.0,
}


def local_settings(model: str = "", **settings: Any) -> Settings:
    """Settings for a model in this process: the environment's, with room for large calls and without keys.

    Args:
        model: as `TEXTGEN_MODEL`; "" leaves it to that.
        settings: by name, without `TEXTGEN_`; they win.

    Raises:
        SettingsError: a value is not legal, or the environment holds a wrong one.
    """
    chosen = {"model": model} if model else {}
    return load_settings({**_ROOM, **chosen, **settings})


class LocalService:
    """A loaded model and the application around it. Close it, or use it in a `with`: all of it is freed.

    Args:
        settings: what a served model is started with; address and port are not used.

    Attributes:
        http: asks the application; every path of the API is there.

    Raises:
        SettingsError: the model cannot be served.
    """

    def __init__(self, settings: Settings) -> None:
        self._ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(settings,), name="textgen", daemon=True)
        self._thread.start()
        try:
            self._ready.result()
        except BaseException:
            self._thread.join(0)  # an interrupted load is left behind; it cannot be stopped
            raise
        self.http = httpx.Client(
            base_url="http://textgen", transport=_Transport(self._app, self._loop), timeout=None
        )

    def close(self) -> None:
        """End what runs, and free the model, its cache and its threads."""
        if not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()
        self.http.close()
        del self.http, self._app
        gc.collect()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _run(self, settings: Settings) -> None:
        try:
            asyncio.run(self._live(settings))
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)

    async def _live(self, settings: Settings) -> None:
        """Load, say so, and stay until closed."""
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        self._app = create_app(settings)
        life: Life = self._app.state.life
        async with life.span(self._app):
            await life.settled()
            if life.failure is not None:
                raise life.failure
            self._ready.set_result(None)
            await self._closing.wait()
            await life.end_requests(Draining("the model was closed before this request was done"))


class _Transport(httpx.BaseTransport):
    """Carries requests into an application on another thread's loop, and its answers back as they come."""

    def __init__(self, app: FastAPI, loop: asyncio.AbstractEventLoop) -> None:
        self._app, self._loop = app, loop

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """See httpx. Raises what the application raised, if it ended without an answer."""
        call = _Call(request.read())
        asyncio.run_coroutine_threadsafe(call.run(self._app, _scope(request)), self._loop)
        start = call.next_message()
        return httpx.Response(start["status"], headers=start["headers"], stream=_Body(call, self._loop))


class _Call:
    """One request on its way through the application."""

    def __init__(self, body: bytes) -> None:
        self._body: bytes | None = body
        self._messages: queue.SimpleQueue[Message | BaseException] = queue.SimpleQueue()
        self.is_left = asyncio.Event()  # set when nobody reads on

    async def run(self, app: FastAPI, scope: dict[str, Any]) -> None:
        """Serve the request; its messages go to `next_message`."""

        async def send(message: Message) -> None:
            self._messages.put(message)

        try:
            await app(scope, self._receive, send)
        except BaseException as error:
            self._messages.put(error)
            raise
        self._messages.put({"type": "http.response.body"})  # ends a body that was cut off

    async def _receive(self) -> Message:
        if self._body is None:
            await self.is_left.wait()
            return {"type": "http.disconnect"}
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    def next_message(self) -> Message:
        """Wait for what the application says next."""
        message = self._messages.get()
        if isinstance(message, BaseException):
            raise message
        return message


class _Body(httpx.SyncByteStream):
    """An answer's body; closing it early is a client that leaves."""

    def __init__(self, call: _Call, loop: asyncio.AbstractEventLoop) -> None:
        self._call, self._loop = call, loop

    def __iter__(self) -> Iterator[bytes]:
        while True:
            message = self._call.next_message()
            if piece := message.get("body", b""):
                yield piece
            if not message.get("more_body", False):
                return

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._call.is_left.set)


def _scope(request: httpx.Request) -> dict[str, Any]:
    """The request as ASGI has it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": "http",
        "path": request.url.path,
        "raw_path": request.url.raw_path.partition(b"?")[0],
        "query_string": request.url.query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "client": None,
        "server": ("textgen", 80),
    }

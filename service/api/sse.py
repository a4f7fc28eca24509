"""The only writer of server-sent events.

An `EventStream` makes frames of events as they come, and writes those that come at once together. A client
that reads slowly holds up nothing but itself: its events wait, and the engine merges what piles up. A stream
ends with exactly one last frame whatever happens, says `: keep-alive` when idle, and cuts off a client that
does not read. How an event becomes a frame is the dialect's concern.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from typing import Any, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api.client import ClientGone, end_tasks
from service.api.exchange import Exchange
from service.api.json_pieces import compact, in_pieces, taking_turns
from service.api.problems import Problem
from service.tasks.events import Done, Event, Token

HEARTBEAT_S = 15.0
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Frames(Protocol):
    """Turns events into frames, for one dialect and one request."""

    def of(self, event: Event) -> Iterable[bytes]:
        """Frames of one event, the last ones for `Done`; those may come in pieces."""
        ...

    def of_problem(self, problem: Problem, request_id: str) -> Iterable[bytes]:
        """The last frames after a failure."""
        ...


def frame(data: Any, event: str | None = None) -> bytes:
    """One frame: `data: {json}` and an empty line, with `event: <type>` before it if given."""
    return f"{_head(event)}data: {compact(data)}\n\n".encode()


class TextFrame:
    """Frames that differ in one text only: what stands around it is encoded once, a token's text each time.

    Args:
        data, event: as of `frame`, with `TextFrame.GAP` for the text.
    """

    GAP = "\0"

    def __init__(self, data: Any, event: str | None = None) -> None:
        self._before, self._after = frame(data, event).decode().split(compact(self.GAP))

    def of(self, text: str) -> bytes:
        """The frame with this text."""
        return f"{self._before}{compact(text)}{self._after}".encode()


def frame_in_pieces(data: Mapping[str, Any], event: str) -> Iterator[bytes]:
    """One frame as pieces to be joined, see `json_pieces.in_pieces`."""
    yield f"{_head(event)}data: ".encode()
    for piece in in_pieces(data):
        yield piece.encode()
    yield b"\n\n"


def _head(event: str | None) -> str:
    return f"event: {event}\n" if event else ""


class EventStream(Response):
    """A response that streams a task.

    Args:
        events: of the task that `exchange` admitted; it is left when the stream ends for whatever reason.
        frames: the dialect.
        exchange: the request.
        heartbeat_s: seconds of silence after which a comment is sent.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[Event],
        frames: Frames,
        exchange: Exchange,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        super().__init__(headers=HEADERS)
        del self.headers["content-length"]
        self._events, self._frames, self._exchange = events, frames, exchange
        self._send_timeout_s, self._heartbeat_s = exchange.service.settings.send_timeout_s, heartbeat_s
        self._lock = asyncio.Lock()
        self._ready: list[bytes] = []  # frames to be written
        self._is_started = False
        self._is_whole = False  # the last frame is made; what is left is to write
        self._last_frame_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; see the class."""
        try:
            async with self._exchange.job:  # left before the last frame, which a slow client may keep waiting
                await self._exchange.run(self._stream(send))
        except ClientGone:
            raise
        except Exception as error:
            if not self._is_started:
                raise
            if not self._is_whole:  # else a deadline struck while the last frame was written
                problem = self._exchange.failed(error)
                self._ready += self._frames.of_problem(problem, self._exchange.request_id)
        await self._write(send, is_last=True)

    async def _stream(self, send: Send) -> None:
        """Make frames of events as they come, and write those that come at once together."""
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        self._is_started = True
        self._last_frame_at = asyncio.get_running_loop().time()
        keep_alive = asyncio.create_task(self._keep_alive(send))
        try:
            async for event in self._events:
                frames = self._frames.of(event)
                if isinstance(event, Done):
                    self._exchange.result = event.result
                    self._ready += await taking_turns(frames)
                    self._is_whole = True
                else:
                    self._ready += frames
                if self._ready and not (isinstance(event, Token) and event.is_followed):
                    await self._write(send)
        finally:
            await end_tasks(keep_alive)

    async def _write(self, send: Send, is_last: bool = False) -> None:
        """Hand what is ready to the socket. Raises ClientGone when it takes nothing for too long."""
        if not (is_last or self._lock.locked()) and self._exchange.client.has_room():
            await self._send_ready(send, is_last)  # without a wait, so it needs neither a timer nor the lock
            return
        try:
            async with asyncio.timeout(self._send_timeout_s), self._lock:
                await self._send_ready(send, is_last)
        except TimeoutError as error:
            raise ClientGone from error

    async def _send_ready(self, send: Send, is_last: bool) -> None:
        count, data = len(self._ready), b"".join(self._ready)
        await send({"type": "http.response.body", "body": data, "more_body": not is_last})
        del self._ready[:count]  # not before: a write that is cancelled has not been made
        self._last_frame_at = asyncio.get_running_loop().time()

    async def _keep_alive(self, send: Send) -> None:
        """Send a comment after a while of silence; end the request if the client is gone."""
        clock = asyncio.get_running_loop().time
        try:
            while True:
                silence = clock() - self._last_frame_at
                if silence < self._heartbeat_s:
                    await asyncio.sleep(self._heartbeat_s - silence)
                    continue
                self._ready.append(KEEP_ALIVE)
                await self._write(send)
        except ClientGone as gone:
            self._exchange.fail(gone)

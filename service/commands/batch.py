"""`textgen batch`: a file of requests in, a file of replies out, in order; many at a time, and resumable."""

from __future__ import annotations

import json
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO
from uuid import uuid4

import typer

from service.commands.asking import asking, say
from service.commands.options import KeyFile, Model, Url
from service.errors import SettingsError

if TYPE_CHECKING:
    import httpx

_AHEAD = 4  # times as many requests as are in flight may be done before the oldest is
_OURS = {"prompt": "/generate", "question": "/qa", "text": "/summarize"}  # by the field that only it has
_LATER = (429, 503)


@dataclass(frozen=True, slots=True)
class Request:
    """One line of the file."""

    path: str
    body: dict[str, Any]
    custom_id: str | None = None  # OpenAI's lines have one, and get OpenAI's replies


def batch(
    requests: Annotated[
        Path, typer.Argument(help="One request a line: OpenAI's batch lines, or bodies of ours.")
    ],
    out: Annotated[Path, typer.Option(help="One reply a line, in the order of the requests.")],
    in_flight: Annotated[int, typer.Option(min=1, max=1024, help="Requests at the same time.")] = 64,
    url: Url = None,
    key_file: KeyFile = None,
    model: Model = None,
) -> None:
    """Answer a file of requests.

    Lines are as for OpenAI's batches ({"custom_id", "method": "POST", "url", "body"}), or bodies of
    /generate, /qa or /summarize. A refused request has its error in its line, and the exit code is 1. What
    was interrupted goes on where it stopped: run the same command again.
    """
    with asking(url, key_file, model) as http, ExitStack() as stack:
        asked = read_requests(requests)
        output = stack.enter_context(_opened(out))
        done = resume(output, asked, out)
        if done:
            say(f"{len(done)} of {len(asked)} are done already")
        num_failed = sum(map(has_failed, done))
        for line in _answers(http, asked, len(done), in_flight, stack):
            output.write(line)
            output.flush()
            num_failed += has_failed(line)
        if num_failed:
            say(f"{num_failed} of {len(asked)} failed; their lines say why")
            raise typer.Exit(1)


def read_requests(path: Path) -> list[Request]:
    """The requests of a file.

    Raises:
        SettingsError: it cannot be read, or a line is no request; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read ({type(error).__name__})") from error
    return [_request(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _request(line: str, where: str) -> Request:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise SettingsError(f"{where} is not JSON") from error
    if not isinstance(value, dict):
        raise SettingsError(f"{where} must be a JSON object")
    if "url" in value or "custom_id" in value:
        path, body = value.get("url"), value.get("body")
        if not isinstance(path, str) or not path.startswith("/") or not isinstance(body, dict):
            raise SettingsError(f'{where} must have "custom_id", "url" (a path) and "body" (an object)')
        return Request(path, body, str(value.get("custom_id")))
    for name, path in _OURS.items():
        if name in value:
            return Request(path, value)
    raise SettingsError(f"{where} must have one of the fields {', '.join(_OURS)}, or OpenAI's url and body")


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("r+b" if path.exists() else "w+b")
    except OSError as error:
        raise SettingsError(f"{path} cannot be written: {error.strerror}") from error


def resume(output: BinaryIO, asked: list[Request], path: Path) -> list[bytes]:
    """The replies that are there already; a line that was cut off is removed.

    Raises:
        SettingsError: they are replies to other requests.
    """
    *lines, cut = output.read().split(b"\n")
    output.seek(-len(cut), os.SEEK_END)
    output.truncate()
    if len(lines) > len(asked):
        raise SettingsError(f"{path} holds replies to other requests: there are more than requests")
    for number, (line, request) in enumerate(zip(lines, asked, strict=False), 1):
        if json.loads(line).get("custom_id") != request.custom_id:
            raise SettingsError(f"{path} holds replies to other requests: see line {number}")
    return lines


def has_failed(line: bytes) -> bool:
    """Whether a line of the result holds a refusal."""
    reply = json.loads(line)
    return "error" in reply.get("response", {"body": reply})["body"]


def _answers(
    http: httpx.Client, asked: list[Request], num_done: int, in_flight: int, stack: ExitStack
) -> Iterator[bytes]:
    """Lines in order, many requests in flight; a bar on a terminal shows how many there are."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    is_left = threading.Event()
    pool = ThreadPoolExecutor(in_flight, "request")
    stack.callback(pool.shutdown, wait=False, cancel_futures=True)
    stack.callback(is_left.set)
    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = stack.enter_context(Progress(*columns, console=console, disable=not console.is_terminal))
    shown = bar.add_task("", total=len(asked), completed=num_done)
    waiting: deque[Future[bytes]] = deque()
    rest = iter(asked[num_done:])
    while True:
        for request in islice(rest, _AHEAD * in_flight - len(waiting)):
            waiting.append(pool.submit(_answer, http, request, is_left))
        if not waiting:
            return
        yield waiting.popleft().result()
        bar.advance(shown)


def _answer(http: httpx.Client, request: Request, is_left: threading.Event) -> bytes:
    """Ask until the service has room.

    Raises:
        Unreachable: nobody answers.
    """
    import httpx

    from service.client import Unauthorized, Unreachable

    while True:
        try:
            reply = http.post(request.path, json=request.body)
        except httpx.TransportError as error:
            raise Unreachable(f"nobody answers at {http.base_url}; run the same command to go on") from error
        if reply.status_code == 401:
            raise Unauthorized(reply.json()["error"]["message"])
        if reply.status_code not in _LATER or is_left.wait(float(reply.headers.get("Retry-After", 1))):
            return _line(request, reply)


def _line(request: Request, reply: httpx.Response) -> bytes:
    """A reply as a line: OpenAI's for OpenAI's, ours for ours."""
    body: Any = reply.json()
    if request.custom_id is not None:
        request_id = reply.headers["X-Request-ID"]
        response = {"status_code": reply.status_code, "request_id": request_id, "body": body}
        ids = {"id": f"batch_req_{uuid4().hex}", "custom_id": request.custom_id}
        body = {**ids, "response": response, "error": None}
    return json.dumps(body, ensure_ascii=False).encode() + b"\n"

"""Asking a service, wherever it is: plain replies, streams of events, and its refusals as exceptions.

The client that is passed in decides where: `httpx.Client(base_url=…)` for a service on the network,
`service.local.LocalService.http` for one in this process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from service.errors import (
    DeadlineExceeded,
    EngineFault,
    InvalidRequest,
    NotFound,
    PromptTooLong,
    QueueFull,
    Refused,
    TextgenError,
)

Body = Mapping[str, Any]
CHAT = "/v1/chat/completions"

_OF_FIELD = {"invalid_request": InvalidRequest, "prompt_too_long": PromptTooLong, "not_found": NotFound}
_LONGER = {"context_length_exceeded": "prompt_too_long"}  # OpenAI's names for ours


class Unreachable(TextgenError):
    """Nobody answers at the service's address."""


class Unauthorized(TextgenError):
    """The service wants another key."""


def get(http: httpx.Client, path: str) -> dict[str, Any]:
    """Ask for a page of JSON. Raises as `post`."""
    reply: dict[str, Any] = _checked(_sent(http, http.build_request("GET", path))).json()
    return reply


def post(http: httpx.Client, path: str, body: Body, is_strict: bool = False) -> dict[str, Any]:
    """Ask and wait for the whole reply.

    Args:
        http: whom.
        path: where.
        body: what, as JSON.
        is_strict: refuse a field that the service tells it did not read, as OpenAI's dialect does.

    Raises:
        RequestError: a field is wrong; `param` names it.
        Refused: the right request at the wrong time.
        Unauthorized, Unreachable, DeadlineExceeded, EngineFault: see there.
    """
    reply = _checked(_sent(http, http.build_request("POST", path, json=body)), is_strict)
    given: dict[str, Any] = reply.json()
    return given


def events(
    http: httpx.Client, path: str, body: Body, is_strict: bool = False
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Ask and give the events of the reply as they come, each as (type, data); the last one is `done`.

    Closing the iterator early ends the request. OpenAI's streams have the type `message` throughout.

    Raises:
        TextgenError: as `post`; also in the middle of a stream.
    """
    request = http.build_request("POST", path, json={**body, "stream": True})
    reply = _sent(http, request, is_streamed=True)
    try:
        if reply.status_code != 200:
            reply.read()
        _checked(reply, is_strict)
        yield from _frames(reply)
    except httpx.TransportError as error:
        raise Unreachable("the connection ended before the answer was complete") from error
    finally:
        reply.close()


def _frames(reply: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    kind = "message"
    for line in reply.iter_lines():
        if line.startswith("event: "):
            kind = line[7:]
        elif line == "data: [DONE]":
            return
        elif line.startswith("data: "):
            data: dict[str, Any] = json.loads(line[6:])
            if "error" in data:
                raise refusal_of(data["error"])
            yield kind, data
            if kind == "done":
                return
    raise EngineFault("the answer ended early")


def _sent(http: httpx.Client, request: httpx.Request, is_streamed: bool = False) -> httpx.Response:
    try:
        return http.send(request, stream=is_streamed)
    except httpx.TransportError as error:
        raise Unreachable(f"nobody answers at {http.base_url}") from error


def _checked(reply: httpx.Response, is_strict: bool = False) -> httpx.Response:
    """The reply, unless it is a refusal."""
    if reply.is_success:
        ignored = reply.headers.get("X-Ignored-Fields")
        if is_strict and ignored:
            raise InvalidRequest(f"no such field: {ignored}", ignored.split(", ")[0])
        return reply
    try:
        error = reply.json()["error"]
    except (ValueError, KeyError, TypeError):
        raise Unreachable(f"{reply.url} answers {reply.status_code}, not as this service does") from None
    raise refusal_of(error, float(reply.headers.get("Retry-After", 1)))


def refusal_of(error: Mapping[str, Any], retry_after_s: float = 1.0) -> TextgenError:
    """The exception that an error body stands for, of either dialect."""
    code, message = str(error.get("code")), str(error.get("message"))
    code = _LONGER.get(code, code)
    if code in _OF_FIELD:
        return _OF_FIELD[code](message, error.get("param"))
    if code in ("queue_full", "not_ready", "draining"):
        return (QueueFull if code == "queue_full" else Refused)(message, retry_after_s)
    if code == "unauthorized":
        return Unauthorized(message)
    if code == "deadline_exceeded":
        return DeadlineExceeded(message)
    return EngineFault(message) if code == "internal" else InvalidRequest(message)

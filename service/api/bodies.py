"""Request bodies: read within limits of size and time, then parsed as strict JSON.

What Python's parser lets through and JSON does not have is refused: NaN, infinities, a name twice in one
object, nesting without end. Shapes and ranges are `schemas`' concern.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.types import Receive

from service.api.exchange import ClientGone, exchange_of
from service.api.problems import HttpProblem
from service.engine.quota import Quota

LARGE_BODY_BYTES = 8 * 1024
SMALL_BODY_BYTES = 64 * 1024
DRAIN_S = 2.0
MAX_FIELDS = 100  # each unknown one would become an error to build
MAX_PARTS = 20_000  # arrays, objects and names: while it makes them, the parser lets no other thread run
_TO_NEXT_PART = re.compile(rb'(?:[^"\[{:]++|"[^"\\]*+(?:\\.[^"\\]*+)*+"?){0,5000}+([\[{:]?)', re.DOTALL)


def body_refusal(headers: Mapping[bytes, bytes], limit: int) -> None:
    """Refuse a body by its headers.

    Args:
        headers: of the request, names in lower case.
        limit: most bytes.

    Raises:
        HttpProblem: 415, not JSON, or compressed; 413, the announced length is above the limit.
    """
    if headers.get(b"content-encoding", b"identity").strip().lower() not in (b"", b"identity"):
        raise HttpProblem(
            "unsupported_media_type", "send the body as it is; a Content-Encoding is not supported"
        )
    if not _is_json(headers.get(b"content-type", b"").decode("latin-1")):
        raise HttpProblem("unsupported_media_type", "send the body as `Content-Type: application/json`")
    if int(headers.get(b"content-length", b"0")) > limit:
        raise _too_large(limit)


@lru_cache(maxsize=64)
def _is_json(content_type: str) -> bool:
    kind, *parameters = (part.strip().lower() for part in content_type.split(";"))
    pairs = (parameter.partition("=") for parameter in parameters)
    charsets = {value.strip('"') for name, _, value in pairs if name == "charset"}
    is_json = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
    return is_json and charsets <= {"utf-8", "utf8", "us-ascii"}


def _too_large(limit: int) -> HttpProblem:
    return HttpProblem("body_too_large", f"the body is larger than {limit} bytes")


class BodyRoom:
    """How many bytes of large bodies are held at once, half received or waiting to be answered; small ones
    always fit.

    Args:
        limit: most bytes above `SMALL_BODY_BYTES` of each; one key may have its share of them.
    """

    def __init__(self, limit: int) -> None:
        self._quota = Quota(
            limit,
            "too many large bodies are being sent at once",
            "this key is sending too many large bodies at once",
        )

    @contextmanager
    def holding(self, party: str) -> Iterator[Callable[[int], None]]:
        """Gives a function that takes how large a body has become, and refuses it where there is no room.

        Args:
            party: whose body it is; "" where there is nobody to be fair to.

        Raises:
            QueueFull: 429, by that function.
        """
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            more = max(size - SMALL_BODY_BYTES, 0) - held
            if more > 0:
                self._quota.check(party, more)
                self._quota.take(party, more)
                held += more

        try:
            yield hold
        finally:
            if held:
                self._quota.give(party, held)


async def read_body(receive: Receive, hold: Callable[[int], None], limit: int, timeout_s: float) -> bytes:
    """Read a whole body, counting as it comes.

    Args:
        receive: where it comes from.
        hold: is told how many bytes there are by now, see `BodyRoom`.
        limit: most bytes.
        timeout_s: for all of it.

    Raises:
        HttpProblem: 413, more than `limit` bytes; 408, not complete after `timeout_s`.
        QueueFull: there is no room for it.
        ClientGone: the client left within it.
    """
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
                if size > limit:
                    raise _too_large(limit)
                hold(size)
                if not message.get("more_body", False):
                    return b"".join(chunks)
    except TimeoutError:
        raise HttpProblem("request_timeout", f"the body did not arrive within {timeout_s:g} s") from None


async def drain(receive: Receive) -> None:
    """Swallow what a client still sends, for a while: a reset connection would cost it the answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            while (message := await receive())["type"] != "http.disconnect":
                if not message.get("more_body", False):
                    return


def parse_json(data: bytes) -> Any:
    """Parse strict JSON in UTF-8.

    Raises:
        HttpProblem: 400, saying where it breaks, never what stands there.
    """
    if data.startswith(codecs.BOM_UTF8):
        raise HttpProblem("bad_request", "the body begins with a byte order mark; send UTF-8 without one")
    if _has_many_parts(data):
        raise HttpProblem("bad_request", f"the body has more than {MAX_PARTS} arrays, objects and names")
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise HttpProblem("bad_request", f"the body is not JSON: it breaks at {where}") from None
    except UnicodeDecodeError as error:
        raise HttpProblem("bad_request", f"the body is not UTF-8: byte {error.start}") from None
    except RecursionError:
        raise HttpProblem("bad_request", "the body is nested too deeply") from None
    except ValueError:
        raise HttpProblem("bad_request", "the body holds a number with too many digits") from None


def _has_many_parts(data: bytes) -> bool:
    """Whether a text of JSON has more than `MAX_PARTS`, not counting what stands in strings."""
    if sum(map(data.count, (b"[", b"{", b":"))) <= MAX_PARTS:
        return False
    count = at = 0
    while count <= MAX_PARTS and at < len(data):
        found = _TO_NEXT_PART.match(data, at)  # many strings at a time, but not all: other threads get turns
        assert found is not None, "it matches whatever comes"
        at = found.end()
        count += bool(found[1])
    return count > MAX_PARTS


def _no_constant(name: str) -> float:
    raise HttpProblem("bad_request", "the body is not JSON: NaN and infinities are not numbers there")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise HttpProblem("bad_request", "the body has the same name twice in one object")
    return found


class StrictRequest(Request):
    """A request whose `json` is strict; large bodies are parsed off the event loop."""

    async def json(self) -> Any:
        """Parse the body; see `parse_json`. An object with very many fields is refused at once."""
        body = await self.body()
        if len(body) > LARGE_BODY_BYTES:
            value = await exchange_of(self).wait_for(asyncio.to_thread(parse_json, body))
        else:
            value = parse_json(body)
        if isinstance(value, dict) and len(value) > MAX_FIELDS:
            raise HttpProblem("invalid_request", f"the body has more than {MAX_FIELDS} fields")
        return value


class StrictRoute(APIRoute):
    """A route whose handler gets a `StrictRequest`."""

    def get_route_handler(self) -> Any:
        """Wrap the framework's handler."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Any:
            return await handle(StrictRequest(request.scope, request.receive))

        return strict

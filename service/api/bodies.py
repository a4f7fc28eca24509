"""Request bodies: how many bytes of them are held at once, and strict JSON.

What Python's parser lets through and JSON does not have is refused: NaN, infinities, a name twice in one
object, nesting without end. Shapes and ranges are `schemas`' concern.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from service.api.problems import HttpProblem
from service.engine.quota import Quota

LARGE_BODY_BYTES = 8 * 1024
FREE_BODY_BYTES = 4 * 1024
SMALL_BODY_BYTES = 64 * 1024
SMALL_ROOM_BYTES = 64 * 2**20
MAX_FIELDS = 100  # each unknown one would become an error to build
# While it makes them, the parser lets no other thread run.
MAX_PARTS = 20_000  # arrays, objects and names
MAX_VALUES = 500_000  # commas


def _to_next(marks: bytes) -> re.Pattern[bytes]:
    """What comes before one of these marks outside strings; many strings at a time, but not all."""
    before = rb'(?:[^"%b]++|"[^"\\]*+(?:\\.[^"\\]*+)*+"?){0,5000}+([%b]?)' % (marks, marks)
    return re.compile(before, re.DOTALL)


_LIMITS = (
    (b"[{:", _to_next(rb"\[{:"), MAX_PARTS, "arrays, objects and names"),
    (b",", _to_next(b","), MAX_VALUES, "values"),
)


def check_body_headers(headers: Mapping[bytes, bytes], limit: int) -> None:
    """Refuse a body by its headers.

    Args:
        headers: of the request, names in lower case.
        limit: maximum bytes.

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
        raise HttpProblem("body_too_large", f"the body is larger than {limit} bytes")


@lru_cache(maxsize=64)
def _is_json(content_type: str) -> bool:
    kind, *parameters = (part.strip().lower() for part in content_type.split(";"))
    pairs = (parameter.partition("=") for parameter in parameters)
    charsets = {value.strip('"') for name, _, value in pairs if name == "charset"}
    is_json = kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
    return is_json and charsets <= {"utf-8", "utf8", "us-ascii"}


class BodyRoom:
    """How many bytes of bodies are held at once, half received or waiting to be answered. The first
    `FREE_BODY_BYTES` of each are free, as its headers are; up to `SMALL_BODY_BYTES` it takes room that large
    ones cannot fill.

    Args:
        large: bytes above `SMALL_BODY_BYTES` of each that are held at a time; one key may have its share.
        small: bytes of each up to there.
    """

    def __init__(self, large: int, small: int = SMALL_ROOM_BYTES) -> None:
        self._rooms = [
            (FREE_BODY_BYTES, SMALL_BODY_BYTES, _room(small, "bodies")),
            (SMALL_BODY_BYTES, None, _room(large, "large bodies")),
        ]

    @property
    def num_held(self) -> int:
        """Bytes that are held now."""
        return sum(quota.num_held for _, _, quota in self._rooms)

    @contextmanager
    def holding(self, tenant: str) -> Iterator[Callable[[int], None]]:
        """Gives a function that takes how large a body has become, and refuses it where there is no room.

        Args:
            tenant: whose body it is; "" where there is nobody to be fair to.

        Raises:
            QueueFull: 429, by that function.
        """
        held = [0] * len(self._rooms)

        def hold(size: int) -> None:
            for index, (low, high, quota) in enumerate(self._rooms):
                more = max(min(size, high or size) - low, 0) - held[index]
                if more > 0:
                    quota.check(tenant, more)
                    quota.take(tenant, more)
                    held[index] += more

        try:
            yield hold
        finally:
            for count, (_, _, quota) in zip(held, self._rooms, strict=True):
                if count:
                    quota.give(tenant, count)


def _room(limit: int, what: str) -> Quota:
    return Quota(
        limit, f"too many {what} are being sent at once", f"this key is sending too many {what} at once"
    )


def parse_json(data: bytes) -> Any:
    """Parse strict JSON in UTF-8.

    Raises:
        HttpProblem: 400, saying where it breaks, never what stands there.
    """
    if data.startswith(codecs.BOM_UTF8):
        raise HttpProblem("bad_request", "the body begins with a byte order mark; send UTF-8 without one")
    for marks, to_next, limit, what in _LIMITS:
        if _has_more(data, marks, to_next, limit):
            raise HttpProblem("bad_request", f"the body has more than {limit} {what}")
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise HttpProblem("bad_request", f"the body is not JSON: it breaks at {where}") from None
    except UnicodeDecodeError as error:
        raise HttpProblem("bad_request", f"the body is not UTF-8: byte {error.start}") from None
    except RecursionError:
        raise HttpProblem("bad_request", "the body is nested too deeply") from None
    except ValueError:
        raise HttpProblem("bad_request", "the body holds a number with too many digits") from None
    if isinstance(value, dict) and len(value) > MAX_FIELDS:
        raise HttpProblem("invalid_request", f"the body has more than {MAX_FIELDS} fields")
    return value


def _has_more(data: bytes, marks: bytes, to_next: re.Pattern[bytes], limit: int) -> bool:
    """Whether a text of JSON has more of these marks, not counting what stands in strings."""
    if sum(data.count(mark) for mark in marks) <= limit:
        return False
    count = at = 0
    while count <= limit and at < len(data):
        match = to_next.match(data, at)
        assert match is not None, "it matches whatever comes"
        at = match.end()
        count += bool(match[1])
    return count > limit


def _no_constant(name: str) -> float:
    raise HttpProblem("bad_request", "the body is not JSON: NaN and infinities are not numbers there")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise HttpProblem("bad_request", "the body has the same name twice in one object")
    return value

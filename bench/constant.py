"""The least that a refusal can cost behind uvicorn: an application that answers everybody alike."""

from __future__ import annotations

from typing import Any

BODY = b'{"error":{"code":"unauthorized"}}'
HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(BODY))]


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer 401."""
    await send({"type": "http.response.start", "status": 401, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})

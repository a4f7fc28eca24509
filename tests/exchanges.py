"""An exchange without a server: what the client sends is given, what it is told is kept."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Message, Receive, Send

from service.api.exchange import Exchange
from service.api.state import ServiceState
from service.settings import Settings


async def stays() -> Message:
    """A `receive` of a client that has sent everything and waits."""
    await asyncio.Event().wait()
    raise AssertionError("nobody sets the event")


async def nowhere(message: Message) -> None:
    """A `send` that nobody reads."""


def make_exchange(
    receive: Receive = stays,
    send: Send = nowhere,
    path: str = "/generate",
    headers: dict[str, str] | None = None,
    state: ServiceState | None = None,
) -> Exchange:
    """One POST on its way."""
    fields = {"host": "x", "content-type": "application/json", **(headers or {})}
    raw = [(name.encode(), value.encode()) for name, value in fields.items()]
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "http_version": "1.1",
        "path": path,
        "headers": raw,
    }
    return Exchange(state or ServiceState(Settings()), scope, receive, send)

"""The OpenAPI description as this service means it, where the framework would say something else.

A stream is described by its events (one object for each, as OpenAPI 3.2's item schema has it), and answers
that the framework assumes but the service never gives are left out. `reply_models` holds the plain replies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

_ASSUMED = ("HTTPValidationError", "ValidationError")  # the framework's own; our validation answers differ
_NATIVE_EVENTS = ["token", "plan", "chunk", "done", "error"]


def event_schema(types: list[str] | None, description: str) -> dict[str, Any]:
    """The schema of one server-sent event.

    Args:
        types: values of its `event` field; None when it has none.
        description: what the data holds.
    """
    data = {"type": "string", "contentMediaType": "application/json", "description": description}
    if types is None:
        return {"type": "object", "properties": {"data": data}, "required": ["data"]}
    kind = {"type": "string", "enum": types}
    return {
        "type": "object",
        "description": "One event; the last one is `done` or `error`",
        "properties": {"event": kind, "data": data},
        "required": ["event", "data"],
    }


NATIVE_STREAM = event_schema(_NATIVE_EVENTS, "a JSON object whose members depend on the event's type")
OPENAI_STREAM = event_schema(None, "a chunk or an error, as JSON; the last event is [DONE] or an error")


def describe(app: FastAPI) -> None:
    """Make `app.openapi` tell the truth about answers."""
    generate: Callable[[], dict[str, Any]] = app.openapi

    def described() -> dict[str, Any]:
        is_new = app.openapi_schema is None
        page = generate()
        if not is_new:
            return page
        for operations in page["paths"].values():
            for operation in operations.values():
                answer = operation["responses"].get("422", {})
                if any(name in str(answer) for name in _ASSUMED):  # this dialect says 400
                    del operation["responses"]["422"]
        for name in _ASSUMED:
            page["components"]["schemas"].pop(name, None)
        return page

    app.openapi = described  # type: ignore[method-assign]  # FastAPI's documented way to extend it

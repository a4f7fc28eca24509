"""What nothing reads in a conversation is told by its place, and what is switched off asks for nothing."""

from __future__ import annotations

from typing import Any

import pytest
from live_service import Live

TURNS = [{"role": "user", "content": "the sea"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
FUNCTION = {"name": "look", "parameters": {"type": "object"}}


@pytest.mark.parametrize(
    ("turn", "told"),
    [
        ({"content": "hi", "foo": 1, "name": "Ann"}, "messages.0.foo"),
        ({"content": "hi", "a b": 1}, "messages.0.?"),
        ({"content": "hi", "foo": None, "refusal": None, "tool_calls": [], "annotations": []}, None),
        (
            {"content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
            "messages.0.content.0.cache_control",
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_an_unread_field_of_a_message(talkative: Live, path: str, turn: Any, told: str | None) -> None:
    reply = talkative.post(path, {"messages": [{"role": "user", **turn}]})
    assert reply.status_code == 200
    assert reply.headers.get("X-Ignored-Fields") == told


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"tools": [], "tool_choice": "none"}, None),
        ({"tools": [TOOL], "tool_choice": "none"}, "tools"),
        ({"functions": [FUNCTION], "function_call": "none"}, "functions"),
    ],
    ids=str,
)
def test_tools_that_are_switched_off(talkative: Live, fields: dict[str, Any], told: str | None) -> None:
    body = {"messages": TURNS, "max_tokens": 4, "seed": 1}
    plain = talkative.post("/v1/chat/completions", body).json()
    reply = talkative.post("/v1/chat/completions", {**body, **fields})
    assert reply.json()["choices"] == plain["choices"]
    assert reply.headers.get("X-Ignored-Fields") == told


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [TOOL]},
        {"tools": [TOOL], "tool_choice": "auto"},
        {"tools": [TOOL], "tool_choice": "required"},
        {"functions": [FUNCTION], "tool_choice": "none"},
    ],
    ids=str,
)
def test_tools_that_may_be_called_are_refused_by_name(talkative: Live, fields: dict[str, Any]) -> None:
    reply = talkative.post("/v1/chat/completions", {"messages": TURNS, **fields})
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["param"] in fields
    assert 'to "none"' in error["message"] or error["param"] == "tool_choice"

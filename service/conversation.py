"""A conversation as a request: for models whose task takes a history in lines, as the built-in one's does.

The page does the same in `api/page/static/chat.js`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from service.errors import InvalidRequest, NotFound

_FIELDS = ({"history"}, {"history", "speaker"})  # of a task that holds a conversation
_SPEAKERS = {"user": "A", "assistant": "B"}


class Message(TypedDict):
    """One turn, in OpenAI's form."""

    role: str
    content: str


def chat_request(
    tasks: Sequence[Mapping[str, Any]], messages: Sequence[Message]
) -> tuple[str, dict[str, Any]]:
    """Where to ask for the next turn, and with what body.

    Args:
        tasks: as `GET /tasks` lists them.
        messages: oldest first; the last one is the user's.

    Raises:
        NotFound: no task holds a conversation.
        InvalidRequest: there is no message, or one of another role than user and assistant.
    """
    task = next(
        (each for each in tasks if each["kind"] == "generate" and set(each["fields"]) in _FIELDS), None
    )
    if task is None:
        raise NotFound("the model has no task for conversations: one of kind generate with the field history")
    if not messages:
        raise InvalidRequest("messages must hold at least one message", "messages")
    for index, message in enumerate(messages):
        if message["role"] not in _SPEAKERS:
            raise InvalidRequest(
                f"messages.{index}.role must be user or assistant for this model", f"messages.{index}.role"
            )
    body = {"history": "\n".join(_line(message) for message in messages)}
    if "speaker" in task["fields"]:
        body["speaker"] = _SPEAKERS["assistant"]
    return f"/tasks/{task['name']}", body


def _line(message: Message) -> str:
    """One line for one turn: a line break in it would begin another."""
    return f"{_SPEAKERS[message['role']]}: {' '.join(message['content'].split())}"


def chat_text(reply: Mapping[str, Any]) -> str:
    """What the model said."""
    text: str = reply["choices"][0]["text"]
    return text

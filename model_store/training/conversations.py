"""Turns the shapes that instruction data come in into a task's fields: messages, ShareGPT, Alpaca.

A conversation gives one example for each of the assistant's turns. A task with the field `history` gets the
turns before as lines `A: …` (user) and `B: …` (assistant), which is how `textgen chat` asks; one with
`system` the system message; one field more is the user's last message. Files are read in `task_rows.py`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MESSAGES = ("messages", "conversations", "conversation")
_ROLES = {
    **dict.fromkeys(("user", "human", "customer", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "agent", "chatgpt"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
}
_SPEAKERS = {"user": "A", "assistant": "B"}
_GIVEN = ("history", "speaker", "system")


class WrongShape(Exception):
    """A record is no conversation, or not one for this task; the message says why."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message: its role (user, assistant, system) and its text."""

    role: str
    text: str


def turns_of(value: object) -> list[Turn]:
    """Read a list of messages, as OpenAI's `role` and `content` or ShareGPT's `from` and `value`.

    Raises:
        WrongShape: Names the message, counted from 0, and what is legal.
    """
    if not isinstance(value, list) or not value:
        raise WrongShape("must be a list of messages, each with role and content, or from and value")
    return [_turn(number, message) for number, message in enumerate(value)]


def _turn(number: int, message: object) -> Turn:
    if not isinstance(message, Mapping):
        raise WrongShape(f"message {number} must be an object with role and content, or from and value")
    role = str(message.get("role", message.get("from", ""))).lower()
    if role not in _ROLES:
        raise WrongShape(f"message {number} has a role that is none of {', '.join(sorted(_ROLES))}")
    content = message.get("content", message.get("value"))
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        content = "".join(texts) if len(texts) == len(parts) else None
    if not isinstance(content, str):
        raise WrongShape(f"message {number} must have its text in content, or in value")
    return Turn(_ROLES[role], content.strip())


def examples(
    turns: Sequence[Turn], fields: Sequence[str], counts: Counter[str]
) -> Iterator[tuple[dict[str, str], str]]:
    """Yield (fields, answer) for each of the assistant's turns that answers a user's.

    Args:
        turns: The conversation.
        fields: Those of the task.
        counts: Gets what could not be used, by reason.

    Raises:
        WrongShape: The task has fields that a conversation does not fill.
    """
    others = [name for name in fields if name not in _GIVEN]
    if len(others) > 1 or not (others or "history" in fields):
        wanted = "history or one field for the user's message, besides speaker and system"
        raise WrongShape(f"a conversation fills {wanted}; the task has {', '.join(fields)}")
    system = " ".join(turn.text for turn in turns if turn.role == "system")
    if system and "system" not in fields:
        counts["system messages left out: the task has no field system"] += 1
    spoken = [turn for turn in turns if turn.role != "system"]
    for number, turn in enumerate(spoken):
        if turn.role != "assistant":
            continue
        if number == 0 or spoken[number - 1].role != "user":
            counts["assistant's turns that answer no user"] += 1
            continue
        asked = number - 1 if others else number
        values = {
            "history": "\n".join(_line(each) for each in spoken[:asked]),
            "speaker": _SPEAKERS["assistant"],
            "system": system,
        }
        filled = {name: values[name] for name in _GIVEN if name in fields}
        filled |= dict.fromkeys(others, spoken[number - 1].text)
        if asked and "history" not in fields:
            counts["replies without the turns before: the task has no field history"] += 1
        yield filled, " ".join(turn.text.split()) if "history" in fields else turn.text


def is_alpaca(record: Mapping[str, Any]) -> bool:
    """Say whether a record has Alpaca's keys: instruction and output, maybe input."""
    return {"instruction", "output"} <= record.keys()


def alpaca(record: Mapping[str, Any], fields: Sequence[str], target: str) -> dict[str, Any]:
    """Give an Alpaca record under the names of a task's fields.

    The instruction and, where there is one, the input in the next line become the task's only field; a task
    that has fields of these names keeps them apart.
    """
    values = dict(record)
    values.setdefault(target, record["output"])
    if "input" in fields:
        values["input"] = record.get("input") or ""
    if len(fields) == 1 and fields[0] not in record:
        parts = (record["instruction"], record.get("input") or "")
        values[fields[0]] = "\n".join(part for part in parts if isinstance(part, str) and part)
    return values


def _line(turn: Turn) -> str:
    """One line for one turn: a line break in it would begin another."""
    return f"{_SPEAKERS[turn.role]}: {' '.join(turn.text.split())}"

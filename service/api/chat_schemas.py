"""The body of `/v1/chat/completions` and how it becomes a task call. Only text can be said and heard here."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, WithJsonSchema
from pydantic_core import PydanticCustomError

from model_store.sampling import OPTIONS, SAMPLING
from service.api.fields import body_field, check_range, table_field
from service.api.openai_fields import (
    BEAM_SEARCH,
    MAX_TOLD,
    OpenAIBody,
    StreamOptions,
    make_base,
    name_told,
    sampling_given,
)
from service.api.problems import HttpProblem
from service.api.structured import StructuredFields
from service.errors import InvalidRequest
from service.tasks.calls import ChatCall, Origin
from service.tasks.fitting import check_unicode

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TOLD_OTHERWISE = ("tool_calls", "function_call", "audio")  # what a message says besides its text
_READ, _READ_OF_PART = ("role", "content", "name"), ("type", "text")
_MESSAGES = (
    "a list of at least one object with role (system, developer, user or assistant) and content (a string)"
)
_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
MESSAGES_SCHEMA = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "properties": {
            "role": {"enum": list(_ROLES)},
            "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}]},
        },
        "required": ["role", "content"],
    },
}


@dataclass(frozen=True, slots=True)
class Messages:
    """A conversation as it was read."""

    turns: tuple[dict[str, str], ...]
    ignored: tuple[str, ...]  # fields of messages that nothing reads, as `messages.0.name`


def read_messages(value: object) -> Messages:
    """Read a conversation; stops at the first wrong message.

    Raises:
        HttpProblem, InvalidRequest: a message is none that a model of text can read; names it.
    """
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("messages", "not messages")
    turns = tuple(_message(each, f"messages.{index}") for index, each in enumerate(value))
    return Messages(turns, tuple(islice(_ignored(value), MAX_TOLD)))


def _ignored(messages: list[dict[str, Any]]) -> Iterator[str]:
    for index, message in enumerate(messages):
        for name in _unread(message, _READ):
            yield f"messages.{index}.{name}"
        content = message["content"]
        for at, part in enumerate(content if isinstance(content, list) else ()):
            for name in _unread(part, _READ_OF_PART):
                yield f"messages.{index}.content.{at}.{name}"


def _unread(value: dict[str, Any], read: Collection[str]) -> Iterator[str]:
    return (name_told(name) for name, given in value.items() if name not in read and given)


def _message(value: object, at: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise PydanticCustomError("messages", "not messages")
    for key in _TOLD_OTHERWISE:
        if value.get(key):
            raise _refusal(f"{at}.{key} is not supported: this model only takes text", f"{at}.{key}")
    if value.get("role") not in _ROLES:
        raise _refusal(f"{at}.role must be {', '.join(_ROLES)}", f"{at}.role")
    message = {"role": _ROLES[value["role"]], "content": _content(value.get("content"), f"{at}.content")}
    if isinstance(name := value.get("name"), str):
        message["name"] = name
    for key, text in message.items():
        check_unicode(f"{at}.{key}", text)
    return message


def _content(value: object, at: str) -> str:
    """A text, or the text of its parts in lines."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise _refusal(f"{at} must be a string, or a list of parts of type text", at)
    texts = []
    for index, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("image_url", "input_audio", "file", "video_url", "refusal"):
            raise _refusal(f"{at}.{index} is of type {kind}, which this model cannot read", f"{at}.{index}")
        if kind != "text" or not isinstance(part.get("text"), str):
            raise _refusal(f"{at}.{index} must be a part of type text with its text", f"{at}.{index}")
        texts.append(part["text"])
    return "\n".join(texts)


def _refusal(message: str, param: str) -> HttpProblem:
    """What a validator can raise through the framework, with the place in the message."""
    return HttpProblem("invalid_request", message, param)


if TYPE_CHECKING:
    _ChatSampling = OpenAIBody
else:
    _ChatSampling = make_base("_ChatSampling", {})  # a conversation has the model's own defaults


class ChatBody(StructuredFields, _ChatSampling):
    """A conversation whose next turn is wanted, as OpenAI's clients ask for it."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"messages": [{"role": "user", "content": "Hi!"}], "max_tokens": 16}]}
    )

    messages: Annotated[Messages, BeforeValidator(read_messages), WithJsonSchema(MESSAGES_SCHEMA)] = (
        body_field(..., _MESSAGES)
    )
    model: str = body_field("", "the served model's name, or left out")
    max_tokens: int = body_field(
        None, "an integer from 1 to what fits; left out or -1: what the model's turns take"
    )
    max_completion_tokens: int = body_field(None, "as max_tokens, which it wins over")
    n: int = table_field(OPTIONS["n"], 1)
    stream: bool = body_field(False, "true or false")
    stream_options: StreamOptions = body_field(None, "an object, with stream only")
    use_beam_search: bool = body_field(False, BEAM_SEARCH)
    logprobs: bool = body_field(False, "true or false")
    top_logprobs: int = table_field(OPTIONS["logprobs"], 0, "an integer from 0 to 20, with logprobs only")
    overflow: Literal["error", "drop_oldest"] = body_field("error", '"error" or "drop_oldest"')
    user: str = body_field("", "a string; not used")

    @classmethod
    def spelling(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """See `Body`."""
        names = super().spelling(given)
        if given.get("max_completion_tokens") is not None:
            names["max_new_tokens"] = "max_completion_tokens"
        return names

    def ignored(self) -> Iterator[str]:
        """See `OpenAIBody`."""
        yield from super().ignored()
        yield from self.messages.ignored

    def to_call(self, origin: Origin) -> ChatCall:
        """The task call.

        Raises:
            InvalidRequest: something is asked for that cannot be given, or options contradict each other.
        """
        self.check_understood()
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options needs stream: true", "stream_options")
        if self.top_logprobs and not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs: true", "top_logprobs")
        check_range("top_logprobs", self.top_logprobs, OPTIONS["logprobs"])
        sampling: dict[str, Any] = sampling_given(self)
        if self.max_completion_tokens is not None:
            if self.max_completion_tokens != -1:
                check_range("max_completion_tokens", self.max_completion_tokens, SAMPLING["max_new_tokens"])
            sampling["max_new_tokens"] = self.max_completion_tokens
        if sampling.get("max_new_tokens") == -1:
            del sampling["max_new_tokens"]
        return ChatCall(
            self.messages.turns,
            self.n,
            self.top_logprobs if self.logprobs else None,
            self.to_constraint(),
            self.overflow,
            sampling,
            origin,
        )

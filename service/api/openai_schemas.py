"""The body of the OpenAI dialect and how it becomes a task call; `null` means absent, defaults are OpenAI's.

What is accepted for compatibility only (`best_of`, `suffix`) must be neutral, or is refused by name. What all
bodies of the dialect share is in `openai_fields`, the body of a conversation in `chat_schemas`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import BeforeValidator, ConfigDict, WithJsonSchema
from pydantic_core import PydanticCustomError

from model_store.sampling import OPTIONS, SAMPLING
from service.api.fields import IDS_SCHEMA, are_ids, body_field, table_field
from service.api.openai_fields import BEAM_SEARCH, OpenAISampling, StreamOptions, sampling_given
from service.api.structured import StructuredFields
from service.errors import InvalidRequest
from service.tasks.calls import GenerateCall, Origin

_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        {**IDS_SCHEMA, "minItems": 1},
        {"type": "array", "items": IDS_SCHEMA, "minItems": 1},
    ]
}
PromptValue = tuple[str, ...] | tuple[tuple[int, ...], ...]


def _prompts(value: object) -> PromptValue:
    """Read a prompt of any of the four forms; stops at the first wrong item."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return tuple(value)
        if are_ids(value):
            return (tuple(value),)
        if all(isinstance(item, list) and are_ids(item) for item in value):
            return tuple(map(tuple, value))
    raise PydanticCustomError("prompt", "not a prompt")


class CompletionBody(StructuredFields, OpenAISampling):
    """A completion as OpenAI's clients ask for it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "Once upon a time", "max_tokens": 16},
                {"prompt": [[464, 3139]], "max_tokens": 4, "logprobs": 2, "seed": 7, "stream": False},
            ]
        }
    )

    prompt: Annotated[PromptValue, BeforeValidator(_prompts), WithJsonSchema(_PROMPT_SCHEMA)] = body_field(
        ..., "a string, a list of strings, a list of token ids, or a list of such lists"
    )
    model: str = body_field("", "the served model's name, or left out")
    max_tokens: int = table_field(
        replace(SAMPLING["max_new_tokens"], min=-1),
        16,
        "an integer from 1 (0 with echo) to what fits, or -1: what fits",
    )
    n: int = table_field(OPTIONS["n"], 1)
    stream: bool = body_field(False, "true or false")
    stream_options: StreamOptions = body_field(None, "an object, with stream only")
    logprobs: int = table_field(OPTIONS["logprobs"], None, "an integer from 0 (the chosen token) to 20")
    echo: bool = body_field(False, "true or false")
    best_of: int = table_field(OPTIONS["n"], None, "left out, or equal to n; with use_beam_search, its beams")
    use_beam_search: bool = body_field(False, BEAM_SEARCH)
    suffix: str = body_field("", "left out, or empty")
    parse_special_tokens: bool = body_field(None, "true or false")
    add_special_tokens: bool = body_field(True, "true or false")
    truncate_prompt_tokens: int = body_field(
        None, "an integer from 1: so many of its last tokens are read", ge=1
    )
    user: str = body_field("", "a string; not used")

    def to_call(self, origin: Origin) -> GenerateCall:
        """The task call.

        Raises:
            InvalidRequest: `best_of` or `suffix` asks for something, or options contradict each other.
        """
        if self.best_of not in (None, self.n) and not self.use_beam_search:
            text = "best_of is not supported without use_beam_search; leave it out or set it to n"
            raise InvalidRequest(text, "best_of")
        if self.suffix:
            raise InvalidRequest("suffix is not supported; leave it out", "suffix")
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options needs stream: true", "stream_options")
        self.check_understood()
        return GenerateCall(
            self.prompt,
            self.n,
            self.echo,
            self.logprobs,
            allow_zero=self.echo,
            constraint=self.to_constraint(),
            parses_special=self.parse_special_tokens,
            keeps_last=self.truncate_prompt_tokens,
            adds_special=self.add_special_tokens,
            fills_window=self.max_tokens == -1,
            sampling=sampling_given(self),
            origin=origin,
        )

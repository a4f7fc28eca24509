"""The body of the OpenAI dialect and how it becomes a task call; `null` means absent, defaults are OpenAI's.

What is accepted for compatibility only (`best_of`, `suffix`) must be neutral, or is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from service.api.schemas import Body, Stops, body_field
from service.errors import InvalidRequest
from service.tasks.calls import GenerateCall, Origin, SamplingFields
from service.tasks.sampling import MAX_BIASES, MAX_STOP_IDS

_INTS = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        {**_INTS, "minItems": 1},
        {"type": "array", "items": _INTS, "minItems": 1},
    ]
}
_BIAS_SCHEMA = {
    "type": "object",
    "patternProperties": {"^[0-9]{1,9}$": {"type": "number", "minimum": -100, "maximum": 100}},
    "additionalProperties": False,
    "maxProperties": MAX_BIASES,
}

PromptValue = tuple[str, ...] | tuple[tuple[int, ...], ...]


def _prompts(value: object) -> PromptValue:
    """Read a prompt of any of the four forms; stops at the first wrong item."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return tuple(value)
        if _are_ids(value):
            return (tuple(value),)
        if all(isinstance(item, list) and _are_ids(item) for item in value):
            return tuple(map(tuple, value))
    raise PydanticCustomError("prompt", "not a prompt")


def _are_ids(value: list[Any]) -> bool:
    return set(map(type, value)) <= {int} and min(value, default=0) >= 0  # a body holds two million of them


def _ids(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_STOP_IDS or not _are_ids(value):
        raise PydanticCustomError("ids", "not token ids")
    return tuple(value)


def _biases(value: object) -> tuple[tuple[int, float], ...]:
    """Read `{"50256": -100}`."""
    if not isinstance(value, Mapping) or len(value) > MAX_BIASES:
        raise PydanticCustomError("logit_bias", "not a map of biases")
    for key, bias in value.items():
        is_id = isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10
        if not is_id or type(bias) not in (int, float) or not -100 <= bias <= 100:
            raise PydanticCustomError("logit_bias", "not a map of biases")
    return tuple((int(key), float(bias)) for key, bias in value.items())


class OpenAIBody(Body):
    """An object of the OpenAI dialect, where `null` means absent."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        if isinstance(data, dict):
            return {name: value for name, value in data.items() if value is not None}
        return data


class StreamOptions(OpenAIBody):
    """What a stream tells besides its tokens."""

    include_usage: bool = body_field(False, "true or false")
    include_obfuscation: bool = body_field(False, "true or false; accepted, nothing is obfuscated")


class CompletionBody(OpenAIBody):
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
    max_tokens: int = body_field(16, "an integer from 1 (0 with echo) to what fits", ge=0, le=2**20)
    temperature: float = body_field(1.0, "a number from 0 (greedy) to 2", ge=0, le=2)
    top_p: float = body_field(1.0, "a number above 0, up to 1", gt=0, le=1)
    n: int = body_field(1, "an integer from 1 to 16", ge=1, le=16)
    stream: bool = body_field(False, "true or false")
    stream_options: StreamOptions = body_field(None, "an object, with stream only")
    logprobs: int = body_field(None, "an integer from 0 (the chosen token) to 10", ge=0, le=10)
    echo: bool = body_field(False, "true or false")
    stop: Stops = body_field((), "a string, or at most 8, of 1 to 1000 characters each")
    presence_penalty: float = body_field(0.0, "a number from -2 to 2", ge=-2, le=2)
    frequency_penalty: float = body_field(0.0, "a number from -2 to 2", ge=-2, le=2)
    best_of: int = body_field(None, "left out, or equal to n")
    suffix: str = body_field("", "left out, or empty")
    logit_bias: Annotated[
        tuple[tuple[int, float], ...], BeforeValidator(_biases), WithJsonSchema(_BIAS_SCHEMA)
    ] = body_field((), f"at most {MAX_BIASES} token ids, each with a number from -100 to 100")
    user: str = body_field("", "a string; not used")
    seed: int = body_field(None, "an integer from 0 to 2^63-1", ge=0, le=2**63 - 1)
    top_k: int = body_field(0, "an integer from 0 (off) on", ge=0, le=2**31 - 1)
    min_p: float = body_field(0.0, "a number from 0 to 1", ge=0, le=1)
    repetition_penalty: float = body_field(1.0, "a number above 0, up to 1000000", gt=0, le=1e6)
    min_tokens: int = body_field(0, "an integer from 0 on", ge=0, le=2**20)
    ignore_eos: bool = body_field(False, "true or false")
    stop_token_ids: Annotated[
        tuple[int, ...], BeforeValidator(_ids), WithJsonSchema({**_INTS, "maxItems": MAX_STOP_IDS})
    ] = body_field((), f"a list of at most {MAX_STOP_IDS} token ids")

    def to_call(self, origin: Origin) -> GenerateCall:
        """The task call.

        Raises:
            InvalidRequest: `best_of` or `suffix` asks for something, or options contradict each other.
        """
        self._refuse_unsupported()
        sampling = SamplingFields(
            max_new_tokens=self.max_tokens,
            min_new_tokens=self.min_tokens,
            ignore_eos=self.ignore_eos,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            no_repeat_ngram_size=0,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            seed=self.seed,
            logit_bias=self.logit_bias,
        )
        return GenerateCall(self.prompt, self.n, self.echo, self.logprobs, sampling=sampling, origin=origin)

    def _refuse_unsupported(self) -> None:
        if self.best_of not in (None, self.n):
            raise InvalidRequest("best_of is not supported; leave it out or set it to n", "best_of")
        if self.suffix:
            raise InvalidRequest("suffix is not supported; leave it out", "suffix")
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options needs stream: true", "stream_options")


OPENAI_LEGAL: dict[str, str] = {
    name: item.description or ""
    for body in (CompletionBody, StreamOptions)
    for name, item in body.model_fields.items()
}

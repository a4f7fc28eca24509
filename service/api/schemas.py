"""Bodies of the native dialect: types, ranges and examples, and how they become task calls.

Bodies are strict (`true` is not 1, `"5"` is not 5) and know no extra field. Ranges that depend on the model
are checked by the task runner. The legal values in words (`LEGAL`) serve error messages and the OpenAPI page.
`replies` holds what comes back, `openai_schemas` the other dialect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from service.tasks.calls import (
    GenerateCall,
    Origin,
    Overflow,
    QaCall,
    SamplingFields,
    Strategy,
    SummarizeCall,
    TaskCall,
)

MAX_STOPS = 8
MAX_STOP_CHARS = 1000
_MOST_TOKENS = 2**20
_SAMPLING_NAMES = (
    "max_new_tokens", "min_new_tokens", "ignore_eos", "temperature", "top_k", "top_p", "min_p",
    "repetition_penalty", "no_repeat_ngram_size", "frequency_penalty", "presence_penalty", "seed",
)  # fmt: skip


def _prompts(value: object) -> tuple[str, ...]:
    """Read a prompt or a list of prompts; stops at the first wrong one, however many there are."""
    prompts = [value] if isinstance(value, str) else value
    if not isinstance(prompts, list) or not prompts or not all(isinstance(item, str) for item in prompts):
        raise PydanticCustomError("prompt", "not a prompt")
    return tuple(prompts)


def stops(value: object) -> tuple[str, ...]:
    """Read a stop string or a list of them."""
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or len(found) > MAX_STOPS:
        raise PydanticCustomError("stop", "not stop strings")
    if not all(isinstance(item, str) and 0 < len(item) <= MAX_STOP_CHARS for item in found):
        raise PydanticCustomError("stop", "not stop strings")
    if not all(_is_unicode(item) for item in found):
        raise PydanticCustomError("string_unicode", "half a surrogate pair")
    return tuple(found)


def _is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_STRING_OR_LIST = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]
}
_STOP_STRING = {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARS}
STOP_SCHEMA = {"anyOf": [_STOP_STRING, {"type": "array", "items": _STOP_STRING, "maxItems": MAX_STOPS}]}
Prompts = Annotated[tuple[str, ...], BeforeValidator(_prompts), WithJsonSchema(_STRING_OR_LIST)]
Stops = Annotated[tuple[str, ...], BeforeValidator(stops), WithJsonSchema(STOP_SCHEMA)]


def body_field(default: Any, legal: str, **limits: Any) -> Any:
    """A field with its legal values in words."""
    return Field(default, description=legal, **limits)


class Body(BaseModel):
    """What all bodies are: strict, closed, frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class SamplingBody(Body):
    """The sampling fields of the native dialect. A field left out takes the task's default."""

    max_new_tokens: int = body_field(
        None, "an integer from 1 to what fits beside the prompt", ge=1, le=_MOST_TOKENS
    )
    min_new_tokens: int = body_field(0, "an integer from 0 on", ge=0, le=_MOST_TOKENS)
    ignore_eos: bool = body_field(False, "true or false")
    temperature: float = body_field(None, "a number from 0 (greedy) to 2", ge=0, le=2)
    top_k: int = body_field(None, "an integer from 0 (off) on", ge=0, le=2**31 - 1)
    top_p: float = body_field(None, "a number above 0, up to 1", gt=0, le=1)
    min_p: float = body_field(None, "a number from 0 to 1", ge=0, le=1)
    repetition_penalty: float = body_field(None, "a number above 0, up to 1000000", gt=0, le=1e6)
    no_repeat_ngram_size: int = body_field(None, "an integer from 0 (off) on", ge=0, le=_MOST_TOKENS)
    frequency_penalty: float = body_field(None, "a number from -2 to 2", ge=-2, le=2)
    presence_penalty: float = body_field(None, "a number from -2 to 2", ge=-2, le=2)
    stop: Stops = body_field(
        None, f"a string, or at most {MAX_STOPS}, of 1 to {MAX_STOP_CHARS} characters each"
    )
    seed: int = body_field(None, "an integer from 0 to 2^63-1", ge=0, le=2**63 - 1)
    stream: bool = body_field(False, "true or false")
    timeout_s: float = body_field(None, "seconds above 0, up to 86400", gt=0, le=86400)
    overflow: Overflow = body_field("error", '"error" or "truncate_left"')

    def sampling(self) -> SamplingFields:
        """The fields that were given; the others stay None, which means the task's default."""
        given = {name: getattr(self, name) for name in _SAMPLING_NAMES if name in self.model_fields_set}
        return SamplingFields(**given, stop=self.stop if "stop" in self.model_fields_set else None)


def _samples() -> Any:
    return body_field(1, "an integer from 1 to 16", ge=1, le=16)


def _logprobs() -> Any:
    return body_field(0, "an integer from 0 (off) to 10 alternatives per token", ge=0, le=10)


def _num_answers() -> Any:
    return body_field(1, "an integer from 1 to 20", ge=1, le=20)


class GenerateBody(SamplingBody):
    """Continue a prompt, or several."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "Once upon a time", "max_new_tokens": 32},
                {
                    "prompt": ["The sea", "The sky"],
                    "n": 2,
                    "temperature": 0.8,
                    "seed": 7,
                    "max_new_tokens": 16,
                },
            ]
        }
    )

    prompt: Prompts = body_field(..., "a string, or a list of at least one string")
    n: int = _samples()
    echo: bool = body_field(False, "true or false")
    logprobs: int = _logprobs()

    def to_call(self, origin: Origin) -> GenerateCall:
        """The task call."""
        return GenerateCall(
            self.prompt, self.n, self.echo, self.logprobs or None, self.overflow, self.sampling(), origin
        )


class SummarizeBody(SamplingBody):
    """Summarise a text of any length."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"text": "The ship left at dawn. …", "max_new_tokens": 48}]}
    )

    text: str = body_field(..., "a string that is not blank")
    strategy: Strategy = body_field("auto", '"auto", "single" or "map_reduce"')

    def to_call(self, origin: Origin) -> SummarizeCall:
        """The task call."""
        return SummarizeCall(self.text, self.strategy, self.overflow, self.sampling(), origin)


class QaBody(SamplingBody):
    """Answer a question from a context of any length."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"question": "When did the ship leave?", "context": "The ship left at dawn."}]
        }
    )

    question: str = body_field(..., "a string that is not blank")
    context: str = body_field(..., "a string that is not blank")
    num_answers: int = _num_answers()
    no_answer: bool = body_field(True, "true or false")
    grounded: bool = body_field(True, "true or false")

    def to_call(self, origin: Origin) -> QaCall:
        """The task call."""
        return QaCall(
            self.question,
            self.context,
            self.num_answers,
            self.no_answer,
            self.grounded,
            self.overflow,
            self.sampling(),
            origin,
        )


class TaskBody(SamplingBody):
    """Run any task of the served model: its own fields beside the sampling fields."""

    model_config = ConfigDict(
        extra="allow", json_schema_extra={"examples": [{"prompt": "Once upon a time", "max_new_tokens": 16}]}
    )
    __pydantic_extra__: dict[str, str]

    n: int = _samples()
    echo: bool = body_field(False, "true or false")
    logprobs: int = _logprobs()
    strategy: Strategy = body_field("auto", '"auto", "single" or "map_reduce"')
    num_answers: int = _num_answers()
    no_answer: bool = body_field(True, "true or false")
    grounded: bool = body_field(True, "true or false")

    def to_call(self, name: str, origin: Origin) -> TaskCall:
        """The task call; options that were not given stay None, since not every kind has them."""
        options = ("n", "echo", "strategy", "num_answers", "no_answer", "grounded")
        given: dict[str, Any] = {key: getattr(self, key) for key in options if key in self.model_fields_set}
        if "logprobs" in self.model_fields_set:
            given["logprobs"] = self.logprobs or None
        fields: Mapping[str, str] = self.__pydantic_extra__ or {}
        return TaskCall(
            name, fields, **given, overflow=self.overflow, sampling=self.sampling(), origin=origin
        )


LEGAL: dict[str, str] = {
    name: item.description or ""
    for body in (GenerateBody, SummarizeBody, QaBody, TaskBody)
    for name, item in body.model_fields.items()
}

Kind = Literal["generate", "summarize", "qa", "choice"]

"""Bodies of the native dialect: types, ranges and examples, and how they become task calls.

Bodies are strict (`true` is not 1, `"5"` is not 5) and know no extra field. Their sampling fields come from
`fields`; ranges are checked by the task runner. The legal values in words (`LEGAL`) serve messages and the
OpenAPI page. `replies` holds what comes back, `openai_schemas` the other dialect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, ConfigDict, WithJsonSchema, create_model

from model_store.sampling import OPTIONS, SAMPLING
from service.api.fields import Body, body_field, read_texts, sampling_fields, table_field
from service.api.structured import ConstraintBody, constraint_field
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

_STRING_OR_LIST = {
    "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]
}
Prompts = Annotated[tuple[str, ...], BeforeValidator(read_texts), WithJsonSchema(_STRING_OR_LIST)]


if TYPE_CHECKING:
    _SamplingFields = Body
else:
    _NOT_NATIVE = {"stop_token_ids": None, "logit_bias": None}
    _SamplingFields = create_model("_SamplingFields", __base__=Body, **sampling_fields(_NOT_NATIVE))


class SamplingBody(_SamplingFields):
    """The sampling fields of the native dialect. A field left out takes the task's default."""

    stream: bool = body_field(False, "true or false")
    timeout_s: float = body_field(None, "seconds above 0, up to 86400", gt=0, le=86400)
    overflow: Overflow = body_field("error", '"error" or "truncate_left"')

    def sampling(self) -> SamplingFields:
        """The fields that were given."""
        return {name: getattr(self, name) for name in SAMPLING if name in self.model_fields_set}


def _option(name: str, default: int, legal: str = "") -> Any:
    return table_field(OPTIONS[name], default, legal)


_LOGPROBS = "an integer from 0 (off) to 20 alternatives per token"


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
    n: int = _option("n", 1)
    echo: bool = body_field(False, "true or false")
    logprobs: int = _option("logprobs", 0, _LOGPROBS)
    parse_special_tokens: bool = body_field(None, "true or false")
    constraint: ConstraintBody = constraint_field()

    def to_call(self, origin: Origin) -> GenerateCall:
        """The task call."""
        return GenerateCall(
            self.prompt,
            self.n,
            self.echo,
            self.logprobs or None,
            constraint=None if self.constraint is None else self.constraint.to_constraint(),
            overflow=self.overflow,
            parses_special=self.parse_special_tokens,
            sampling=self.sampling(),
            origin=origin,
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
    num_answers: int = _option("num_answers", 1)
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

    n: int = _option("n", 1)
    echo: bool = body_field(False, "true or false")
    logprobs: int = _option("logprobs", 0, _LOGPROBS)
    constraint: ConstraintBody = constraint_field()
    strategy: Strategy = body_field("auto", '"auto", "single" or "map_reduce"')
    num_answers: int = _option("num_answers", 1)
    no_answer: bool = body_field(True, "true or false")
    grounded: bool = body_field(True, "true or false")

    def to_call(self, name: str, origin: Origin) -> TaskCall:
        """The task call; options that were not given stay None, since not every kind has them."""
        options = ("n", "echo", "strategy", "num_answers", "no_answer", "grounded")
        given: dict[str, Any] = {key: getattr(self, key) for key in options if key in self.model_fields_set}
        if "logprobs" in self.model_fields_set:
            given["logprobs"] = self.logprobs or None
        if "constraint" in self.model_fields_set:
            given["constraint"] = self.constraint.to_constraint()
        fields: Mapping[str, str] = self.__pydantic_extra__ or {}
        return TaskCall(
            name, fields, **given, overflow=self.overflow, sampling=self.sampling(), origin=origin
        )


LEGAL: dict[str, str] = {
    name: item.description or ""
    for body in (ConstraintBody, GenerateBody, SummarizeBody, QaBody, TaskBody)
    for name, item in body.model_fields.items()
}

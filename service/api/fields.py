"""The sampling fields of a body, made from `model_store.sampling`'s table for whichever dialect asks.

Bodies check types and shapes and describe ranges; the task runner checks them. Read `schemas` for the native
bodies, `openai_schemas` for the other dialect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from model_store import sampling as table
from service.errors import InvalidRequest


class Body(BaseModel):
    """What all bodies are: strict, closed, frozen."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @classmethod
    def spelling(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """Our names of fields and what this caller calls them, for messages.

        Args:
            given: the body as it came.
        """
        return {}


def body_field(default: Any, legal: str, **limits: Any) -> Any:
    """A field with its legal values in words."""
    return Field(default, description=legal, **limits)


def table_field(field: table.Field, default: Any, legal: str = "") -> Any:
    """A number or a switch of the table.

    Args:
        field: what it takes.
        default: when it is left out.
        legal: legal values in words, where the dialect has others.
    """
    if field.type is bool:
        return body_field(default, legal or field.words)
    lowest = "minimum" if field.min_is_legal else "exclusiveMinimum"
    bounds = {lowest: field.type(field.min), "maximum": field.type(field.max)}
    return body_field(default, legal or field.words, json_schema_extra=bounds)


def sampling_fields(
    names: Mapping[str, str | None] | None = None, defaults: Mapping[str, Any] | None = None
) -> dict[str, tuple[Any, Any]]:
    """All sampling fields, as `pydantic.create_model` takes them.

    Args:
        names: the dialect's own names for some of them; None for one that it does not have.
        defaults: of those whose default is not None, which stands for the task's own.
    """
    fields: dict[str, tuple[Any, Any]] = {}
    for name, field in table.SAMPLING.items():
        own_name, default = (names or {}).get(name, name), (defaults or {}).get(name)
        if own_name is not None:
            if field.type is tuple:
                fields[own_name] = (_LISTS[name], body_field(default, field.words))
            elif field.words_too:
                fields[own_name] = (bool | Literal[field.words_too], body_field(default, field.words))
            else:
                value = default if default is None else field.type(default)
                fields[own_name] = (field.type, table_field(field, value))
    return fields


def check_range(name: str, value: Any, field: table.Field) -> None:
    """Raise `InvalidRequest` for a value out of a field's range, by the name that the field has here."""
    if value is not None and field.problem(value):
        raise InvalidRequest(f"{name} must be {field.words}", name)


# ---- lists ------------------------------------------------------------------------------------------------


def read_stops(value: object) -> tuple[str, ...]:
    """Read a stop string or a list of them."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise PydanticCustomError("stop", "not stop strings")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("string_unicode", "half a surrogate pair") from None
    return tuple(texts)


def read_texts(value: object) -> tuple[str, ...]:
    """Read a text or a list of them; stops at the first wrong one, however many there are."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise PydanticCustomError("prompt", "not a prompt")
    return tuple(texts)


def are_ids(value: list[Any]) -> bool:
    """Whether a list holds token ids of some vocabulary; a body holds two million of them."""
    return set(map(type, value)) <= {int} and min(value, default=0) >= 0


def read_ids(value: object) -> tuple[int, ...]:
    """Read a list of token ids."""
    if not isinstance(value, list) or not are_ids(value):
        raise PydanticCustomError("ids", "not token ids")
    return tuple(value)


def read_biases(value: object) -> tuple[tuple[int, float], ...]:
    """Read `{"50256": -100}`; one with far too many is not read."""
    if not isinstance(value, Mapping) or len(value) > table.MAX_BIASES:
        raise PydanticCustomError("logit_bias", "not a map of biases")
    for key, bias in value.items():
        is_id = isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10
        if not is_id or type(bias) not in (int, float) or not abs(bias) <= table.MAX_BIAS:
            raise PydanticCustomError("logit_bias", "not a map of biases")
    return tuple((int(key), float(bias)) for key, bias in value.items())


_STOP_STRING = {"type": "string", "minLength": 1, "maxLength": table.MAX_STOP_CHARS}
_STOPS_SCHEMA = {
    "anyOf": [_STOP_STRING, {"type": "array", "items": _STOP_STRING, "maxItems": table.MAX_STOPS}]
}
IDS_SCHEMA: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_BIAS_SCHEMA = {
    "type": "object",
    "patternProperties": {
        "^[0-9]{1,9}$": {"type": "number", "minimum": -table.MAX_BIAS, "maximum": table.MAX_BIAS}
    },
    "additionalProperties": False,
    "maxProperties": table.MAX_BIASES,
}
_LISTS = {
    "stop": Annotated[tuple[str, ...], BeforeValidator(read_stops), WithJsonSchema(_STOPS_SCHEMA)],
    "stop_token_ids": Annotated[
        tuple[int, ...],
        BeforeValidator(read_ids),
        WithJsonSchema({**IDS_SCHEMA, "maxItems": table.MAX_STOP_IDS}),
    ],
    "logit_bias": Annotated[
        tuple[tuple[int, float], ...], BeforeValidator(read_biases), WithJsonSchema(_BIAS_SCHEMA)
    ],
}

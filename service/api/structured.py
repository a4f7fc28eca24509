"""How callers ask for texts of a given form: our `constraint`, and what other dialects call it.

One function or body for each dialect; all give the task call's `Constraint`. What llguidance makes of it is
`service.tasks.constraints`' concern.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from service.api.fields import Body, body_field
from service.errors import InvalidRequest
from service.tasks.calls import Constraint

_WORDS = (
    "an object with one of choice (a list of strings), regex (a string), json_schema (an object), "
    "json_object (true) and grammar (a string, in Lark's notation)"
)
_KINDS = ("choice", "regex", "json_schema", "json_object", "grammar")
_OBJECT = Constraint("json_schema", '{"type":"object"}')


class ConstraintBody(Body):
    """The form that a text must have: exactly one of the fields."""

    choice: list[str] = body_field(None, "a list of strings")
    regex: str = body_field(None, "a regular expression, which the whole text must match")
    json_schema: dict[str, JsonValue] = body_field(None, "a JSON schema")
    json_object: bool = body_field(None, "true: any JSON object")
    grammar: str = body_field(None, "a grammar in Lark's notation")

    def to_constraint(self) -> Constraint:
        """The task call's constraint.

        Raises:
            InvalidRequest: there is not exactly one.
        """
        return _only_one("constraint", {name: getattr(self, name) for name in _KINDS})


def constraint_field() -> Any:
    """The field `constraint` of a body."""
    return body_field(None, _WORDS)


def of_response_format(value: Mapping[str, Any]) -> Constraint | None:
    """OpenAI's `response_format`, or TGI's under that name; None for plain text.

    Raises:
        InvalidRequest: it is none.
    """
    name, kind = "response_format", value.get("type")
    if kind == "text":
        return None
    if kind == "json_object":  # with a schema, as llama.cpp's and others' users say it
        return _constraint(name, "json_schema", value["schema"]) if value.get("schema") else _OBJECT
    if kind in ("json", "regex"):
        return of_tgi_grammar(value, name)
    wrapper = value.get("json_schema")
    if kind == "json_schema" and isinstance(wrapper, dict) and isinstance(wrapper.get("schema"), dict):
        return _constraint(name, "json_schema", wrapper["schema"])
    legal = (
        '{"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": {"schema": {…}}}'
    )
    raise InvalidRequest(f"{name} must be {legal}", name)


def of_structured_outputs(value: Mapping[str, Any]) -> Constraint:
    """vLLM's `structured_outputs`: `json`, `regex`, `choice`, `grammar` or `json_object`.

    Raises:
        InvalidRequest: there is not exactly one.
    """
    if value.get("structural_tag") is not None:
        raise InvalidRequest("structured_outputs.structural_tag is not supported", "structured_outputs")
    given = {name: value.get(name) for name in ("json", *_KINDS) if name != "json_schema"}
    return _only_one("structured_outputs", given)


def of_tgi_grammar(value: Mapping[str, Any], name: str = "grammar") -> Constraint:
    """TGI's `grammar`: `{"type": "json" | "json_schema" | "regex", "value": …}`.

    Args:
        value: the object.
        name: of its field.

    Raises:
        InvalidRequest: it is none.
    """
    kind, inner = value.get("type"), value.get("value")
    if kind == "json_schema" and isinstance(inner, dict) and isinstance(inner.get("schema"), dict):
        inner = inner["schema"]
    if kind in ("json", "json_schema") and isinstance(inner, dict | str):
        return _constraint(name, "json_schema", inner)
    if kind == "regex" and isinstance(inner, str):
        return _constraint(name, "regex", inner)
    legal = "an object with the type json, json_schema or regex, and the schema or the expression as value"
    raise InvalidRequest(f"{name} must be {legal}", name)


class StructuredFields(Body):
    """What the OpenAI dialect's clients send for it: OpenAI's own field, vLLM's of today and before,
    llama.cpp's, SGLang's, and ours.
    """

    response_format: dict[str, JsonValue] = body_field(
        None, "an object whose type is text, json_object or json_schema"
    )
    structured_outputs: dict[str, JsonValue] = body_field(
        None, "an object with one of json, regex, choice, grammar and json_object"
    )
    guided_json: JsonValue = body_field(None, "a JSON schema")
    guided_regex: str = body_field(None, "a regular expression")
    guided_choice: list[str] = body_field(None, "a list of strings")
    guided_grammar: str = body_field(None, "a grammar")
    json_schema: JsonValue = body_field(None, "a JSON schema")
    regex: str = body_field(None, "a regular expression")
    grammar: str = body_field(None, "a grammar")
    ebnf: str = body_field(None, "a grammar")
    constraint: ConstraintBody = constraint_field()

    @classmethod
    def spelling(cls, given: Mapping[str, Any]) -> dict[str, str]:
        """See `Body`."""
        asked = (name for name in StructuredFields.model_fields if given.get(name) is not None)
        return {**super().spelling(given), "constraint": next(asked, "constraint")}

    def to_constraint(self) -> Constraint | None:
        """The task call's constraint; None where none of the fields asks for one.

        Raises:
            InvalidRequest: more than one does, or what one says is not legal.
        """
        constraints: dict[str, Constraint | None] = {}
        if self.response_format is not None:
            constraints["response_format"] = of_response_format(self.response_format)
        if self.structured_outputs is not None:
            constraints["structured_outputs"] = of_structured_outputs(self.structured_outputs)
        for name, kind in (
            ("guided_json", "json_schema"),
            ("guided_regex", "regex"),
            ("guided_choice", "choice"),
            ("guided_grammar", "grammar"),
            ("json_schema", "json_schema"),
            ("regex", "regex"),
            ("grammar", "grammar"),
            ("ebnf", "grammar"),
        ):
            if getattr(self, name) is not None:
                constraints[name] = _constraint(name, kind, getattr(self, name))
        if self.constraint is not None:
            constraints["constraint"] = self.constraint.to_constraint()
        given = [name for name, constraint in constraints.items() if constraint is not None]
        if len(given) > 1:
            raise InvalidRequest(f"{given[1]} must be left out with {given[0]}", given[1])
        return constraints[given[0]] if given else None


def _only_one(name: str, given: Mapping[str, Any]) -> Constraint:
    """The one kind that is given."""
    kinds = [kind for kind, value in given.items() if value is not None and value is not False]
    if len(kinds) != 1:
        raise InvalidRequest(f"{name} must have exactly one of {', '.join(given)}", name)
    kind = "json_schema" if kinds[0] == "json" else kinds[0]
    return _constraint(name, kind, given[kinds[0]])


def _constraint(name: str, kind: str, value: Any) -> Constraint:
    """A constraint of what a field holds.

    Args:
        name: of the field, for messages.
        kind: of `_KINDS`.
        value: as it came.
    """
    if kind == "json_object" and value is True:
        return _OBJECT
    if (
        kind == "choice"
        and isinstance(value, list)
        and value
        and all(isinstance(text, str) for text in value)
    ):
        return Constraint("choice", json.dumps(value))
    if kind == "json_schema" and isinstance(value, dict):
        return Constraint("json_schema", json.dumps(value))
    if isinstance(value, str) and value:
        if kind == "json_schema":
            return Constraint("json_schema", value)
        if kind == "regex":
            return Constraint("regex", value)
        if kind == "grammar":
            return Constraint("grammar", value)
    legal = {"choice": "a list of at least one string", "json_schema": "a JSON schema", "json_object": "true"}
    raise InvalidRequest(f"{name} must have {legal.get(kind, 'a string that is not empty')} as {kind}", name)

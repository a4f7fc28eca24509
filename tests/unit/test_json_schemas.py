"""What a rewritten schema lets through is valid: the places where llguidance alone is too lenient."""

from __future__ import annotations

import json
import math
from typing import Any

import jsonschema
import llguidance
import pytest

from service.tasks.json_schemas import STYLE, to_follow
from service.tasks.schema_unions import tell_apart

BYTES = llguidance.LLTokenizer("byte")


def accepts(schema: dict[str, Any], text: str) -> bool:
    """Whether a constrained text can be `text`."""
    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(to_follow(schema)), defaults=STYLE)
    matcher = llguidance.LLMatcher(BYTES, grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    ids = list(text.encode())
    return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


@pytest.mark.parametrize("low", [0, 19, -3, 0.5, -7.999, 999.5, 0.1 + 0.2, 1e-7, 12345.678])
@pytest.mark.parametrize("width", [0.25, 2, 1000])
def test_a_number_keeps_its_bounds_however_its_reader_rounds(low: float, width: float) -> None:
    high = low + width
    for schema in (
        {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": high},
        {"type": "number", "minimum": low, "exclusiveMaximum": high},
        {"type": ["number", "null"], "exclusiveMinimum": low},
        {"exclusiveMaximum": high},
    ):
        validator = jsonschema.Draft202012Validator(schema)
        assert accepts(schema, f"{low + width / 2:.12f}")
        for bound in (low, high):
            for more in ("", "0", ".0", "0" * 25 + "1", "." + "0" * 25 + "1", "9" * 25):
                text = f"{bound:.12f}".rstrip("0").rstrip(".") + more
                assert not accepts(schema, text) or validator.is_valid(json.loads(text)), (schema, text)


@pytest.mark.parametrize(
    ("schema", "inside", "outside"),
    [
        ({"type": "integer", "exclusiveMinimum": 9007199254740993}, "9007199254741000", "9007199254740993"),
        ({"type": "number", "exclusiveMinimum": True, "minimum": 3}, "3.5", "3"),
        ({"type": "number", "exclusiveMinimum": 3, "minimum": 5}, "5", "4"),
        ({"type": "number", "exclusiveMaximum": 0}, "-0.5", "-0." + "0" * 400 + "1"),
        ({"format": "date"}, '"2024-02-29"', '"2023-02-29"'),
        ({"format": "date"}, '"2000-02-29"', '"1900-02-29"'),
        ({"format": "date"}, '"0400-02-29"', '"0000-01-01"'),
        ({"format": "date-time"}, '"1998-12-31T23:59:59.5Z"', '"1998-12-31T22:59:60Z"'),
        ({"format": "time"}, '"23:59:00+01:30"', '"23:59:60+01:00"'),
        ({"format": "time", "pattern": "Z$"}, '"23:59:00Z"', '"23:59:00+01:00"'),
        ({"format": "email"}, '"a.b@c.org"', f'"{"a" * 65}@c.org"'),
        ({"format": "hostname"}, '"a-b.c"', '"xn--X"'),
        ({"format": "hostname"}, '"a-b.c"', f'"{".".join(["abcdefg"] * 32)}"'),
        ({"type": "string", "format": "colour"}, '"any"', "1"),
        ({"properties": {"a": {"type": "null"}}}, '{"b":1}', '{"\\u0061":1}'),
        ({"type": "string"}, '"\\n"', '"\\ud83d"'),
        ({"minProperties": 2, "required": ["a", "b"]}, '{"a":1,"b":1}', '{"a":1,"a":1}'),
        (
            {"properties": {"format": {"const": {"format": "date"}}}},
            '{"format":{"format":"date"}}',
            '{"format":1}',
        ),
        (
            {"$ref": "#/components/schemas/A", "components": {"schemas": {"A": {"format": "date"}}}},
            '"2024-02-29"',
            '"2023-02-29"',
        ),
    ],
    ids=str,
)
def test_what_is_valid_can_be_written_and_what_is_not_cannot(
    schema: dict[str, Any], inside: str, outside: str
) -> None:
    assert accepts(schema, inside)
    assert not accepts(schema, outside)


A, B = ({"type": "object", "properties": {name: {"type": "null"}}} for name in "ab")
OPEN_A = {**A, "additionalProperties": True}


@pytest.mark.parametrize(
    ("schema", "has_others"),
    [
        (A, False),
        ({"type": "array", "items": A}, False),
        ({"$ref": "#/$defs/A", "$defs": {"A": A}}, False),
        ({"anyOf": [A, {"type": "string"}]}, False),
        (OPEN_A, True),
        ({"type": "object"}, True),
        (
            {"type": "object", "patternProperties": {"^z": {"type": "null"}}, "properties": A["properties"]},
            True,
        ),
        ({"type": "object", "required": ["z"], "properties": A["properties"]}, True),
        ({"allOf": [A, B]}, True),
        ({**A, "$ref": "#/$defs/B", "$defs": {"B": B}}, True),
        ({**A, "anyOf": [B]}, True),
    ],
    ids=str,
)
def test_properties_that_are_not_named_come_only_where_they_are_asked_for(
    schema: dict[str, Any], has_others: bool
) -> None:
    text = '{"z":null}'
    text = f"[{text}]" if schema.get("type") == "array" else text
    assert jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))
    assert accepts(schema, text) == has_others


def tagged(tag: str, field: str, **more: Any) -> dict[str, Any]:
    """An object as pydantic describes one whose tag has a default."""
    kind = {"const": tag, "default": tag, "type": "string"}
    return {
        "type": "object",
        "properties": {"kind": kind, field: {"type": "integer"}},
        "required": [field],
        **more,
    }


BORN = {"type": "string", "format": "date"}
CAT, DOG = tagged("cat", "lives"), tagged("dog", "bones")
PETS = {"oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}], "$defs": {"Cat": CAT, "Dog": DOG}}


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [CAT, DOG]},
        {**PETS, "discriminator": {"propertyName": "kind", "mapping": {"cat": "#/$defs/Cat"}}},
        {"oneOf": [CAT, {"type": "null"}, DOG, {"type": "string"}]},
        {"oneOf": [{"type": "null"}, CAT]},
        {"anyOf": [{"type": "null"}, {"oneOf": [CAT, DOG]}]},
        {"oneOf": [tagged("cat", "lives", required=["kind", "lives"]), DOG]},
        {"oneOf": [{**CAT, "properties": {**CAT["properties"], "kind": {"enum": ["cat", "lion"]}}}, DOG]},
    ],
    ids=str,
)
def test_objects_that_a_tag_tells_apart_have_their_tag_and_nothing_unnamed(schema: dict[str, Any]) -> None:
    cat = '{"kind":"cat","lives":9}'
    assert jsonschema.Draft202012Validator(schema).is_valid(json.loads(cat))
    assert accepts(schema, cat)
    assert not accepts(schema, '{"kind":"cat","lives":9,"bones":1}')
    assert not accepts(schema, '{"kind":"dog","lives":9}')


KEYWORDS = [
    "default",
    "const",
    "enum",
    "examples",
    "properties",
    "$defs",
    "oneOf",
    "allOf",
    "not",
    "if",
    "$ref",
]


@pytest.mark.parametrize("name", KEYWORDS)
@pytest.mark.parametrize("where", ["properties", "$defs", "definitions"])
def test_a_property_or_definition_can_be_named_like_a_keyword(name: str, where: str) -> None:
    reference = {"$ref": f"#/{where}/{name}"}
    union = {"oneOf": [CAT, {"type": "object", "properties": {"kind": {"const": "dog"}, "born": BORN}}]}
    schema = {
        "type": "object",
        where: {name: union},
        "properties": {name: union if where == "properties" else reference},
    }
    for inner, outer, is_written in (
        ('{"kind":"cat","lives":9}', "", True),
        ('{"kind":"dog","born":"2024-02-29"}', "", True),
        ('{"kind":"dog","born":"2023-02-29"}', "", False),
        ('{"kind":"dog","lives":9}', "", False),
        ('{"kind":"cat","lives":9,"z":1}', "", False),
        ('{"kind":"cat","lives":9}', ',"z":1', False),
    ):
        assert accepts(schema, f'{{"{name}":{inner}{outer}}}') == is_written, (inner, outer)


@pytest.mark.parametrize("keyword", ["default", "example", "examples", "const", "enum"])
def test_data_is_left_as_it_is(keyword: str) -> None:
    data = [{"oneOf": [CAT, DOG], "format": "colour", "minProperties": 2, "maximum": 1e300, "properties": {}}]
    assert to_follow({"type": "array", keyword: data}) == {"type": "array", keyword: data}


def test_data_that_looks_like_conditions_opens_no_object() -> None:
    assert not accepts({**A, "default": {"allOf": [1, 2], "not": {"if": 1}}}, '{"z":null}')


def test_a_schema_that_is_given_stays_as_it_was() -> None:
    schema = {"type": "object", "properties": {"a": {"oneOf": [CAT, DOG], "format": "colour"}}}
    before = json.dumps(schema)
    assert to_follow(schema) != schema
    assert json.dumps(schema) == before


def test_only_where_objects_are_told_apart_they_need_their_tag() -> None:
    assert not accepts({"oneOf": [CAT, DOG]}, '{"lives":9}')
    assert accepts({"oneOf": [{"type": "null"}, CAT]}, '{"lives":9}')


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        {"oneOf": [CAT, {"type": "object", "properties": {"kind": {"type": "string"}}}]},
        {"oneOf": [CAT, tagged("cat", "bones")]},
        {"oneOf": [CAT, {"properties": {"kind": {"const": "dog"}}}]},
        {"oneOf": [CAT, {"$ref": "#/$defs/None"}], "$defs": {}},
        {"oneOf": [CAT, {"$ref": "#/oneOf/1"}]},
        {"oneOf": [CAT, {**DOG, "properties": 5}]},
        {"oneOf": [CAT, {**DOG, "required": 5}]},
        {"oneOf": [CAT, 5]},
        {"oneOf": [CAT, {**DOG, "properties": {**DOG["properties"], "kind": {"enum": ["dog", 5]}}}]},
    ],
    ids=str,
)
def test_what_might_match_two_stays_as_it_is(schema: dict[str, Any]) -> None:
    before = json.dumps(schema)
    tell_apart(schema)
    assert json.dumps(schema) == before


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "minProperties": 2, "required": 5},
        {"type": "object", "properties": {"a": {}}, "required": [{}]},
        {"allOf": 5},
        {"properties": 5, "type": "object"},
        {"format": []},
        {"format": {}},
        {"format": "date", "allOf": None},
        {"format": "date", "allOf": 5},
    ],
    ids=str,
)
def test_a_schema_that_is_none_raises_nothing_else(schema: dict[str, Any]) -> None:
    try:
        made = to_follow(schema)
    except ValueError:
        return
    assert llguidance.LLMatcher.validate_grammar(
        llguidance.LLMatcher.grammar_from_json_schema(json.dumps(made)), None
    )


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "object", "minProperties": 2, "additionalProperties": {"type": "null"}}, "minProperties"),
        ({"properties": {"a": {"enum": ["x", "a\u0000b"]}}}, "control characters"),
        ({"const": {"a\u0001": 1}}, "control characters"),
    ],
)
def test_what_no_grammar_keeps_is_refused(schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        to_follow(schema)


@pytest.mark.parametrize("bound", [1.01e308, -2 * 10**308, 10**400 - 1, 10**4200], ids=[*"abcd"])
@pytest.mark.parametrize("keyword", ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"])
@pytest.mark.parametrize("kind", ["number", "integer"])
def test_a_bound_beyond_all_doubles_is_refused(kind: str, keyword: str, bound: float) -> None:
    with pytest.raises(ValueError, match=f"{keyword} must be from -1e308 to 1e308"):
        to_follow({"items": {"type": kind, keyword: bound}})


@pytest.mark.parametrize("keyword", ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"])
@pytest.mark.parametrize("bound", [10**308, -(10**308), 1e308, 5e-324])
def test_the_largest_bounds_have_finite_neighbours(keyword: str, bound: float) -> None:
    [(_, found)] = to_follow({keyword: bound}).items()
    assert math.isfinite(found)

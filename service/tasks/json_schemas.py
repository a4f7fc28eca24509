"""JSON schemas as llguidance can keep them.

llguidance lets through some of what a schema forbids. Where the schema can be said in words that it keeps, it
is rewritten; where it cannot, it is refused. A rewritten schema allows nothing that the original forbids, and
leaves out little: the tests hold it to the official suite of JSON Schema. Left out on purpose are properties
that are not named, unless there is `additionalProperties`: a small model never comes to their end.
"""

from __future__ import annotations

from copy import deepcopy
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any

from service.tasks.schema_parts import Schema, schemas_in
from service.tasks.schema_unions import tell_apart

# How llguidance writes JSON. One space or line break at most where JSON lets any number stand: a model may
# never come to an end of them. No \u, which would let a key be written in a second way, past its own schema,
# and half a character be written.
STYLE = {"whitespace_pattern": "[ \n]?", "json_allowed_escapes": 'nrbtf"\\'}

_JOINING = ("allOf", "anyOf", "oneOf", "$ref")  # lead to more schemas of the same object
_CONDITIONS = ("not", "if", "contains", "dependentSchemas", "dependencies")
_OPEN = ("additionalProperties", "unevaluatedProperties", "patternProperties", "minProperties")

_LEAP_DAY = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29"
_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"  # 0001 to 9999
_DAY = (
    "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    "|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_DATE = f"(?:{_YEAR}-{_DAY}|{_LEAP_DAY})"
_HOURS = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = f"{_HOURS}:[0-5][0-9](?:\\.[0-9]{{1,9}})?(?:Z|[+-]{_HOURS})"
# llguidance has 29 February every year, a 60th second in every minute, and parts of any length.
_INSTEAD: dict[str, Schema] = {
    "date": {"pattern": f"^{_DATE}$"},
    "time": {"pattern": f"^{_TIME}$"},
    "date-time": {"pattern": f"^{_DATE}T{_TIME}$"},
    "email": {"format": "email", "pattern": "^[^@]{1,64}@[^@]{1,189}$"},
    # no two hyphens in a row: what follows "xn--" is a code with rules of its own
    "hostname": {"format": "hostname", "pattern": "^[A-Za-z0-9]+([-.][A-Za-z0-9]+)*$", "maxLength": 253},
}
_FORMATS = (  # others that JSON Schema knows; llguidance refuses those it cannot keep
    *(
        "duration",
        "idn-email",
        "idn-hostname",
        "ipv4",
        "ipv6",
        "uri",
        "uri-reference",
        "iri",
        "iri-reference",
    ),
    *("uuid", "uri-template", "json-pointer", "relative-json-pointer", "regex"),
)
# Numbers of 15 digits, which are exact wherever they are read, and none smaller than 1e-30, beside 0.
_ABOVE, _BELOW = (Context(15, rounding, Emin=-16, Emax=308) for rounding in (ROUND_CEILING, ROUND_FLOOR))
_MAX_BOUND = 1e308  # its neighbours are finite, too


def to_follow(schema: Schema) -> Schema:
    """Give a schema all of whose texts, as llguidance writes them, are valid against `schema`.

    Raises:
        ValueError: there is none; says which keyword is to blame.
        RecursionError: it is too deep.
    """
    schema = deepcopy(schema)
    tell_apart(schema)
    parts = schemas_in(schema)
    if not any(map(_is_joined, parts)):
        for part in parts:
            _close(part)
    for part in parts:
        _check_characters([part.get("const"), part.get("enum")])
        _include_bounds(part)
        _check_num_properties(part)
        _check_format(part)
    return schema


def _is_joined(schema: Schema) -> bool:
    """Whether an object may be held against several schemas at once, so that none of them names all its
    properties.
    """
    lists = (schema.get(name) for name in ("allOf", "oneOf"))
    has_several = any(isinstance(each, list) and len(each) > 1 for each in lists)
    is_one_of_several = "properties" in schema and any(name in schema for name in _JOINING)
    return has_several or is_one_of_several or any(name in schema for name in _CONDITIONS)


def _close(schema: Schema) -> None:
    """Close an object that names its properties and does not say whether there may be others."""
    names = schema.get("properties")
    is_named = schema.get("type") == "object" and isinstance(names, dict) and _required(schema) <= {*names}
    if is_named and not any(name in schema for name in _OPEN):
        schema["additionalProperties"] = False


def _required(schema: Schema) -> set[str]:
    """The names of required properties; llguidance says what is wrong with others."""
    names = schema.get("required")
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()


def _include_bounds(schema: Schema) -> None:
    """Replace an excluded bound by a neighbour, included, and long bounds by shorter ones inside.

    llguidance excludes a bound by its digits, and 19.00000000000000000001 is read as 19; it reads bounds of
    more than 15 digits not quite exactly.
    """
    types = schema.get("type", "number")
    is_whole = "number" not in (types if isinstance(types, list) else [types])
    for exclusive, inclusive, inside, stricter in (
        ("exclusiveMinimum", "minimum", _ABOVE, max),
        ("exclusiveMaximum", "maximum", _BELOW, min),
    ):
        bounds = {name: schema[name] for name in (exclusive, inclusive) if name in schema}
        if bounds.get(exclusive) is True and inclusive in bounds:  # as the fourth draft says it
            bounds[exclusive] = bounds.pop(inclusive)
        if not bounds or not all(type(bound) in (int, float) for bound in bounds.values()):
            continue  # llguidance says what is wrong
        if max(map(abs, bounds.values())) > _MAX_BOUND:
            raise ValueError(f"{' and '.join(bounds)} must be from -1e308 to 1e308")
        if exclusive in bounds:
            del schema[exclusive]
            bounds[exclusive] = _next(bounds[exclusive], inside, is_whole)
        schema[inclusive] = stricter(_shorter(bound, inside) for bound in bounds.values())


def _next(bound: float, inside: Context, is_whole: bool) -> float:
    """The bound's neighbour in the direction in which `inside` rounds."""
    if is_whole and bound == int(bound):
        return int(bound) + (1 if inside is _ABOVE else -1)
    exact = Decimal(repr(bound))
    return float(inside.next_plus(exact) if inside is _ABOVE else inside.next_minus(exact))


def _shorter(bound: float, inside: Context) -> float:
    """The nearest number of at most 15 digits in the direction in which `inside` rounds."""
    exact = Decimal(repr(bound))
    rounded = inside.plus(exact)
    return bound if rounded == exact else float(rounded)


def _check_characters(value: Any) -> None:
    """Refuse control characters in texts that are given: llguidance drops those that only \\u can write."""
    if isinstance(value, str):
        if any(character < " " and character not in "\b\f\n\r\t" for character in value):
            raise ValueError("const and enum cannot have control characters but \\b, \\f, \\n, \\r and \\t")
    elif isinstance(value, dict | list):
        for part in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_characters(part)


def _check_num_properties(schema: Schema) -> None:
    """Refuse a number of properties that a key written twice could seem to reach."""
    minimum = schema.get("minProperties", 0)
    if not isinstance(minimum, int) or minimum <= 1:
        return
    if minimum > len(_required(schema)):
        raise ValueError("minProperties above 1 cannot be followed, unless as many properties are required")
    del schema["minProperties"]


def _check_format(schema: Schema) -> None:
    """Say a format that llguidance takes too lightly in other words, and leave out what is no format."""
    name, others = schema.get("format"), schema.get("allOf", [])
    if not isinstance(name, str) or not isinstance(others, list):
        return  # llguidance says what is wrong
    if name in _INSTEAD:
        del schema["format"]
        schema["allOf"] = [*others, _INSTEAD[name]]
    elif name not in _FORMATS:
        del schema["format"]  # a note for people, as JSON Schema has it

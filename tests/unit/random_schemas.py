"""JSON schemas in the style of public collections: forms, records, events, settings, trees, tagged unions."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

NAMES = [
    "id",
    "name",
    "email",
    "tags",
    "price",
    "owner",
    "status",
    "created",
    "size",
    "notes",
    "items",
    "x-y",
]
PATTERNS = [
    "^[A-Z]{2,3}$",
    "^[a-z0-9_-]{1,8}$",
    "^\\d{3}-\\d{4}$",
    "^(alpha|beta)(-rc[0-9])?$",
    "^#[0-9a-f]{6}$",
]
FORMATS = ["date", "time", "date-time", "uuid", "ipv4", "email"]


def schemas(count: int, seed: int = 0) -> list[Schema]:
    """So many, each an object or a list at its root, always the same for a seed."""
    return [_root(random.Random(seed * 10**6 + at)) for at in range(count)]


def _root(rng: random.Random) -> Schema:
    kind = rng.choice([_object, _object, _object, _union, _tree, _shared])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **kind(rng, 2)}


def _any(rng: random.Random, depth: int) -> Schema:
    deep = [_object, _array, _union, _tuple] if depth else []
    kinds: list[Callable[[random.Random, int], Schema]] = [_string, _number, _integer, _enum, _plain, *deep]
    return rng.choice(kinds)(rng, depth - 1)


def _object(rng: random.Random, depth: int) -> Schema:
    names = rng.sample(NAMES, rng.randint(1, 4))
    made: Schema = {"type": "object", "properties": {name: _any(rng, depth) for name in names}}
    made["required"] = rng.sample(names, rng.randint(0, len(names)))
    if rng.random() < 0.7:
        made["additionalProperties"] = rng.choice([False, {"type": "boolean"}])
    return made


def _array(rng: random.Random, depth: int) -> Schema:
    least = rng.randint(0, 2)
    return {
        "type": "array",
        "items": _any(rng, depth),
        "minItems": least,
        "maxItems": least + rng.randint(0, 2),
    }


def _tuple(rng: random.Random, depth: int) -> Schema:
    count = rng.randint(1, 3)
    first = [_any(rng, depth) for _ in range(count)]
    return {"type": "array", "prefixItems": first, "items": False, "minItems": count}


def _union(rng: random.Random, depth: int) -> Schema:
    """Of objects told apart by a constant, or of types."""
    if rng.random() < 0.5:
        return {"anyOf": [{"type": "null"}, _string(rng, 0), _object(rng, 0)]}
    kinds = []
    for tag in ("circle", "square", "line")[: rng.randint(2, 3)]:
        properties = {"kind": {"const": tag}, "of": _any(rng, 0)}
        kinds.append(
            {
                "type": "object",
                "properties": properties,
                "required": ["kind", "of"],
                "additionalProperties": False,
            }
        )
    return {rng.choice(["oneOf", "anyOf"]): kinds}


def _tree(rng: random.Random, depth: int) -> Schema:
    node = {
        "type": "object",
        "properties": {
            "value": _any(rng, 0),
            "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
        },
        "required": ["value"],
        "additionalProperties": False,
    }
    return {"$defs": {"node": node}, "$ref": "#/$defs/node"}


def _shared(rng: random.Random, depth: int) -> Schema:
    """Definitions that are used twice, by the older name of their place, too."""
    place = rng.choice(["$defs", "definitions"])
    ref = {"$ref": f"#/{place}/part"}
    return {
        place: {"part": _any(rng, 1)},
        "type": "object",
        "properties": {"first": ref, "all": {"type": "array", "items": ref, "maxItems": 2}},
        "required": ["first"],
        "additionalProperties": False,
    }


def _string(rng: random.Random, depth: int) -> Schema:
    least = rng.randint(0, 3)
    return {
        "type": "string",
        **rng.choice(
            [
                {"minLength": least, "maxLength": least + rng.randint(0, 9)},
                {"pattern": rng.choice(PATTERNS)},
                {"format": rng.choice(FORMATS)},
            ]
        ),
    }


def _number(rng: random.Random, depth: int) -> Schema:
    low = rng.randint(-50, 50)
    low_key, high_key = (
        rng.choice(["minimum", "exclusiveMinimum"]),
        rng.choice(["maximum", "exclusiveMaximum"]),
    )
    return {"type": "number", low_key: low, high_key: low + rng.choice([0.5, 2, 1000])}


def _integer(rng: random.Random, depth: int) -> Schema:
    low = rng.randint(-10, 1000)
    return {"type": "integer", **rng.choice([{"minimum": low, "maximum": low + rng.randint(0, 300)}, {}])}


def _enum(rng: random.Random, depth: int) -> Schema:
    return {"enum": rng.sample(["red", "green", "", 0, 1.5, None, True, "naïve", 'a "b"'], rng.randint(1, 4))}


def _plain(rng: random.Random, depth: int) -> Schema:
    return {"type": rng.choice(["boolean", "null", ["string", "null"], ["integer", "boolean"]])}

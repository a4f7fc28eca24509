"""JSON schemas of which a value is to match exactly one: told apart, they are plain alternatives.

llguidance takes `oneOf` only where it sees by itself that no value matches two, and an object of such a
schema cannot be closed, for another could name the rest. Where types or a tag tell the schemas apart, `anyOf`
says the same of every value that has the tag.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from service.tasks.schema_parts import Schema, schemas_in

_MAX_REFERENCES = 32  # that lead from one to the next


def tell_apart(root: Schema) -> None:
    """Put `anyOf` in place of each `oneOf` within a schema whose alternatives exclude each other."""
    for schema in schemas_in(root):
        branches = schema.get("oneOf")
        if isinstance(branches, list) and "anyOf" not in schema:
            exclusive = _excluding(branches, [_resolved(branch, root) for branch in branches])
            if exclusive is not None:
                del schema["oneOf"]
                schema["anyOf"] = exclusive


def _excluding(branches: list[Any], resolved: list[Schema]) -> list[Schema] | None:
    """The same schemas, those of objects with their tag required; None where a value might match two."""
    types = [schema.get("type") for schema in resolved]
    others = [each for each in types if each != "object"]
    if not all(isinstance(each, str) for each in types) or len({*others}) < len(others):
        return None
    if "integer" in others and "number" in others:
        return None
    objects = [schema for schema in resolved if schema["type"] == "object"]
    if len(objects) < 2:
        return branches
    tag = _tag(objects)
    if tag is None:
        return None
    return [
        {**branch, "required": list(dict.fromkeys([*branch.get("required", ()), tag]))}
        if each == "object"
        else branch
        for branch, each in zip(branches, types, strict=True)
    ]


def _tag(objects: list[Schema]) -> str | None:
    """A property whose texts differ from schema to schema."""
    maps = [each for schema in objects if isinstance(each := schema.get("properties"), dict)]
    if len(maps) < len(objects):
        return None
    for name in maps[0]:
        texts = [_texts(each.get(name)) for each in maps]
        if all(texts) and len(set().union(*texts)) == sum(map(len, texts)):
            return str(name)
    return None


def _texts(schema: Any) -> set[str]:
    """The texts that a property can be; none where it can be something else."""
    if not isinstance(schema, dict):
        return set()
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        return set()
    return {*values}


def _resolved(schema: Any, root: Schema) -> Schema:
    """What a reference within the same document leads to; empty where there is nothing."""
    for _ in range(_MAX_REFERENCES):
        if not isinstance(schema, dict) or not isinstance(schema.get("required", []), list):
            return {}
        reference = schema.get("$ref")
        if not isinstance(reference, str):
            return schema
        at: Any = root if reference.startswith("#/") else None
        for step in reference.split("/")[1:]:
            name = unquote(step).replace("~1", "/").replace("~0", "~")
            at = at.get(name) if isinstance(at, dict) else None
        schema = at
    return {}

"""Where schemas stand in a JSON schema, and where data or names do, whatever they look like."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_DATA = ("const", "enum", "default", "example", "examples")
_MAPS = (  # of names to schemas: a property can have any name, a keyword's too
    "properties",
    "patternProperties",
    "dependentSchemas",
    "dependencies",
    "$defs",
    "definitions",
)


def schemas_in(schema: Schema) -> list[Schema]:
    """List a schema and all that stand in it, each behind those within it.

    What stands behind a keyword that is unknown counts, too: a `$ref` may lead there.
    """
    schemas: list[Schema] = []
    waiting: list[tuple[Any, bool]] = [(schema, False)]  # and whether it is a map of names to schemas
    while waiting:
        value, is_map = waiting.pop()
        if isinstance(value, list):
            waiting += ((part, False) for part in value)
        elif isinstance(value, dict) and is_map:
            waiting += ((part, False) for part in value.values())
        elif isinstance(value, dict):
            schemas.append(value)
            waiting += ((part, name in _MAPS) for name, part in value.items() if name not in _DATA)
    return schemas[::-1]

"""Settings in words: their variables' names, what is legal, the lines for mistakes, the documents' table.

Nothing here knows which settings there are: `service.settings` hands in its fields.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field
from pydantic.fields import FieldInfo

PREFIX = "TEXTGEN_"
Fields = Mapping[str, FieldInfo]


def setting(default: Any, description: str, legal: str, **bounds: Any) -> Any:
    """One setting: what it does, and its legal values in words for the error line and the table."""
    return Field(default, description=description, json_schema_extra={"legal": legal}, **bounds)


def old_setting(legal: str) -> Any:
    """One that another took the place of: not in the table, and gone in the next version."""
    return Field(None, description="See `precision`", json_schema_extra={"legal": legal, "is_old": True})


def variable_name(field: str) -> str:
    """The environment variable of a field: `max_running` -> `TEXTGEN_MAX_RUNNING`."""
    return PREFIX + field.upper()


def legal_values(field: FieldInfo) -> str:
    """The legal values of a setting in words, as Markdown."""
    extra = field.json_schema_extra
    return str(extra["legal"]) if isinstance(extra, dict) else ""


def flag_help(field: FieldInfo) -> str:
    """What a setting does and what is legal, for a flag's help on a terminal."""
    legal = "" if field.annotation is bool else f" Legal: {legal_values(field)}."
    return f"{field.description}.{legal}".replace("`", "")


def name_variables(text: str, fields: Fields) -> str:
    """An engine's message in a person's words: each `name` of a setting becomes its variable."""
    return re.sub(rf"`({'|'.join(fields)})`", lambda name: variable_name(name[1]), text)


def error_line(location: tuple[int | str, ...], message: str, fields: Fields) -> str:
    """One line for one wrong value: the variable and what is legal; never the value, it may be a secret."""
    if not location:
        return message.removeprefix("Value error, ")
    field = str(location[0])
    legal = legal_values(fields[field]).replace("`", "")
    return f"{variable_name(field)} has a value that is not legal; legal is {legal}"


def unknown_lines(variables: Iterable[str], fields: Fields) -> list[str]:
    """One line for each `TEXTGEN_*` variable that no setting reads, with the nearest name that one does."""
    known = [variable_name(field) for field in fields]
    lines = []
    for name in sorted(variables):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            near = difflib.get_close_matches(name.upper(), known, n=1)
            hint = f"did you mean {near[0]}?" if near else "`textgen settings` lists them all"
            lines.append(f"{name} is not a setting; {hint}")
    return lines


def table(fields: Fields) -> str:
    """Variable, default, legal values, meaning, as Markdown; one row for each setting that is not old."""
    rows = [
        f"| `{variable_name(name)}` | {_shown_default(field)} | {legal_values(field)} | {field.description} |"
        for name, field in fields.items()
        if not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("is_old"))
    ]
    return "\n".join(["| variable | default | legal | meaning |", "| --- | --- | --- | --- |", *rows])


def _shown_default(field: FieldInfo) -> str:
    """The default as a person would type it."""
    extra = field.json_schema_extra
    value = extra["default"] if isinstance(extra, dict) and "default" in extra else field.default
    if value is None and "auto" in legal_values(field):
        return "`auto`"
    if value in (None, "", (), {}):
        return ""
    return f"`{int(value) if isinstance(value, bool) else value}`"

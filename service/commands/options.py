"""Options that several commands have, and what becomes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

_WHERE, _SAMPLING = "Which model", "Sampling"

Url = Annotated[
    str | None,
    typer.Option(help="Ask the service at this address, e.g. http://127.0.0.1:8000.", rich_help_panel=_WHERE),
]
KeyFile = Annotated[
    Path | None, typer.Option(help="File whose first line is the service's key.", rich_help_panel=_WHERE)
]
Model = Annotated[
    str | None,
    typer.Option(
        help="Load this model into the process; the built-in one if left out.", rich_help_panel=_WHERE
    ),
]
MaxNewTokens = Annotated[
    int | None, typer.Option(help="Maximum tokens of the answer.", rich_help_panel=_SAMPLING)
]
Temperature = Annotated[float | None, typer.Option(help="0 (greedy) to 2.", rich_help_panel=_SAMPLING)]
TopP = Annotated[float | None, typer.Option(help="Above 0, up to 1.", rich_help_panel=_SAMPLING)]
TopK = Annotated[int | None, typer.Option(help="0 (off) on.", rich_help_panel=_SAMPLING)]
Seed = Annotated[int | None, typer.Option(help="Repeats an answer.", rich_help_panel=_SAMPLING)]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Any other field of the API: --set min_p=0.1.",
        metavar="FIELD=VALUE",
        rich_help_panel=_SAMPLING,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the whole reply as one line of JSON.")]


def fields_of(sets: list[str] | None, **flags: Any) -> dict[str, Any]:
    """The fields of a body: flags that were given, and `FIELD=VALUE` with values in JSON, else as text.

    Raises:
        typer.BadParameter: there is no `=`.
    """
    fields = {name: value for name, value in flags.items() if value is not None}
    for item in sets or []:
        name, is_there, value = item.partition("=")
        if not is_there or not name:
            raise typer.BadParameter("must be FIELD=VALUE", param_hint="--set")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    return fields

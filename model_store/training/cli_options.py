"""Gives a typer command one option for each field of a dataclass, so that commands can share many options.

Help texts come from the dataclass's `Args` section. Used by `cli.py`.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

_FLAGS = {"is_compiled": "--compile", "loss_everywhere": "--loss-everywhere"}
_SHOWN_DEFAULTS = {"store": "~/.local/share/textgen"}
_VARIABLES = {"store": "TEXTGEN_STORE"}


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Put, in the place of each keyword of a command that takes a dataclass, an option for each field.

    Args:
        command: Its keywords (after `*`) of a dataclass's type are made from options; the others stay.
    """
    own = list(inspect.signature(command).parameters.values())
    hints = get_type_hints(command)
    groups = {p.name: hints[p.name] for p in own if p.kind is p.KEYWORD_ONLY and is_dataclass(hints[p.name])}
    names = {keyword: [each.name for each in fields(kind)] for keyword, kind in groups.items()}

    def wrapped(**values: Any) -> None:
        made = {
            keyword: kind(**{name: values.pop(name) for name in names[keyword]})
            for keyword, kind in groups.items()
        }
        command(**made, **values)

    added = [parameter for kind in groups.values() for parameter in _parameters(kind)]
    kept = [p for p in own if p.name not in groups]
    wrapped.__signature__ = inspect.Signature([*kept, *added])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in [*kept, *added]}
    wrapped.__doc__, wrapped.__name__ = command.__doc__, command.__name__
    return wrapped


def argument_helps(documented: type) -> dict[str, str]:
    """Read the `Args` section of a docstring: name -> text on one line."""
    section = inspect.cleandoc(documented.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()).replace("`", "") for name, text in entries}


def _parameters(kind: Any) -> list[inspect.Parameter]:
    helps, hints = argument_helps(kind), get_type_hints(kind)
    return [_parameter(each, hints[each.name], helps[each.name]) for each in fields(kind)]


def _parameter(each: "Field[Any]", hint: Any, text: str) -> inspect.Parameter:
    flag = _FLAGS.get(each.name, "--" + each.name.replace("_", "-"))
    default = None if each.default is MISSING else each.default
    option = typer.Option(
        flag, help=text, envvar=_VARIABLES.get(each.name), show_default=_SHOWN_DEFAULTS.get(each.name, True)
    )
    return inspect.Parameter(
        each.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, option]
    )

"""Gives a typer command one option for each field of a dataclass, so that two commands can share twenty
options.

Help texts come from the dataclass's `Args` section. Used by `cli.py`.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, get_type_hints

import typer

from model_store.training.train import TrainOptions

_FLAGS = {"is_compiled": "--compile"}


def with_train_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the fields of `TrainOptions` to a command's options; they arrive as one argument `options`.

    Args:
        command: Takes a keyword `options: TrainOptions` besides its own.
    """
    helps = argument_helps(TrainOptions)
    hints = get_type_hints(TrainOptions)
    own = [p for p in inspect.signature(command).parameters.values() if p.name != "options"]
    names = [each.name for each in fields(TrainOptions)]

    def wrapped(**values: Any) -> None:
        options = TrainOptions(**{name: values.pop(name) for name in names})
        command(options=options, **values)

    added = [_parameter(each, hints[each.name], helps[each.name]) for each in fields(TrainOptions)]
    wrapped.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in [*own, *added]}
    wrapped.__doc__, wrapped.__name__ = command.__doc__, command.__name__
    return wrapped


def argument_helps(documented: type) -> dict[str, str]:
    """Read the `Args` section of a docstring: name -> text on one line."""
    section = inspect.cleandoc(documented.__doc__ or "").partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()).replace("`", "") for name, text in entries}


def _parameter(each: "Field[Any]", hint: Any, text: str) -> inspect.Parameter:
    flag = _FLAGS.get(each.name, "--" + each.name.replace("_", "-"))
    default = None if each.default is MISSING else each.default
    annotation = Annotated[hint, typer.Option(flag, help=text)]
    return inspect.Parameter(
        each.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )

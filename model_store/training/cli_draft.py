"""What a person decides of a new model's manifest: its licence, its tasks. Used by `cli.py`."""

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import typer

from model_store.task import Task
from model_store.training.recipe import Source

if TYPE_CHECKING:
    from model_store.entry import ModelEntry


def trained_tasks(known: Mapping[str, Task], sources: Sequence[Source]) -> dict[str, Task]:
    """The tasks that there is data for, and `generate`, which every model does; the others are named."""
    wanted = {source.task for source in sources} | {"generate"}
    if others := sorted(known.keys() - wanted):
        _say(f"not offered, as there is no data for them: {', '.join(others)} (--keep-tasks offers them)")
    return {name: task for name, task in known.items() if name in wanted}


def asked_license(base: "ModelEntry") -> str:
    """Ask a person for the new weights' licence; the base's is never taken over without a word."""
    known = base.manifest.license or "not given"
    if sys.stdin.isatty() and sys.stderr.isatty():
        question = f"Licence of the new weights (the base's: {known}; empty: none)"
        answer: str = typer.prompt(question, default="", show_default=False, err=True)
        return answer.strip()
    _say(f"licence: not given; the base's ({known}) is not taken over; name one with --license")
    return ""


def _say(line: str) -> None:
    typer.echo(line, err=True)

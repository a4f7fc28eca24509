"""`textgen model compare A B`: two models on the same test sets, and whether they differ or it may be chance.

Each model is loaded in turn and asked as it would be served. The arithmetic is a paired bootstrap
(`model_store/training/measures.py`).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model_store.cli_store import DEFAULT_STORE, StoreFolder, one_line_errors
from model_store.store import resolve
from model_store.training.errors import InvalidOption
from service.commands.judging import (
    AsJson,
    Columns,
    Data,
    Encoding,
    Limit,
    Report,
    SkipEmpty,
    Targets,
    TaskFile,
    judged,
    loaded,
    test_sets,
    with_tasks,
)

if TYPE_CHECKING:  # not spent on `--help`
    from model_store.training.judged import Judged
    from model_store.training.measures import Difference


def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="A model of the store, or a folder (with a /).")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
    data: Data = None,
    columns: Columns = None,
    encoding: Encoding = "",
    tasks: TaskFile = None,
    target: Targets = None,
    skip_empty: SkipEmpty = False,
    limit: Limit = 0,
    as_json: AsJson = False,
    report: Report = None,
    store: StoreFolder = DEFAULT_STORE,
) -> None:
    """Ask two models the same and say which is better, and how surely."""
    from model_store.training.judged_words import compared

    with one_line_errors():
        if not data:
            raise InvalidOption("--data", "is missing; give TASK=FILE")
        sets = test_sets(data, columns, encoding, target, skip_empty)
        labels, answers = [], []
        for name in (first, second):
            entry = resolve(name, store.expanduser())
            labels.append(entry.label)
            with with_tasks(entry, tasks) as folder, loaded(folder) as http:
                answers.append(judged(http, sets, limit))
        if labels[0] == labels[1]:
            labels = [first, second]
        judged_pairs = {name: (one, answers[1][name]) for name, one in answers[0].items()}
        differences = {name: _differences(*pair) for name, pair in judged_pairs.items()}
        # before anything is written: what took minutes to find is not lost to a full disk
        if as_json:
            typer.echo(json.dumps(_values(labels, differences), indent=2, ensure_ascii=False))
        else:
            for name, rows in differences.items():
                typer.echo("\n".join(_table(name, labels, rows)))
                main = next(row for row in rows if row.name == judged_pairs[name][0].main)
                typer.echo(f"{name}: {compared(main, *labels)}\n")
        if report:
            from model_store.training.report_html import comparison, write_report

            pages = {name: (*pair, differences[name]) for name, pair in judged_pairs.items()}
            write_report(report, comparison(labels[0], labels[1], pages))


def _differences(one: Judged, other: Judged) -> list[Difference]:
    from model_store.training.judged_words import BASELINES
    from model_store.training.measures import difference

    pairs = zip(one.measures, other.measures, strict=True)
    return [difference(left, right) for left, right in pairs if not left.name.startswith(BASELINES)]


def _values(labels: list[str], differences: dict[str, list[Difference]]) -> dict[str, Any]:
    return {
        name: {
            row.name: {
                labels[0]: round(row.first, 2),
                labels[1]: round(row.second, 2),
                "difference": [row.low, row.high],
                "is_clear": row.is_clear,
            }
            for row in rows
        }
        for name, rows in differences.items()
    }


def _table(name: str, labels: list[str], rows: list[Difference]) -> list[str]:
    widths = [max(len(text), 10) for text in labels]
    size = max(len(text) for text in (name, *(row.name for row in rows)))
    head = "  ".join(f"{label:>{width}}" for label, width in zip(labels, widths, strict=True))
    lines = [f"{name:<{size}}  {head}  difference  95 % of drawn test sets"]
    for row in rows:
        values = "  ".join(
            f"{value:>{width}.2f}" for value, width in zip((row.first, row.second), widths, strict=True)
        )
        low, high = f"{row.low:+.2f}", f"{row.high:+.2f}"
        lines.append(f"{row.name:<{size}}  {values}  {row.second - row.first:>+10.2f}  {low} to {high}")
    return lines

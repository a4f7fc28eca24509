"""`textgen model evaluate`: asks a model or a service, shows a table, keeps the figures. See
`evaluate.py`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from model_store.cli_store import DEFAULT_STORE, StoreFolder, one_line_errors
from model_store.manifest import parse_draft, read_json_manifest, write_manifest
from model_store.task import Task
from model_store.task_files import load_tasks
from model_store.training.errors import InvalidOption


def evaluate(
    data: Annotated[
        list[str] | None, typer.Option("--data", help="TASK=FILE, JSON lines; may be given again.")
    ] = None,
    text: Annotated[
        list[Path] | None, typer.Option("--text", help="Text for the perplexity; may be given again.")
    ] = None,
    model: Annotated[str, typer.Option(help="A folder (with a /) or a model of the store.")] = "",
    url: Annotated[str, typer.Option(help="Ask a running service instead.")] = "",
    key: Annotated[str, typer.Option(envvar="TEXTGEN_API_KEY", help="The service's API key.")] = "",
    tasks: Annotated[Path | None, typer.Option(help="Task definitions in the place of the model's.")] = None,
    target: Annotated[
        list[str] | None, typer.Option("--target", help="TASK=KEY: where the answer is.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Ask at most so many of each file; 0 for all.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on standard output, no table.")] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Write the figures into the folder's manifest.")
    ] = False,
    store: StoreFolder = DEFAULT_STORE,
) -> None:
    """Measure a model: answers, summaries, labels, perplexity; beside trivial baselines."""
    from model_store.store import resolve

    with one_line_errors():
        entry = resolve(model, store.expanduser())
        known = {**entry.tasks, **(load_tasks(tasks) if tasks else {})}
        figures = _measure(entry.path, known, data or [], text or [], url, key, _pairs(target), limit)
        if record:
            _record(entry.path, figures)
    typer.echo(json.dumps(figures, indent=2) if as_json else _table(figures))


def _measure(
    folder: Path,
    tasks: Mapping[str, Task],
    data: list[str],
    texts: list[Path],
    url: str,
    key: str,
    targets: Mapping[str, str],
    limit: int,
) -> dict[str, dict[str, float]]:
    from model_store.training.answering import LocalModel
    from model_store.training.evaluate import Http, Local, evaluate, perplexity, read_items

    if not data and not texts:
        raise InvalidOption("--data", "is missing; give TASK=FILE, or --text FILE for the perplexity")
    if url and texts:
        raise InvalidOption("--text", "needs the model itself; a service does not give perplexities")
    files = [_task_and_file(item, tasks) for item in data]
    sets = [(task, path, read_items(path, task, targets.get(task.name, ""), limit)) for task, path in files]
    local = None if url else LocalModel(folder)
    answerer: Any = Http(url, key) if local is None else Local(local)
    figures = {f"{task.name}: {path.name}": evaluate(answerer, task, items) for task, path, items in sets}
    if local is not None:
        figures |= {f"perplexity: {path.name}": perplexity(local, path, limit) for path in texts}
    return figures


def _task_and_file(item: str, tasks: Mapping[str, Task]) -> tuple[Task, Path]:
    name, separator, path = item.partition("=")
    if not separator or not path:
        raise InvalidOption("--data", f"must be TASK=FILE, as qa=questions.jsonl, not {item!r}")
    if name not in tasks:
        raise InvalidOption("--data", f"the model has no task {name!r}; it has {', '.join(tasks)}")
    return tasks[name], Path(path)


def _pairs(items: list[str] | None) -> dict[str, str]:
    pairs = [item.partition("=") for item in items or []]
    for name, separator, value in pairs:
        if not separator or not value:
            raise InvalidOption("--target", f"must be TASK=KEY, not {name!r}")
    return {name: value for name, _, value in pairs}


def _record(folder: Path, figures: Mapping[str, Any]) -> None:
    """Add figures to the manifest draft of a folder that is no store entry yet."""
    values = read_json_manifest(folder)
    if "checksum" in values:
        raise InvalidOption("--record", f"{folder} is a version of a store, and versions never change")
    draft = parse_draft(values).to_dict()
    draft["evaluation"] = {**draft["evaluation"], **figures}
    write_manifest(folder, draft)


def _table(figures: Mapping[str, Mapping[str, float]]) -> str:
    from model_store.training.evaluate import in_order

    rows = list(in_order({name: dict(values) for name, values in figures.items()}))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = []
    last = ""
    for name, figure, value in rows:
        shown = "" if name == last else name
        lines.append(f"{shown:<{widths[0]}}  {figure:<{widths[1]}}  {value:>{widths[2]}}")
        last = name
    return "\n".join(lines)

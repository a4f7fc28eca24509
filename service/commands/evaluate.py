"""`textgen model evaluate`: asks a service, or one that it loads into the process, and keeps the figures.

Both ways run the code that serves, so they give the same figures. See `model_store/training/evaluate.py`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model_store.checkpoint import read_checkpoint
from model_store.cli_store import DEFAULT_STORE, StoreFolder, one_line_errors
from model_store.entry import ModelEntry
from model_store.manifest import MANIFEST, Draft, parse_draft, read_json_manifest, write_manifest
from model_store.store import resolve
from model_store.task import TaskKind
from model_store.task_files import load_tasks
from model_store.tokenizer import Tokenizer
from model_store.training.errors import EvaluationFailed, InvalidOption

if TYPE_CHECKING:  # not spent on `--help`
    import httpx

_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class ServedTask:
    """A task as `GET /tasks` describes it."""

    name: str
    kind: TaskKind
    fields: tuple[str, ...]


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
    with one_line_errors():
        if not data and not text:
            raise InvalidOption("--data", "is missing; give TASK=FILE, or --text FILE for the perplexity")
        if url and (text or tasks or record):
            option = "--text" if text else "--tasks" if tasks else "--record"
            raise InvalidOption(option, "needs the model itself, not the address of a service")
        if url:
            with _connected(url, key) as http:
                figures = _measure(http, data or [], _pairs(target), limit)
        else:
            entry = resolve(model, store.expanduser())
            with _folder(entry, tasks) as folder, loaded(folder) as http:
                figures = _measure(http, data or [], _pairs(target), limit)
                figures |= _perplexities(http, folder, text or [], limit)
            if record:
                _record(entry.path, figures)
    typer.echo(json.dumps(figures, indent=2) if as_json else _table(figures))


def _measure(
    http: httpx.Client, data: list[str], targets: Mapping[str, str], limit: int
) -> dict[str, dict[str, float]]:
    from model_store.training.evaluate import Service, evaluate, read_items

    tasks = served_tasks(http)
    files = [_task_and_file(item, tasks) for item in data]
    sets = [(task, path, read_items(path, task, targets.get(task.name, ""), limit)) for task, path in files]
    return {f"{task.name}: {path.name}": evaluate(Service(http), task, items) for task, path, items in sets}


def _perplexities(
    http: httpx.Client, folder: Path, texts: list[Path], limit: int
) -> dict[str, dict[str, float]]:
    from model_store.training.evaluate import Service, perplexity

    architecture = read_checkpoint(folder).architecture
    tokenizer = Tokenizer.load(folder, architecture.vocab_size)
    return {
        f"perplexity: {path.name}": perplexity(
            Service(http), tokenizer, architecture.n_positions, path, limit
        )
        for path in texts
    }


def served_tasks(http: httpx.Client) -> dict[str, ServedTask]:
    """Ask a service for its tasks, by name.

    Raises:
        EvaluationFailed: It does not say.
    """
    from service.client import get
    from service.errors import TextgenError

    try:
        given = get(http, "/tasks")["tasks"]
    except TextgenError as error:
        raise EvaluationFailed(f"{http.base_url}: {error}") from error
    return {task["name"]: ServedTask(task["name"], task["kind"], tuple(task["fields"])) for task in given}


@contextmanager
def loaded(folder: Path) -> Iterator[httpx.Client]:
    """A client of the service in this process, with the model of a folder.

    Raises:
        EvaluationFailed: The model cannot be served.
    """
    from service.errors import SettingsError
    from service.local import LocalService, local_settings
    from service.logs import stay_quiet

    stay_quiet()
    try:
        service = LocalService(local_settings(str(folder.resolve())))
    except SettingsError as error:
        raise EvaluationFailed(str(error)) from error
    with service:
        yield service.http


@contextmanager
def _connected(url: str, key: str) -> Iterator[httpx.Client]:
    import httpx

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_S) as http:
        yield http


@contextmanager
def _folder(entry: ModelEntry, tasks: Path | None) -> Iterator[Path]:
    """The model's folder; with other tasks, a folder of links to its files and a manifest of its own."""
    if tasks is None:
        yield entry.path
        return
    draft = replace(entry.manifest, tasks={**entry.tasks, **load_tasks(tasks)})
    with tempfile.TemporaryDirectory(prefix="textgen-evaluate-") as name:
        for path in entry.path.iterdir():
            if path.name != MANIFEST:
                (Path(name) / path.name).symlink_to(path.resolve())
        write_manifest(Path(name), Draft.to_dict(draft))
        yield Path(name)


def _task_and_file(item: str, tasks: Mapping[str, ServedTask]) -> tuple[ServedTask, Path]:
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

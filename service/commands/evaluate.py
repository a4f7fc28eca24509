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
from model_store.training.recipe import Source
from model_store.training.task_rows import mapped, task_source

if TYPE_CHECKING:  # not spent on `--help`
    import httpx

    from model_store.training.judged import Judged

_TIMEOUT_S = 120.0


Columns = Annotated[
    list[str] | None,
    typer.Option("--map", help="FIELD=COLUMN,… for all of --data, or TASK:FIELD=COLUMN,…; may be repeated."),
]
Encoding = Annotated[str, typer.Option(help="Of the files of --data, as gb18030; empty: found out.")]


@dataclass(frozen=True, slots=True)
class TestSets:
    """What is to be asked: sources of examples, and which columns of theirs are meant."""

    sources: tuple[Source, ...]
    columns: tuple[str, ...] = ()
    encoding: str = ""


@dataclass(frozen=True, slots=True)
class ServedTask:
    """A task as `GET /tasks` describes it."""

    name: str
    kind: TaskKind
    fields: tuple[str, ...]
    labels: tuple[str, ...] = ()


def evaluate(
    data: Annotated[
        list[str] | None, typer.Option("--data", help="TASK=FILE, as for finetune; may be given again.")
    ] = None,
    columns: Columns = None,
    encoding: Encoding = "",
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
        sets = test_sets(data, columns, encoding, target)
        if url:
            with _connected(url, key) as http:
                figures = {k: v.figures() for k, v in judged(http, sets, limit).items()}
        else:
            entry = resolve(model, store.expanduser())
            with _folder(entry, tasks) as folder, loaded(folder) as http:
                figures = {k: v.figures() for k, v in judged(http, sets, limit).items()}
                figures |= _perplexities(http, folder, text or [], limit)
            if record:
                _record(entry.path, figures)
    typer.echo(json.dumps(figures, indent=2) if as_json else _table(figures))


def judged(http: httpx.Client, sets: TestSets, limit: int) -> dict[str, Judged]:
    """Ask a service for every test set, all of which are read before; by task and file.

    Raises:
        InvalidOption: The service has no such task.
        InvalidData: A file is wrong.
        EvaluationFailed: The service refused.
    """
    from model_store.training.evaluate import Service, ask_and_judge, items_of

    tasks = served_tasks(http)
    for source in sets.sources:
        if source.task not in tasks:
            raise InvalidOption("--data", f"the model has no task {source.task!r}; it has {', '.join(tasks)}")
    sources = mapped(sets.sources, sets.columns, tasks, sets.encoding)
    read = [(tasks[source.task], source, items_of(source, tasks[source.task], limit)) for source in sources]
    return {
        f"{task.name}: {source.path.name}": ask_and_judge(Service(http), task, items)
        for task, source, items in read
    }


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
    return {
        task["name"]: ServedTask(task["name"], task["kind"], tuple(task["fields"]), tuple(task["labels"]))
        for task in given
    }


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


def test_sets(
    data: list[str] | None, columns: list[str] | None, encoding: str, target: list[str] | None
) -> TestSets:
    """Read the options that name test sets.

    Raises:
        InvalidOption: One is not of its form.
    """
    targets = dict(_pair(item) for item in target or [])
    sources = [task_source(item, "--data") for item in data or []]
    named = [replace(source, target=targets.get(source.task, "")) for source in sources]
    return TestSets(tuple(named), tuple(columns or ()), encoding)


def _pair(item: str) -> tuple[str, str]:
    name, separator, value = item.partition("=")
    if not separator or not value:
        raise InvalidOption("--target", f"must be TASK=KEY, not {item!r}")
    return name, value


def _record(folder: Path, figures: Mapping[str, Any]) -> None:
    """Add figures to the manifest draft of a folder that is no store entry yet."""
    values = read_json_manifest(folder)
    if "checksum" in values:
        raise InvalidOption("--record", f"{folder} is a version of a store, and versions never change")
    draft = parse_draft(values).to_dict()
    draft["evaluation"] = {**draft["evaluation"], **figures}
    write_manifest(folder, draft)


def _table(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """Figures with their intervals, and for `choice` each label's."""
    from model_store.training.evaluate import in_order

    rows = [("", "", "", "95 % of drawn test sets"), *in_order({n: dict(v) for n, v in figures.items()})]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = []
    last = ""
    for name, figure, value, interval in rows:
        shown = "" if name == last else name
        line = f"{shown:<{widths[0]}}  {figure:<{widths[1]}}  {value:>{widths[2]}}  {interval:>{widths[3]}}"
        lines.append(line.rstrip())
        last = name
    for name, values in figures.items():
        if "labels" in values:
            lines += ["", *_labels(name, values)]
    return "\n".join(lines)


def _labels(name: str, values: Mapping[str, Any]) -> list[str]:
    """Each label's figures, and how often it was taken for which."""
    labels, confusion = values["labels"], values["confusion"]
    width = max(len(label) for label in (*labels, f"{name}: right"))
    columns = [max(len(label), 6) for label in confusion]
    said = "  ".join(f"{label:>{size}}" for label, size in zip(confusion, columns, strict=True))
    head = f"{f'{name}: right':<{width}}  precision  recall      f1   said: {said}"
    lines = [head]
    for label, score in labels.items():
        times = [confusion[label].get(other, 0) for other in confusion]
        counts = "  ".join(f"{count:>{size}}" for count, size in zip(times, columns, strict=True))
        shown = f"{score['precision']:>9.1f}  {score['recall']:>6.1f}  {score['f1']:>6.1f}"
        lines.append(f"{label:<{width}}  {shown}         {counts}")
    return lines

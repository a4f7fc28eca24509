"""What `evaluate` and `compare` share: which test sets, which model or service, and the answers judged.

A model is loaded into the process and asked as a service is: both ways run the code that serves. The figures
are in `model_store/training/judged.py`.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from model_store.checkpoint import read_checkpoint
from model_store.entry import ModelEntry
from model_store.manifest import MANIFEST, Draft, write_manifest
from model_store.task import TaskKind
from model_store.task_files import load_tasks
from model_store.training.errors import EvaluationFailed, InvalidOption
from model_store.training.recipe import Source
from model_store.training.task_rows import mapped, task_source

if TYPE_CHECKING:  # not spent on `--help`
    import httpx

    from model_store.training.judged import Item, Judged

_TIMEOUT_S = 120.0

Data = Annotated[
    list[str] | None, typer.Option("--data", help="TASK=FILE, as for finetune; may be given again.")
]
Columns = Annotated[
    list[str] | None,
    typer.Option("--map", help="FIELD=COLUMN,… for all of --data, or TASK:FIELD=COLUMN,…; may be repeated."),
]
Targets = Annotated[list[str] | None, typer.Option("--target", help="TASK=KEY: where the answer is.")]
Limit = Annotated[int, typer.Option(help="Ask at most so many of each file; 0 for all.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output, no table.")]
TaskFile = Annotated[Path | None, typer.Option(help="Task definitions in the place of the model's.")]
Report = Annotated[Path | None, typer.Option(help="Write a page to send, with plots, to this .html file.")]
Encoding = Annotated[str, typer.Option(help="Of the files of --data, as gb18030; empty: found out.")]
SkipEmpty = Annotated[
    bool, typer.Option("--skip-empty", help="Leave out rows whose text or answer is empty, and count them.")
]


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


def judged(http: httpx.Client, sets: TestSets, limit: int) -> dict[str, Judged]:
    """Ask a service for every test set, all of which are read before; by task and file.

    Raises:
        InvalidOption: The service has no such task.
        InvalidData: A file is wrong.
        EvaluationFailed: The service refused.
    """
    from model_store.training.evaluate import Service, ask_and_judge

    tasks = served_tasks(http)
    for source in sets.sources:
        if source.task not in tasks:
            raise InvalidOption("--data", f"the model has no task {source.task!r}; it has {', '.join(tasks)}")
    sources = mapped(sets.sources, sets.columns, tasks, sets.encoding)
    read = [(tasks[source.task], source, _items(source, tasks[source.task], limit)) for source in sources]
    short = [f"{source.task}: {source.path.name}" for source in sources]
    return {
        name if short.count(name) == 1 else f"{task.name}: {source.path}": ask_and_judge(
            Service(http), task, items
        )
        for name, (task, source, items) in zip(short, read, strict=True)
    }


def _items(source: Source, task: ServedTask, limit: int) -> list[Item]:
    """Read a test set, and say what was left out of it."""
    from model_store.training.evaluate import items_of

    counts: Counter[str] = Counter()
    items = items_of(source, task, limit, counts)
    for why, count in sorted(counts.items()):
        typer.echo(f"{source.task}: {source.path.name}: {why}: {count:,}", err=True)
    return items


def test_sets(
    data: list[str] | None,
    columns: list[str] | None,
    encoding: str,
    target: list[str] | None,
    skip_empty: bool = False,
) -> TestSets:
    """Read the options that name test sets.

    Raises:
        InvalidOption: One is not of its form.
    """
    targets = {}
    for item in target or []:
        task, _, key = item.partition("=")
        if not key:
            raise InvalidOption("--target", f"must be TASK=KEY, not {item!r}")
        targets[task] = key
    sources = [task_source(item, "--data") for item in data or []]
    named = [
        replace(source, target=targets.get(source.task, ""), skip_empty=skip_empty) for source in sources
    ]
    return TestSets(tuple(named), tuple(columns or ()), encoding)


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
def connected(url: str, key: str) -> Iterator[httpx.Client]:
    """A client of a service on the network."""
    import httpx

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_S) as http:
        yield http


@contextmanager
def with_tasks(entry: ModelEntry, tasks: Path | None) -> Iterator[Path]:
    """The model's folder; with other tasks, a folder of links to its files and a manifest of its own."""
    if tasks is None:
        yield entry.path
        return
    read_checkpoint(entry.path)  # what is wrong with it is said of it, and not of the other folder
    draft = replace(entry.manifest, tasks={**entry.tasks, **load_tasks(tasks)})
    with tempfile.TemporaryDirectory(prefix="textgen-evaluate-") as name:
        for path in entry.path.iterdir():
            if path.name != MANIFEST:
                (Path(name) / path.name).symlink_to(path.resolve())
        write_manifest(Path(name), Draft.to_dict(draft))
        yield Path(name)

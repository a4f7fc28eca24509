"""What a task makes of the rows of a file: its fields and the right answers, checked, with where they stand.

Training and evaluation read through this, so a file that one takes the other takes, too. What many rows share
(labels that the task does not have, empty texts) is told of all of them at once. Files are read in
`text_files.py`, conversations in `conversations.py`.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from model_store.task import TaskKind
from model_store.training.conversations import (
    MESSAGES,
    WrongShape,
    alpaca,
    examples,
    is_alpaca,
    turns_of,
)
from model_store.training.errors import InvalidData, InvalidOption, origin
from model_store.training.raw_lines import check_encoding
from model_store.training.recipe import TARGET_KEYS, Source
from model_store.training.text_files import records, text_of

_SHOWN = 12  # labels or lines that an error names


class AskedTask(Protocol):
    """What is asked: a task of a manifest, or as a service describes it."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> TaskKind: ...

    @property
    def fields(self) -> tuple[str, ...]: ...

    @property
    def labels(self) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One example.

    Args:
        path: Its file.
        line: Its line there, or row; many rows of a JSON array may stand in one line.
        place: Which of the file's rows it is, from 0; the turns of a conversation are made of one row.
        fields: A text for each of the task's fields.
        references: The right answers, best first; ("",) for a question without one.
        record: All that the row holds.
        is_turn: It is one of several examples that one row, a conversation, became.
    """

    path: Path
    line: int
    place: int
    fields: Mapping[str, str]
    references: tuple[str, ...]
    record: Mapping[str, Any] = field(default_factory=dict, repr=False)
    is_turn: bool = False

    @property
    def origin(self) -> str:
        """`reviews.csv, line 7`, for people."""
        return origin(self.path, self.line)


def task_rows(
    source: Source, task: AskedTask, file: Path, counts: Counter[str], limit: int = 0
) -> Iterator[TaskRow]:
    """Yield the examples of one file.

    Args:
        source: Says which keys are meant (`target`, `rename`) and which rows are left out (`skip`,
            `skip_empty`).
        task: Whose fields are read.
        file: One of those that `expand` gave for the source.
        counts: Gets what was left out, by reason.
        limit: Read no further once there are so many; 0 reads all.

    Raises:
        InvalidData: Names the file and the line; for unknown labels and empty texts, which the end of the
            reading tells, all of them.
    """
    key = source.target_key(task.kind)
    unknown: dict[str, list[int]] = {}
    empty: dict[str, list[int]] = {}
    num_read = 0
    for place, (line, record) in enumerate(records(file, source.encoding)):
        if limit and num_read >= limit:
            break
        if any(record.get(name) in values for name, values in source.skip.items()):
            counts["skipped"] += 1
            continue
        for row in _rows(source, task, file, line, place, record, counts):
            if name := _empty_text(task, row, key):
                if source.skip_empty:
                    counts[f"left out, as {name!r} is empty"] += 1
                else:
                    empty.setdefault(name, []).append(line)
                continue
            if task.kind == "choice" and (wrong := [r for r in row.references if r not in task.labels]):
                unknown.setdefault(wrong[0], []).append(line)
                continue
            num_read += 1
            yield row
    _refuse(file, task, unknown, empty)


def _rows(
    source: Source,
    task: AskedTask,
    file: Path,
    line: int,
    place: int,
    record: Mapping[str, Any],
    counts: Counter[str],
) -> Iterator[TaskRow]:
    key = source.target_key(task.kind)
    names = [source.rename.get("messages", name) for name in MESSAGES]
    if (name := next((name for name in names if name in record), "")) and task.kind == "generate":
        try:
            for fields, answer in examples(turns_of(record[name]), task.fields, counts):
                yield TaskRow(file, line, place, fields, (answer,), record, is_turn=True)
        except WrongShape as error:
            raise InvalidData(file, f"key {name!r}: {error}", line) from error
        return
    values = dict(record)
    if is_alpaca(record) and key not in record:
        values = alpaca(record, task.fields, key)
    fields = {name: text_of(file, line, values, source.rename.get(name, name)) for name in task.fields}
    yield TaskRow(file, line, place, fields, _references(file, line, values, key, task.kind), record)


def _references(
    file: Path, line: int, record: Mapping[str, Any], key: str, kind: TaskKind
) -> tuple[str, ...]:
    """The right answers under `key`: a text or a list of them; SQuAD's {"text": […]}; a label's number."""
    value = record.get(key)
    if kind == "choice" and isinstance(value, int | bool):
        return (json.dumps(value),)
    if kind == "qa" and isinstance(value, Mapping) and isinstance(value.get("text"), list):
        value = value["text"]
    if not isinstance(value, list):
        text = text_of(file, line, dict(record), key)
        return (text.strip() if kind == "choice" else text,)
    if not all(isinstance(text, str) for text in value):
        raise InvalidData(file, f"key {key!r} must be a string or a list of strings", line)
    return tuple(text.strip() if kind == "choice" else text for text in value) or ("",)


def _empty_text(task: AskedTask, row: TaskRow, key: str) -> str:
    """The field or target that must not be empty and is; "" where all is well."""
    document: str | None = getattr(task, "document", None)
    if task.kind != "qa" and not all(text.strip() for text in row.references):
        return key
    if document and document != "history" and not row.fields[document].strip():
        return document
    return "" if any(text.strip() for text in row.fields.values()) else " and ".join(row.fields)


def _refuse(
    file: Path, task: AskedTask, unknown: Mapping[str, list[int]], empty: Mapping[str, list[int]]
) -> None:
    problems = []
    if unknown:
        commonest = sorted(unknown.items(), key=lambda item: -len(item[1]))
        shown = [f"{label!r} ({_often(at)}, first in {at[0]:,})" for label, at in commonest[:_SHOWN]]
        more = f" and {len(commonest) - _SHOWN} more" if len(commonest) > _SHOWN else ""
        problems.append(
            f"task {task.name!r} has the labels {', '.join(task.labels)}, and not {', '.join(shown)}{more}"
        )
    for name, at in empty.items():
        shown = [str(line) for line in at[:_SHOWN]] + ["…"] * (len(at) > _SHOWN)
        problems.append(
            f"{name!r} is empty in {len(at):,} rows: {', '.join(shown)}; fill or delete them "
            "(--skip-empty leaves them out)"
        )
    if problems:
        raise InvalidData(file, "; ".join(problems))


def _often(lines: Sequence[int]) -> str:
    return "once" if len(lines) == 1 else f"{len(lines):,} times"


def task_source(item: str, option: str) -> Source:
    """Read TASK=FILE.

    Raises:
        InvalidOption: It is not of that form.
    """
    task, separator, path = item.partition("=")
    if not separator or not task or not path:
        raise InvalidOption(option, f"must be TASK=FILE, as qa=questions.jsonl, not {item!r}")
    return Source(Path(path), kind="examples", task=task)


def mapped(
    sources: Sequence[Source], maps: Sequence[str], tasks: Mapping[str, AskedTask], encoding: str = ""
) -> list[Source]:
    """Say for sources of examples which columns are meant, as the options `--map` and `--encoding` do.

    Args:
        sources: What `task_source` gave, and others, which stay as they are.
        maps: Each `text=body,label=stars`, for all of them, or `TASK:text=body` for one task's.
        tasks: By name.
        encoding: Of their files; "" to find it out.

    Raises:
        InvalidOption: Names what is wrong, and what the task takes.
    """
    check_encoding(encoding)
    known = {source.task for source in sources if source.kind == "examples"}
    parsed = [_parsed(item, known) for item in maps]
    result = []
    for source in sources:
        if source.kind == "examples" and source.task in tasks:
            mine = [items for task, items in parsed if task in ("", source.task)]
            pairs = [pair for items in mine for pair in items]
            source = _with_columns(replace(source, encoding=encoding), pairs, tasks[source.task])
        result.append(source)
    return result


def _parsed(item: str, known: set[str]) -> tuple[str, list[tuple[str, str]]]:
    task, _, rest = item.rpartition(":") if item.partition(":")[0] in known else ("", "", item)
    pairs = [pair.partition("=") for pair in rest.split(",")]
    if not all(name.strip() and separator and column.strip() for name, separator, column in pairs):
        raise InvalidOption("--map", f"must be FIELD=COLUMN,… or TASK:FIELD=COLUMN,…, not {item!r}")
    return task, [(name.strip(), column.strip()) for name, _, column in pairs]


def _with_columns(source: Source, pairs: Sequence[tuple[str, str]], task: AskedTask) -> Source:
    target = TARGET_KEYS[task.kind]
    legal = (*task.fields, target, "messages")
    rename, column_of_target = dict(source.rename), source.target
    names = [name for name, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise InvalidOption("--map", f"names {twice!r} of task {task.name!r} twice")
    for name, column in pairs:
        if name not in legal:
            raise InvalidOption("--map", f"{name!r} is none of task {task.name!r}: {', '.join(legal)}")
        if name == target:
            column_of_target = column
        else:
            rename[name] = column
    return replace(source, rename=rename, target=column_of_target)


def read_task_rows(
    source: Source,
    task: AskedTask,
    files: Sequence[Path],
    limit: int = 0,
    counts: Counter[str] | None = None,
) -> list[TaskRow]:
    """Give the examples of a source's files, the first `limit` where it is not 0.

    `counts` gets what was left out, by reason. Raises as `task_rows`.
    """
    told: Counter[str] = Counter() if counts is None else counts
    rows: list[TaskRow] = []
    for file in files:
        if not limit or len(rows) < limit:
            rows += task_rows(source, task, file, told, limit and limit - len(rows))
    return rows[:limit] if limit else rows

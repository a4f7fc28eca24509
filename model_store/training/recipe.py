"""What to train on: a list of sources, from a TOML file or from a command's options.

A source is a file or folder and what to make of it: plain text, made questions (`cloze`), conversations found
in stories (`dialogue`), or task examples.
Paths in a recipe are relative to the folder that the command names. Nothing is read here but the recipe; see
`dataset.py` for the rest.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from model_store.task import Task, TaskKind
from model_store.training.errors import InvalidOption

KINDS = ("text", "cloze", "dialogue", "examples")
TARGET_KEYS: Mapping[str, str] = {
    "qa": "answer",
    "summarize": "summary",
    "choice": "label",
    "generate": "completion",
}


@dataclass(frozen=True, slots=True)
class Source:
    """One file or folder and what becomes of it.

    Args:
        path: Text or JSON lines, plain or .zst.
        kind: `text` (language modelling), `cloze` (made questions; needs a qa task), `dialogue` (replies in
            quoted speech; needs a task of kind generate with the fields history and speaker), `examples`
            (JSON lines).
        task: The task that renders all but `text`.
        share: Which share of the documents or records to use, drawn with the seed, above 0 and at most 1.
        repeat: How often to go through the source, each time with other draws.
        passage_words: For `cloze`: the fewest and the most words of a passage.
        max_document_tokens: Cut the document field to so many tokens; several are drawn from; empty: never.
        max_target_words: Leave out records with longer targets; 0: none.
        lead_words: For kind `summarize`: learn to copy the leading sentences of what the task reads, of at
            least and at most so many words, instead of the record's summary; (0, 0) learns the summary.
        target: The record's key that holds the answer; "" for `answer`, `summary`, `label` or `completion` by
            kind.
        rename: The record's key for a field, where it is called something else: {"text": "context"}.
        skip: Leave out records with one of these values under a key: {"source": ["boolq"]}.
        skip_empty: Leave out records whose text or answer is empty, which are refused otherwise.
        min_overlap: For kind `qa`: an answer that is no span of its context is replaced by the span of
            highest token F1 when that reaches this, and left out otherwise; 0 keeps answers as they are.
        encoding: Of the file's text, as Python names it; "" to find it out.
        group: The record's key whose equal values stay on one side of the validation split; "" for the
            document, the dialogue or, where there is neither, equal fields.
    """

    path: Path
    kind: str = "text"
    task: str = ""
    share: float = 1.0
    repeat: int = 1
    passage_words: tuple[int, int] = (35, 160)
    max_document_tokens: tuple[int, ...] = ()
    max_target_words: int = 0
    lead_words: tuple[int, int] = (0, 0)
    target: str = ""
    rename: Mapping[str, str] = field(default_factory=dict)
    skip: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    skip_empty: bool = False
    min_overlap: float = 0.55
    encoding: str = ""
    group: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidOption("kind", f"must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if self.kind != "text" and not self.task:
            raise InvalidOption("task", f"is missing; a source of kind {self.kind!r} needs one")
        for name, low, high in (("share", 0.0, 1.0), ("min_overlap", -1.0, 1.0)):
            if not low < getattr(self, name) <= high:
                raise InvalidOption(name, f"must be above {low:g} and at most {high:g}")
        if self.repeat < 1:
            raise InvalidOption("repeat", "must be at least 1")

    def target_key(self, kind: TaskKind) -> str:
        """The record's key that holds the answer for a task of `kind`."""
        return self.target or TARGET_KEYS[kind]


def load_recipe(path: Path, base: Path, tasks: Mapping[str, Task]) -> list[Source]:
    """Read a recipe.

    Args:
        path: A TOML file with a table `[[source]]` for each source; its keys are those of `Source`.
        base: The folder that the sources' paths are relative to.
        tasks: The tasks that a source may name.

    Raises:
        InvalidOption: The file is wrong; the message starts with its name and the place, as `mix.toml: source
            3`.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8")).get("source")
    except (OSError, ValueError) as error:
        raise InvalidOption(str(path), f"cannot be read: {error}") from error
    if not isinstance(tables, list) or not tables:
        raise InvalidOption(str(path), "must have at least one table [[source]]")
    return [
        _source(f"{path.name}: source {n}", table, base, tasks) for n, table in enumerate(tables, start=1)
    ]


def check_tasks(sources: list[Source], tasks: Mapping[str, Task]) -> None:
    """Refuse sources whose task is not defined or does not suit what is to be made of them.

    Raises:
        InvalidOption: Names the task and the tasks that are defined.
    """
    known: set[str] = set(get_args(TaskKind))
    for source in sources:
        if source.kind == "text":
            continue
        task = tasks.get(source.task)
        if task is None:
            raise InvalidOption(
                "task", f"{source.task!r} is not defined; defined are {', '.join(tasks) or 'none'}"
            )
        if source.kind == "cloze" and (task.kind != "qa" or task.kind not in known):
            raise InvalidOption(
                "task", f"made questions need a task of kind 'qa'; {task.name!r} is {task.kind!r}"
            )
        if source.kind == "dialogue" and set(task.fields) != {"history", "speaker"}:
            raise InvalidOption(
                "task",
                f"conversations need the fields history and speaker; it has {', '.join(task.fields)}",
            )


def _source(place: str, table: dict[str, Any], base: Path, tasks: Mapping[str, Task]) -> Source:
    names = {each.name for each in fields(Source)}
    if unknown := table.keys() - names:
        raise InvalidOption(f"{place}: {min(unknown)}", f"is unknown; legal are {', '.join(sorted(names))}")
    if "path" not in table:
        raise InvalidOption(f"{place}: path", "is missing")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    values["skip"] = {key: tuple(value) for key, value in table.get("skip", {}).items()}
    try:
        source = Source(**{**values, "path": base / table["path"]})
        check_tasks([source], tasks)
    except InvalidOption as error:
        raise InvalidOption(f"{place}: {error.name}", str(error).split(": ", 1)[-1]) from error
    except TypeError as error:
        raise InvalidOption(place, f"has a value of the wrong type: {error}") from error
    return source

"""The task contract: how fields become a prompt, for training and serving alike.

A `Task` holds a template with fields in braces and what belongs to it: stop strings, sampling defaults,
labels. Fine-tuning and serving both call `Task.encode`, so the prompt ids at serving are those of training by
construction. No windows over long documents here (`service/tasks` has them), no tensors, no files
(`model_store/task_files.py`).

Read next: `model_store/tokenizer.py`, then `model_store/manifest.py`, where tasks are stored.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args

from model_store.errors import InvalidFields, InvalidTask
from model_store.evidence import Evidence, for_question, for_summary, whole
from model_store.sampling import MAX_STOPS, SAMPLING, TASK_DEFAULTS
from model_store.steps import Steps, finish
from model_store.template import parse, render

TaskKind = Literal["generate", "summarize", "qa", "choice"]
TASK_KINDS: tuple[str, ...] = get_args(TaskKind)

ENDPOINT_FIELDS: Mapping[str, set[str]] = {"summarize": {"text"}, "qa": {"question", "context"}}
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_MAX_PENALTY = 1000


class Encoder(Protocol):
    """What a task needs of a tokenizer; `model_store.tokenizer.Tokenizer` is one."""

    @property
    def eos_id(self) -> int: ...

    @property
    def bos_ids(self) -> tuple[int, ...]: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_specials(self, text: str) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Task:
    """One thing a model was trained to do.

    Args:
        name: What `/tasks/{name}` calls it: lower-case letters, digits, `_`, `-`; at most 64.
        kind: `generate` (free text), `summarize` (field `text`), `qa` (fields `question` and `context`),
            `choice` (one of `labels`).
        template: The prompt, with fields in braces; `{{` and `}}` stand for braces. Put the instruction
            first, then the document, then the question, so that prompts on one document share their prefix.
        document: The field that may be windowed or truncated; the template never is.
        evidence: For kinds `qa` and `summarize`: read only the sentences of the document that matter most, up
            to about so many words (`model_store/evidence.py`); 0 reads all of it.
        extractive: For kind `summarize` with evidence: the summary is made of its sentences, word for word.
        stop: Strings that end the answer.
        sampling: Defaults for the sampling fields of a request.
        labels: The answers a `choice` task chooses from.
        no_answer: What a `qa` model says when there is no answer; "" when it never learned to.
        no_answer_penalty: Nats taken off the log probability of `no_answer` before an answer is compared with
            it; a small model spreads its trust over many spans and would refuse too often.
        description: One line for people.

    Raises:
        InvalidTask: A value is not legal; the message names the key and the legal values.
    """

    name: str
    kind: TaskKind
    template: str
    document: str | None = None
    evidence: int = 0
    extractive: bool = False
    stop: tuple[str, ...] = ()
    sampling: Mapping[str, float | int] = field(default_factory=dict, hash=False)
    labels: tuple[str, ...] = ()
    no_answer: str = ""
    no_answer_penalty: float = 0.0
    description: str = ""

    def __post_init__(self) -> None:
        _check_wording(self)
        _check_kind(self)

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the template's fields, in template order."""
        return tuple(name for _, name in parse(self.template) if name is not None)

    def check_fields(self, fields: Mapping[str, str]) -> None:
        """Raise `InvalidFields` unless `fields` has exactly the template's fields, all strings."""
        for name in self.fields:
            if name not in fields:
                raise InvalidFields(name, f"is missing; task {self.name!r} takes {', '.join(self.fields)}")
            if not isinstance(fields[name], str):
                raise InvalidFields(name, "must be a string")
        for name in fields:
            if name not in self.fields:
                raise InvalidFields(name, f"is unknown; task {self.name!r} takes {', '.join(self.fields)}")

    def read(self, fields: Mapping[str, str]) -> Evidence:
        """Give what of the document the prompt holds: its best sentences, or all of it.

        Args:
            fields: As for `segments`; the task must have a document.
        """
        return finish(self.read_in_steps(fields))

    def read_in_steps(self, fields: Mapping[str, str]) -> Steps[Evidence]:
        """Give the same as `read`, in steps."""
        text = fields[self.document or ""]
        if not self.evidence:
            return whole(text)
        if self.kind == "qa":
            return (yield from for_question(text, fields["question"], self.evidence))
        return (yield from for_summary(text, self.evidence))

    def segments(self, fields: Mapping[str, str]) -> list[tuple[str, bool]]:
        """Render the prompt in pieces, each to be tokenised on its own; see `template.render`.

        Args:
            fields: One text for each field of the template, and no other.

        Returns:
            Pairs of (text, is_user_text), in order; empty texts are left out.

        Raises:
            InvalidFields: A field is missing, unknown, or not a string.
        """
        self.check_fields(fields)
        if self.evidence and self.document:
            fields = {**fields, self.document: self.read(fields).text}
        return render(self.template, fields)

    def encode(self, tokenizer: Encoder, fields: Mapping[str, str]) -> list[int]:
        """Give the prompt's token ids: what training and serving both feed the model.

        Special tokens are recognised in the template's literals and are plain text in the fields.

        Raises:
            InvalidFields: A field is missing, unknown, or not a string.
            InvalidText: A field holds lone surrogates.
        """
        ids = list(tokenizer.bos_ids)
        for text, is_user_text in self.segments(fields):
            ids += tokenizer.encode(text) if is_user_text else tokenizer.encode_specials(text)
        return ids

    def encode_answer(self, tokenizer: Encoder, answer: str) -> list[int]:
        """Give the ids of an answer and the end of text after it: a training target, or a candidate to score.

        The answer is stripped and put after one space. An empty answer is the end of text alone.
        """
        stripped = answer.strip()
        return [*(tokenizer.encode(" " + stripped) if stripped else []), tokenizer.eos_id]

    def to_dict(self) -> dict[str, Any]:
        """Give the task as JSON values; what is empty is left out. `from_dict` reads it back."""
        values: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "description": self.description,
            "template": self.template,
            "document": self.document,
            "evidence": self.evidence,
            "extractive": self.extractive,
            "stop": list(self.stop),
            "sampling": dict(self.sampling),
            "labels": list(self.labels),
            "no_answer": self.no_answer,
            "no_answer_penalty": self.no_answer_penalty,
        }
        return {key: value for key, value in values.items() if value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Task":
        """Build a task from JSON or TOML values.

        Raises:
            InvalidTask: A key is missing, unknown, or its value is not legal.
        """
        if not isinstance(values, Mapping):
            raise InvalidTask("task", "must be an object with the keys name, kind and template")
        keys = cls.__dataclass_fields__
        for key in values:
            if key not in keys:
                raise InvalidTask(str(key), f"is unknown; legal keys are {', '.join(keys)}")
        for key in ("name", "kind", "template"):
            if key not in values:
                raise InvalidTask(key, "is missing")
        known: dict[str, Any] = dict(values)
        for key in ("stop", "labels"):
            known[key] = _as_strings(key, known.get(key, []))
        return cls(**known)


def _as_strings(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise InvalidTask(key, "must be a list of strings")
    return tuple(value)


def _check_wording(task: Task) -> None:
    """Refuse names, texts and templates that cannot be served."""
    if not isinstance(task.name, str) or not _NAME.fullmatch(task.name):
        raise InvalidTask("name", "must be 1 to 64 lower-case letters, digits, '_' or '-'")
    if task.kind not in TASK_KINDS:
        raise InvalidTask("kind", f"must be one of {', '.join(TASK_KINDS)}")
    for key in ("template", "no_answer", "description"):
        if not isinstance(getattr(task, key), str):
            raise InvalidTask(key, "must be a string")
    if len(task.stop) > MAX_STOPS or not all(task.stop):
        raise InvalidTask("stop", f"must be at most {MAX_STOPS} non-empty strings")
    fields = task.fields
    if not fields:
        raise InvalidTask("template", "must have at least one field in braces, as {text}")
    if len(set(fields)) < len(fields):
        raise InvalidTask("template", "has a field twice")
    if task.document is not None and task.document not in fields:
        raise InvalidTask("document", f"must be a field of the template: {', '.join(fields)}")


def _check_kind(task: Task) -> None:
    """Refuse what does not suit the task's kind, how its document is read, and wrong sampling defaults."""
    wanted = ENDPOINT_FIELDS.get(task.kind, set(task.fields))
    if set(task.fields) != wanted:
        raise InvalidTask(
            "template", f"of kind {task.kind!r} must have the fields {', '.join(sorted(wanted))}"
        )
    if task.kind in ENDPOINT_FIELDS and task.document is None:
        raise InvalidTask("document", f"is missing; kind {task.kind!r} needs one")
    if task.kind == "choice" and len({label.strip() for label in task.labels} - {""}) < max(
        2, len(task.labels)
    ):
        raise InvalidTask("labels", "must be two or more different strings")
    if task.kind != "choice" and task.labels:
        raise InvalidTask("labels", "belong to kind 'choice' only")
    if task.kind != "qa" and task.no_answer:
        raise InvalidTask("no_answer", "belongs to kind 'qa' only")
    if isinstance(task.evidence, bool) or not isinstance(task.evidence, int) or task.evidence < 0:
        raise InvalidTask("evidence", "must be a number of words, 0 or more")
    if task.evidence and task.kind not in ENDPOINT_FIELDS:
        raise InvalidTask("evidence", f"belongs to the kinds {', '.join(ENDPOINT_FIELDS)} only")
    if not isinstance(task.extractive, bool):
        raise InvalidTask("extractive", "must be true or false")
    if task.extractive and not (task.kind == "summarize" and task.evidence):
        raise InvalidTask("extractive", "belongs to kind 'summarize' with evidence only")
    penalty = task.no_answer_penalty
    if isinstance(penalty, bool) or not isinstance(penalty, int | float) or not abs(penalty) <= _MAX_PENALTY:
        raise InvalidTask("no_answer_penalty", f"must be a number from -{_MAX_PENALTY} to {_MAX_PENALTY}")
    if penalty and not task.no_answer:
        raise InvalidTask("no_answer_penalty", "belongs to tasks with no_answer only")
    if not isinstance(task.sampling, Mapping):
        raise InvalidTask("sampling", "must be an object")
    for key, value in task.sampling.items():
        if key not in TASK_DEFAULTS:
            raise InvalidTask(f"sampling.{key}", f"is unknown; legal are {', '.join(TASK_DEFAULTS)}")
        if problem := SAMPLING[key].problem(value):
            raise InvalidTask(f"sampling.{key}", problem)

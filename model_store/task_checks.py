"""What a task definition must be like. `model_store/task.py` says what its keys mean."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from model_store.errors import InvalidTask
from model_store.sampling_ranges import SAMPLING_RANGES

if TYPE_CHECKING:
    from model_store.task import Task

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
ENDPOINT_FIELDS: Mapping[str, set[str]] = {"summarize": {"text"}, "qa": {"question", "context"}}
_MAX_STOPS = 8
_MOST_PENALTY = 1000


def check_task(task: Task, kinds: Sequence[str]) -> None:
    """Refuse a definition that cannot be served.

    Args:
        task: To be checked.
        kinds: The kinds there are.

    Raises:
        InvalidTask: Names the key and the legal values.
    """
    _check_name(task, kinds)
    _check_strings(task)
    _check_template(task)
    _check_kind(task)
    _check_reading(task)
    _check_sampling(task.sampling)


def listed(names: Sequence[str] | Mapping[str, object]) -> str:
    """Names with commas, for a message."""
    return ", ".join(names)


def _check_name(task: Task, kinds: Sequence[str]) -> None:
    if not isinstance(task.name, str) or not _NAME.fullmatch(task.name):
        raise InvalidTask("name", "must be 1 to 64 lower-case letters, digits, '_' or '-'")
    if task.kind not in kinds:
        raise InvalidTask("kind", f"must be one of {listed(kinds)}")


def _check_strings(task: Task) -> None:
    for key in ("template", "no_answer", "description"):
        if not isinstance(getattr(task, key), str):
            raise InvalidTask(key, "must be a string")
    if len(task.stop) > _MAX_STOPS or not all(task.stop):
        raise InvalidTask("stop", f"must be at most {_MAX_STOPS} non-empty strings")


def _check_template(task: Task) -> None:
    fields = task.fields
    if not fields:
        raise InvalidTask("template", "must have at least one field in braces, as {text}")
    if len(set(fields)) < len(fields):
        raise InvalidTask("template", "has a field twice")
    if task.document is not None and task.document not in fields:
        raise InvalidTask("document", f"must be a field of the template: {listed(fields)}")


def _check_kind(task: Task) -> None:
    wanted = ENDPOINT_FIELDS.get(task.kind, set(task.fields))
    if set(task.fields) != wanted:
        raise InvalidTask("template", f"of kind {task.kind!r} must have the fields {listed(sorted(wanted))}")
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


def _check_reading(task: Task) -> None:
    """How the document is read and what is made of it."""
    if isinstance(task.evidence, bool) or not isinstance(task.evidence, int) or task.evidence < 0:
        raise InvalidTask("evidence", "must be a number of words, 0 or more")
    if task.evidence and task.kind not in ENDPOINT_FIELDS:
        raise InvalidTask("evidence", f"belongs to the kinds {listed(ENDPOINT_FIELDS)} only")
    if not isinstance(task.extractive, bool):
        raise InvalidTask("extractive", "must be true or false")
    if task.extractive and not (task.kind == "summarize" and task.evidence):
        raise InvalidTask("extractive", "belongs to kind 'summarize' with evidence only")
    penalty = task.no_answer_penalty
    if isinstance(penalty, bool) or not isinstance(penalty, int | float) or not abs(penalty) <= _MOST_PENALTY:
        raise InvalidTask("no_answer_penalty", f"must be a number from -{_MOST_PENALTY} to {_MOST_PENALTY}")
    if penalty and not task.no_answer:
        raise InvalidTask("no_answer_penalty", "belongs to tasks with no_answer only")


def _check_sampling(sampling: Mapping[str, float | int]) -> None:
    if not isinstance(sampling, Mapping):
        raise InvalidTask("sampling", "must be an object")
    for key, value in sampling.items():
        if key not in SAMPLING_RANGES:
            raise InvalidTask(f"sampling.{key}", f"is unknown; legal are {listed(SAMPLING_RANGES)}")
        if problem := SAMPLING_RANGES[key].problem(value):
            raise InvalidTask(f"sampling.{key}", problem)

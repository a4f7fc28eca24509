"""Measures a model on JSON lines: answers, summaries, any other task, perplexity on text; beside trivial
baselines.

A model is asked either offline (`answering.py`) or through a running service (`Http` here), which
is what counts in the end. The metrics are in `metrics_text.py`; showing and keeping the figures
is up to `cli_evaluate.py`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import httpx

from model_store.task import Task
from model_store.training.answering import LocalModel
from model_store.training.errors import EvaluationFailed, InvalidData
from model_store.training.metrics_text import (
    best_f1,
    exact_match,
    lead_sentences,
    overlap_sentence,
    repetition_rate,
    rouge,
)
from model_store.training.recipe import TARGET_KEYS
from model_store.training.text_files import documents, records, text_of

_TIMEOUT_S = 120.0

Figures = dict[str, float]


class Answerer(Protocol):
    """Whoever answers: a model in this process, or a service."""

    def ask(self, task: Task, fields: Mapping[str, str]) -> str:
        """Give the task's answer; "" where a question has none."""
        ...


class Local:
    """Asks a model in this process.

    Args:
        model: Loaded for evaluation.
    """

    num_parallel = 1

    def __init__(self, model: LocalModel) -> None:
        self._model = model

    def ask(self, task: Task, fields: Mapping[str, str]) -> str:
        if task.kind == "qa":
            found = self._model.answer(task, fields["context"], fields["question"])
            return found.text if found.score >= 0 else ""
        if task.kind == "choice":
            return self._model.choose(task, fields)
        return self._model.generate(task, fields)


class Http:
    """Asks a running service.

    Args:
        url: Of the service, as http://127.0.0.1:8000.
        key: An API key, where the service wants one.
        num_parallel: Requests in flight.
        more: Fields for every body, as {"no_answer": False}.
    """

    def __init__(
        self, url: str, key: str = "", num_parallel: int = 8, more: Mapping[str, Any] | None = None
    ) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_S)
        self._more = dict(more or {})
        self.num_parallel = num_parallel

    def ask(self, task: Task, fields: Mapping[str, str]) -> str:
        body = {**fields, **self._more}
        if task.kind == "qa":
            return str(self._post("/qa", body)["answer"])
        if task.kind == "summarize":
            return str(self._post("/summarize", body)["summary"])
        reply = self._post(f"/tasks/{task.name}", body)
        return str(reply["label"] if task.kind == "choice" else reply["choices"][0]["text"]).strip()

    def _post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            reply = self._client.post(path, json=body)
        except httpx.HTTPError as error:
            raise EvaluationFailed(f"{self._client.base_url}: {type(error).__name__}: {error}") from error
        if reply.status_code != httpx.codes.OK:
            raise EvaluationFailed(f"POST {path} gave {reply.status_code}: {reply.text[:300]}")
        values: dict[str, Any] = reply.json()
        return values


@dataclass(frozen=True, slots=True)
class Item:
    """One record of a test set: what is asked and what would be right."""

    fields: Mapping[str, str]
    references: tuple[str, ...]


def read_items(path: Path, task: Task, target: str = "", limit: int = 0) -> list[Item]:
    """Read a test set.

    Args:
        path: JSON lines with the task's fields and the target; the target is a string, or a list of strings
            that are all right, or for questions "" or [] where there is no answer.
        task: Says which fields there are.
        target: The target's key; "" for `answer`, `summary`, `label` or `completion` by kind.
        limit: Read at most so many; 0 reads all.

    Raises:
        InvalidData: Names file and line.
    """
    key = target or TARGET_KEYS[task.kind]
    items = (
        Item(
            {name: text_of(path, line, record, name) for name in task.fields},
            _references(path, line, record, key),
        )
        for line, record in records(path)
    )
    return list(islice(items, limit) if limit else items)


def evaluate(answerer: Any, task: Task, items: Sequence[Item]) -> Figures:
    """Ask every item of a test set and score the answers.

    Args:
        answerer: An `Answerer` with `num_parallel`, how many may be asked at once.
        task: What to ask.
        items: The test set.

    Returns:
        For `qa`: em, f1, f1_answerable, no_answer_accuracy and baseline_f1; for `choice`: accuracy; else
        rouge1, rouge2, rougeL and repetition, for `summarize` also the lead-2 baseline's. All from 0 to 100.
    """
    with ThreadPoolExecutor(answerer.num_parallel) as pool:
        said = list(pool.map(lambda item: answerer.ask(task, item.fields), items))
    score: Callable[[Sequence[tuple[Item, str]]], Figures] = {
        "qa": _score_answers,
        "choice": _score_labels,
    }.get(task.kind, _score_texts)
    figures = score(list(zip(items, said, strict=True)))
    if task.kind == "summarize":
        leads = [(item, lead_sentences(item.fields["text"])) for item in items]
        lead_figures = _score_texts(leads)
        figures |= {f"lead2_{name}": value for name, value in lead_figures.items() if name != "repetition"}
    return {"count": float(len(items)), **{name: round(100 * value, 2) for name, value in figures.items()}}


def perplexity(model: LocalModel, path: Path, limit: int = 0) -> Figures:
    """Measure how well a model predicts a text.

    Args:
        model: Loaded for evaluation.
        path: Text or JSON lines with `text`.
        limit: Read at most so many documents; 0 reads all.

    Returns:
        perplexity per token, bits_per_byte (comparable between tokenizers) and how many tokens were
        predicted.
    """
    total, tokens, size = 0.0, 0, 0
    for document in islice(documents(path), limit or None):
        ids = [*model.tokenizer.bos_ids, *model.tokenizer.encode(document), model.tokenizer.eos_id]
        for start in range(0, len(ids) - 1, model.num_positions - 1):
            piece = ids[start : start + model.num_positions]
            total -= model.log_likelihood(piece[:1], piece[1:])
            tokens += len(piece) - 1
        size += len(document.encode())
    bits = total / math.log(2) / max(size, 1)
    return {
        "tokens": float(tokens),
        "perplexity": round(math.exp(total / max(tokens, 1)), 3),
        "bits_per_byte": round(bits, 4),
    }


def _references(path: Path, line: int, record: dict[str, Any], key: str) -> tuple[str, ...]:
    value = record.get(key)
    if not isinstance(value, list):
        return (text_of(path, line, record, key),)
    if not all(isinstance(text, str) for text in value):
        raise InvalidData(path, f"key {key!r} must be a string or a list of strings", line)
    return tuple(value) or ("",)


def _score_answers(pairs: Sequence[tuple[Item, str]]) -> Figures:
    """SQuAD 2's figures: an item without an answer counts fully when none was given, else not at all."""
    known = [(item, text) for item, text in pairs if any(item.references)]
    unknown = [(item, text) for item, text in pairs if not any(item.references)]
    figures = {
        "em": _mean(exact_match(text, item.references) for item, text in pairs),
        "f1": _mean(best_f1(text, item.references) for item, text in pairs),
        "f1_answerable": _mean(best_f1(text, item.references) for item, text in known),
        "answered": _mean(float(bool(text)) for _, text in known),
        "baseline_f1": _mean(best_f1(overlap_sentence(**item.fields), item.references) for item, _ in known),
    }
    return figures | (
        {"no_answer_accuracy": _mean(float(not text) for _, text in unknown)} if unknown else {}
    )


def _score_labels(pairs: Sequence[tuple[Item, str]]) -> Figures:
    return {"accuracy": _mean(float(text.strip() == item.references[0].strip()) for item, text in pairs)}


def _score_texts(pairs: Sequence[tuple[Item, str]]) -> Figures:
    scores = [rouge(text, item.references[0]) for item, text in pairs]
    figures = {name: _mean(score[name] for score in scores) for name in ("rouge1", "rouge2", "rougeL")}
    return figures | {"repetition": _mean(repetition_rate(text) for _, text in pairs)}


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known) if known else 0.0


def in_order(figures: Mapping[str, Figures]) -> Iterator[tuple[str, str, str]]:
    """Yield (test set, figure, value) for a table."""
    for name, values in figures.items():
        for key, value in values.items():
            yield name, key, f"{value:,.0f}" if key in ("count", "tokens") else f"{value:,.2f}"

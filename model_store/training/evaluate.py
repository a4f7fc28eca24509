"""Measures a model on JSON lines: answers, summaries, any other task, perplexity on text; beside trivial
baselines.

A service is asked, whether it runs somewhere or is loaded into the process for this, so that what is measured
is what is served. The metrics are in `metrics_text.py`; `service/commands/evaluate.py` has the command.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import httpx

from model_store.task import TaskKind
from model_store.tokenizer import Tokenizer
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

_PIECES_AT_ONCE = 32

Figures = dict[str, float]


class Task(Protocol):
    """What is asked: a task of a manifest, or as a service describes it."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> TaskKind: ...

    @property
    def fields(self) -> tuple[str, ...]: ...


class Service:
    """Asks a service, on the network or in this process: what is measured is what is served.

    Args:
        client: Knows the service's address and sends its key.
        num_parallel: Requests in flight.
        more: Fields for every body, as {"no_answer": False}.
    """

    def __init__(
        self, client: httpx.Client, num_parallel: int = 8, more: Mapping[str, Any] | None = None
    ) -> None:
        self._client = client
        self._more = dict(more or {})
        self.num_parallel = num_parallel

    def ask(self, task: Task, fields: Mapping[str, str]) -> str:
        """Give the task's answer; "" where a question has none.

        Raises:
            EvaluationFailed: It refused, or could not be reached.
        """
        reply = self.post(f"/tasks/{task.name}", {**fields, **self._more})
        match task.kind:
            case "qa":
                return str(reply["answer"])
            case "summarize":
                return str(reply["summary"])
            case "choice":
                return str(reply["label"])
            case "generate":
                return str(reply["choices"][0]["text"]).strip()

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask and give the whole reply. Raises as `ask`."""
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


def evaluate(service: Service, task: Task, items: Sequence[Item]) -> Figures:
    """Ask every item of a test set and score the answers.

    Args:
        service: Is asked.
        task: What to ask.
        items: The test set.

    Returns:
        For `qa`: em, f1, f1_answerable, no_answer_accuracy and baseline_f1; for `choice`: accuracy; else
        rouge1, rouge2, rougeL and repetition, for `summarize` also the lead-2 baseline's. All from 0 to 100.
    """
    with ThreadPoolExecutor(service.num_parallel) as pool:
        said = list(pool.map(lambda item: service.ask(task, item.fields), items))
    pairs = list(zip(items, said, strict=True))
    if task.kind == "choice":
        right = (float(text.strip() == item.references[0].strip()) for item, text in pairs)
        figures = {"accuracy": _mean(right)}
    else:
        figures = _score_answers(pairs) if task.kind == "qa" else _score_texts(pairs)
    if task.kind == "summarize":
        leads = [(item, lead_sentences(item.fields["text"])) for item in items]
        lead_figures = _score_texts(leads)
        figures |= {f"lead2_{name}": value for name, value in lead_figures.items() if name != "repetition"}
    return {"count": float(len(items)), **{name: round(100 * value, 2) for name, value in figures.items()}}


def perplexity(
    service: Service, tokenizer: Tokenizer, n_positions: int, path: Path, limit: int = 0
) -> Figures:
    """Measure how well a model predicts a text.

    Args:
        service: Serves the model.
        tokenizer: The model's.
        n_positions: The model's.
        path: Text or JSON lines with `text`.
        limit: Read at most so many documents; 0 reads all.

    Returns:
        perplexity per token, bits_per_byte (comparable between tokenizers) and how many tokens were
        predicted.
    """
    total, tokens, size = 0.0, 0, 0
    for document in islice(documents(path), limit or None):
        ids = [*tokenizer.bos_ids, *tokenizer.encode(document), tokenizer.eos_id]
        starts = range(0, len(ids) - 1, n_positions - 1)
        pieces = [ids[start : start + n_positions] for start in starts]
        for first in range(0, len(pieces), _PIECES_AT_ONCE):
            body = {
                "prompt": pieces[first : first + _PIECES_AT_ONCE],
                "echo": True,
                "max_tokens": 0,
                "logprobs": 0,
            }
            for choice in service.post("/v1/completions", body)["choices"]:
                logprobs = choice["logprobs"]["token_logprobs"][1:]  # the first follows nothing
                total -= math.fsum(logprobs)
                tokens += len(logprobs)
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

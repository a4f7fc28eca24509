"""Measures a model on test sets: answers, summaries, any other task, perplexity on text; beside trivial
baselines.

A service is asked, whether it runs somewhere or is loaded into the process for this, so that what is measured
is what is served. What answers are worth is in `judged.py`; `service/commands/evaluate.py` has the command.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import httpx

from model_store.tokenizer import Tokenizer
from model_store.training.errors import EvaluationFailed, InvalidData
from model_store.training.judged import Figures, Item, Judged, judge
from model_store.training.recipe import Source
from model_store.training.task_rows import AskedTask as Task
from model_store.training.task_rows import read_task_rows
from model_store.training.text_files import documents, expand

_PIECES_AT_ONCE = 32
_CUT = "truncate_left"  # what of a text does not fit goes, as its start, and is counted


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
        self.cut: list[str] = []  # the task of each prompt that lost tokens

    def ask(self, task: Task, fields: Mapping[str, str], seed: int = 0) -> str:
        """Give the task's answer; "" where a question has none. What is drawn is drawn with `seed`.

        Raises:
            EvaluationFailed: It refused, or could not be reached.
        """
        more: dict[str, Any] = {"overflow": _CUT} if task.kind in ("generate", "choice") else {}
        if task.kind in ("generate", "summarize"):
            more["seed"] = seed
        reply = self.post(f"/tasks/{task.name}", {**fields, **more, **self._more})
        if reply.get("usage", {}).get("dropped_tokens"):
            self.cut.append(task.name)
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


def read_items(path: Path, task: Task, target: str = "", limit: int = 0) -> list[Item]:
    """Read a test set.

    Args:
        path: Rows with the task's fields and the target; the target is a string, or a list of strings
            that are all right, or for questions "" or [] where there is no answer.
        task: Says which fields and labels there are.
        target: The target's key; "" for `answer`, `summary`, `label` or `completion` by kind.
        limit: Read at most so many; 0 reads all.

    Raises:
        InvalidData: Names file and line.
    """
    return items_of(Source(path, kind="examples", task=task.name, target=target), task, limit)


def items_of(source: Source, task: Task, limit: int = 0, counts: Counter[str] | None = None) -> list[Item]:
    """Read the test set that a source names; `counts` gets what was left out, by reason.

    Other arguments and errors as in `read_items`.
    """
    rows = read_task_rows(source, task, expand([source.path], is_rows=True), limit, counts)
    if not rows:
        raise InvalidData(source.path, f"gives no example for task {task.name!r}")
    return [Item(row.fields, row.references, row.origin) for row in rows]


def evaluate(service: Service, task: Task, items: Sequence[Item]) -> Figures:
    """Ask every item of a test set and score the answers.

    Args:
        service: Is asked.
        task: What to ask.
        items: The test set.

    Returns:
        `Judged.figures`, of which all numbers are from 0 to 100 but the counts: for `qa` em, f1,
        f1_answerable, answered, baseline_f1 and no_answer_accuracy; for `choice` accuracy, macro_f1 and
        majority_accuracy; else rouge1, rouge2, rougeL, bleu, chrf and repetition, and the baseline's:
        `lead2_…` for `summarize`, `copy_…` for `generate`.
    """
    return ask_and_judge(service, task, items).figures()


def ask_and_judge(service: Service, task: Task, items: Sequence[Item]) -> Judged:
    """Ask every item of a test set, each with its number for a seed; give the answers with their scores."""
    before = len(service.cut)
    with ThreadPoolExecutor(service.num_parallel) as pool:
        asked = (item.fields for item in items)
        said = list(pool.map(service.ask, repeat(task), asked, range(len(items))))
    return replace(judge(task, items, said), num_cut=len(service.cut) - before)


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


def in_order(figures: Mapping[str, Figures]) -> Iterator[tuple[str, str, str, str]]:
    """Yield (test set, figure, value, interval) for a table; "" where there is no interval."""
    for name, values in figures.items():
        intervals = values.get("intervals", {})
        for key, value in values.items():
            if isinstance(value, int | float):
                shown = f"{value:,.0f}" if key in ("count", "tokens", "cut") else f"{value:,.2f}"
                low, high = intervals.get(key, (None, None))
                yield name, key, shown, "" if low is None else f"{low:,.1f} to {high:,.1f}"

"""What a base model writes when nobody gave of its old work: texts, and examples of each of its tasks.

All is drawn at temperature 1, so that a loss on it rises by the divergence of a new model from the base. Used
by `retention.py`, which measures and rehearses it.

Source: Robins 1995, "Catastrophic Forgetting, Rehearsal and Pseudorehearsal"; Sun et al. 2020, "LAMOL".
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from model_store.atomic import write_atomically
from model_store.task import Task
from model_store.template import parse
from model_store.tokenizer import Tokenizer
from model_store.training.recipe import TARGET_KEYS, Source
from model_store.training.watching import duration

TEXTS = "text"
_TEXTS, _EXAMPLES = 48, 12  # written for the measure alone
_REHEARSED = 8  # times as many where they are learned from, too
_TEXT_TOKENS, _FIELD_TOKENS, _ANSWER_TOKENS = 128, 96, 24
_AT_ONCE = 64
_QUIET_S = 5.0  # a large base writes for minutes, and says how many
_TIMED_STEPS = 5


def written_by(
    model: Any,
    tokenizer: Tokenizer,
    tasks: Mapping[str, Task],
    folder: Path,
    is_rehearsed: bool,
    seed: int,
    report: Callable[[str], None],
) -> tuple[Source, ...]:
    """Let the base write texts and examples of each of its tasks; what it wrote before is found again.

    Args:
        model: The base, a `LeanGPT2` on the CPU.
        tokenizer: Its own.
        tasks: Its own, by name.
        folder: Gets a file for each.
        is_rehearsed: Write many, not only enough to measure.
        seed: Of the draws.
        report: Gets lines.

    Returns:
        One source for each file.
    """
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    write = _Writer(model, tokenizer, generator)
    kinds = _kinds(tasks)
    counts = {name: _count(task, is_rehearsed) for name, task in kinds.items()}
    report(f"old work: written by the base itself ({', '.join(f'{name}-{n}' for name, n in counts.items())})")
    paths = {name: folder / f"{name}-{count}.jsonl" for name, count in counts.items()}
    ahead = sum(_steps(counts[name], task) for name, task in kinds.items() if not paths[name].exists())
    write.tell = _Forecast(ahead, report)
    sources = []
    for name, task in kinds.items():
        path = paths[name]
        if not path.exists():
            records = write.texts(counts[name]) if task is None else write.examples(task, counts[name])
            write_atomically(path, "".join(json.dumps(record) + "\n" for record in records))
        if not path.stat().st_size:
            report(f"old work, {name}: the base writes nothing of the kind, so it is not measured")
            continue
        kind = "text" if task is None else "examples"
        sources.append(Source(path, kind, name if task is not None else "", min_overlap=0))
    return tuple(sources)


def foreseen(
    model: Any, tokenizer: Tokenizer, tasks: Mapping[str, Task], is_rehearsed: bool
) -> tuple[int, float]:
    """Say how many tokens `written_by` draws with the same arguments, and in how many seconds.

    Some steps are timed where a text is half written; what stands before a field is read at the same speed
    as that half.
    """
    write, times = _Writer(model, tokenizer, torch.Generator()), [time.monotonic()]
    write.tell = lambda: times.append(time.monotonic())
    size = min(_TEXT_TOKENS, model.config.n_positions) // 2
    write.continued([[tokenizer.eos_id] * size] * _TEXTS, _TIMED_STEPS)
    read_s, step_s = (times[1] - times[0]) / (size * _TEXTS), (times[-1] - times[1]) / (_TIMED_STEPS - 1)
    num_tokens, seconds = 0, 0.0
    for task in _kinds(tasks).values():
        count, drawn = _count(task, is_rehearsed), _drawn(task)
        num_tokens += count * sum(drawn)
        seconds += _steps(count, task) * step_s + count * sum(accumulate(drawn[:-1])) * read_s
    return num_tokens, seconds


def _kinds(tasks: Mapping[str, Task]) -> dict[str, Task | None]:
    """What is written, by name: texts (None), and examples of each task that has a template of its own."""
    kinds: dict[str, Task | None] = {TEXTS: None}
    templates = set()
    for name, its in tasks.items():
        if not _is_text(its) and its.template not in templates:
            kinds[name] = its
            templates.add(its.template)
    return kinds


def _count(task: Task | None, is_rehearsed: bool) -> int:
    return (_REHEARSED if is_rehearsed else 1) * (_TEXTS if task is None else _EXAMPLES)


def _drawn(task: Task | None) -> list[int]:
    """How many tokens are drawn for a text, or for each field of an example and its answer."""
    if task is None:
        return [_TEXT_TOKENS]
    fields = [name for _, name in parse(task.template) if name is not None]
    drawn = [_FIELD_TOKENS if name == task.document else _ANSWER_TOKENS for name in fields]
    return [*drawn, _ANSWER_TOKENS]


def _steps(count: int, task: Task | None) -> int:
    """How many times the model is asked for so many texts or examples."""
    return math.ceil(count / _AT_ONCE) * sum(_drawn(task))


class _Forecast:
    """Says, some seconds after the writing began and twice as late each time, how long it will still take.

    Args:
        ahead: Steps, in each of which a token is drawn for many texts at once.
        report: Gets the lines.
    """

    def __init__(self, ahead: int, report: Callable[[str], None]) -> None:
        self._ahead, self._report = ahead, report
        self._done, self._begun, self._quiet_s = 0, time.monotonic(), _QUIET_S

    def __call__(self) -> None:
        """Count a step."""
        self._done += 1
        passed = time.monotonic() - self._begun
        if passed > self._quiet_s and self._done < self._ahead:
            self._quiet_s = 2 * passed
            left = passed * (self._ahead - self._done) / self._done
            share = 100 * self._done / self._ahead
            self._report(f"old work: {share:.0f} % written, about {duration(left)} left")


def _is_text(task: Task) -> bool:
    """Whether a task's prompt is nothing but a text that is continued."""
    return [literal for literal, _ in parse(task.template)][:1] == [""] and len(task.fields) == 1


class _Writer:
    """Draws from a model at temperature 1."""

    def __init__(self, model: Any, tokenizer: Tokenizer, generator: torch.Generator) -> None:
        self._model, self._tokenizer, self._generator = model, tokenizer, generator
        self.tell: Callable[[], None] = lambda: None

    def texts(self, count: int) -> list[dict[str, str]]:
        start = list(self._tokenizer.bos_ids) or [self._tokenizer.eos_id]
        said = self.continued([start] * count, _TEXT_TOKENS)
        return [{"text": text} for ids in said if (text := self._tokenizer.decode(ids)).strip()]

    def examples(self, task: Task, count: int) -> list[dict[str, str]]:
        """Records of a task: each field as the model goes on from what stands before it, then the answer."""
        pieces = parse(task.template)
        records: list[dict[str, str]] = [{} for _ in range(count)]
        for place, (_, name) in enumerate(pieces):
            if name is None:
                continue
            end = next((literal for literal, _ in pieces[place + 1 :] if literal), "").strip()
            prompts = [self._before(record, pieces[: place + 1]) for record in records]
            is_document = name == task.document
            said = self.continued(prompts, _FIELD_TOKENS if is_document else _ANSWER_TOKENS)
            for record, ids in zip(records, said, strict=True):
                text = self._tokenizer.decode(ids)
                text = text.partition(end)[0] if end else text
                record[name] = text.strip() if is_document else (text.strip().splitlines() or [""])[0]
        records = [record for record in records if all(record[name].strip() for name in task.fields)]
        said = self.continued([task.encode(self._tokenizer, r) for r in records], _ANSWER_TOKENS)
        answers = [(self._tokenizer.decode(ids).strip().splitlines() or [""])[0] for ids in said]
        target = TARGET_KEYS[task.kind]
        written = [{**record, target: answer} for record, answer in zip(records, answers, strict=True)]
        legal = set(task.labels)
        return [record for record in written if record[target] and (not legal or record[target] in legal)]

    def _before(self, record: Mapping[str, str], pieces: Sequence[tuple[str, str | None]]) -> list[int]:
        """The ids of a prompt up to the field that the last piece ends with."""
        ids = list(self._tokenizer.bos_ids)
        for literal, name in pieces:
            has_space = literal.endswith(" ")  # as in `template.render`
            ids += self._tokenizer.encode_specials(literal[:-1] if has_space else literal)
            if name is not None and name in record:
                ids += self._tokenizer.encode(" " * has_space + record[name])
        return ids or [self._tokenizer.eos_id]

    def continued(self, prompts: Sequence[list[int]], num_new: int) -> list[list[int]]:
        """Continue prompts up to the end of text, those of like length together."""
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        said: list[list[int]] = [[] for _ in prompts]
        for first in range(0, len(order), _AT_ONCE):
            batch = order[first : first + _AT_ONCE]
            drawn = self._drawn([prompts[index] for index in batch], num_new)
            for index, ids in zip(batch, drawn, strict=True):
                said[index] = ids
        return said

    def _drawn(self, prompts: list[list[int]], num_new: int) -> list[list[int]]:
        """Draw tokens for prompts of one batch, padded on the left: (B, W) ids, mask and positions."""
        width, eos = max(map(len, prompts)), self._tokenizer.eos_id
        ids = torch.tensor([[eos] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        positions, past = (mask.cumsum(1) - 1).clamp(min=0), None
        drawn: list[torch.Tensor] = []
        with torch.inference_mode():
            for _ in range(max(0, min(num_new, self._model.config.n_positions - width))):
                out = self._model.transformer(
                    ids, attention_mask=mask, position_ids=positions, past_key_values=past, use_cache=True
                )
                past = out.past_key_values
                sums = (
                    self._model.lm_head(out.last_hidden_state[:, -1]).softmax(-1).cumsum(-1)
                )  # (B, vocabulary)
                places = torch.rand(len(sums), 1, generator=self._generator) * sums[:, -1:]
                # torch.multinomial takes twenty times as long
                ids = torch.searchsorted(sums, places).clamp(max=sums.shape[1] - 1)
                drawn.append(ids)
                self.tell()
                mask = torch.cat([mask, torch.ones_like(ids)], 1)
                positions = positions[:, -1:] + 1
        rows = torch.cat(drawn, 1).tolist() if drawn else [[] for _ in prompts]
        return [row[: row.index(eos)] if eos in row else row for row in rows]

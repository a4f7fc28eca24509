"""Reads the sources of a recipe into a spool: what each kind of source gives, and what belongs together.

Rows and texts are read in `task_rows.py` and `text_files.py`; what is made of the spool is in `dataset.py`.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from model_store.evidence import on_one_line
from model_store.recipes.cloze import make_questions, split_passages
from model_store.recipes.dialogue import replies
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from model_store.training.errors import InvalidData
from model_store.training.examples import Pair, encode_pair, encode_text, shorten
from model_store.training.grounding import ground, lead_target
from model_store.training.recipe import Source
from model_store.training.spool import Spool, digest
from model_store.training.task_rows import TaskRow, task_rows
from model_store.training.text_files import describe, documents

T = TypeVar("T")
_QUESTIONS_PER_PASSAGE = (3, 8)
_FOREIGN_SHARE = 0.5  # passages that get one question of the passage before, which they do not answer


class Reader:
    """Reads sources into a spool.

    Args:
        tasks: By name.
        tokenizer: The model's own.
        is_loss_everywhere: Count the prompts' tokens in the loss, too.
        seed: Of every draw.
        spool: Gets all items; a task's number is its place among `tasks`.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        tokenizer: Tokenizer,
        is_loss_everywhere: bool,
        seed: int,
        spool: Spool,
    ) -> None:
        self._tasks, self._tokenizer, self._is_loss_everywhere = tasks, tokenizer, is_loss_everywhere
        self._numbers = {name: number for number, name in enumerate(tasks)}
        self._rng = random.Random(seed)
        self._spool = spool
        self._reading = 0
        self.counts: Counter[str] = Counter()  # what was left out, and became of answers
        self.notes: Counter[str] = Counter()  # on what was read, beside what it is counted as
        self._labels: dict[str, set[str]] = {}  # of each task that chooses, those of its examples

    def read(self, source: Source, file: Path, report: Callable[[str], None]) -> None:
        """Read one file of a source.

        Args:
            source: Says what is made of it, and how often.
            file: The file.
            report: Gets one line.

        Raises:
            InvalidData: The file is wrong; names file and line.
        """
        before = len(self._spool) + self.counts.total()
        kinds = {
            "text": self._read_text,
            "cloze": self._read_cloze,
            "dialogue": self._read_dialogue,
            "examples": self._read_examples,
        }
        for reading in range(source.repeat):
            self._reading = reading
            kinds[source.kind](source, file)
        described = describe(file, source.encoding)
        told = f"{file.name} ({described})" if described else file.name
        report(f"{told}: {len(self._spool) + self.counts.total() - before:,} {source.kind}")

    def missing_labels(self) -> list[str]:
        """Say which labels of the tasks that were read no example has."""
        lines = []
        for name, seen in self._labels.items():
            if missing := [label for label in self._tasks[name].labels if label not in seen]:
                lines.append(f"task {name!r}: no example has the label {', '.join(map(repr, missing))}")
        return lines

    def _read_text(self, source: Source, file: Path) -> None:
        for document in self._sample(source, documents(file)):
            self._spool.add_text(encode_text(self._tokenizer, document), document, self._reading)

    def _read_cloze(self, source: Source, file: Path) -> None:
        task, last = self._tasks[source.task], ""
        for document in documents(file):
            group = digest("document", document)
            for passage in self._sample(source, split_passages(document, self._rng, *source.passage_words)):
                made = make_questions(passage, self._rng, self._rng.randint(*_QUESTIONS_PER_PASSAGE))
                pairs = [Pair({"context": passage, "question": c.question}, c.answer) for c in made]
                pairs = [pair for pair in pairs if pair.answer in task.read(pair.fields).text]
                if last and task.no_answer and self._rng.random() < _FOREIGN_SHARE:
                    foreign = Pair({"context": passage, "question": last}, task.no_answer)
                    pairs.insert(self._rng.randrange(len(pairs) + 1), foreign)
                if made:
                    last = made[0].question
                for pair in pairs:
                    self._add(task, pair, group)

    def _read_dialogue(self, source: Source, file: Path) -> None:
        task = self._tasks[source.task]
        for document in documents(file):
            group = digest("document", document)
            for reply in self._sample(source, replies(document)):
                fields = {"history": reply.history, "speaker": reply.speaker}
                self._add(task, Pair(fields, reply.text), group)

    def _read_examples(self, source: Source, file: Path) -> None:
        task = self._tasks[source.task]
        dialogue, history, place = 0, "", -1
        for row in task_rows(source, task, file, self.notes):
            said = row.fields.get("history", "")
            is_longer = bool(history) and len(said) > len(history) and said.startswith(history)
            if row.place != place and (row.is_turn or not is_longer):
                dialogue = digest("dialogue", str(file), str(row.place))
            history, place = said, row.place
            if source.share < 1 and self._rng.random() >= source.share:
                continue
            if (pair := self._pair(source, task, row)) is not None:
                self._add(task, pair, _together(source, task, row, dialogue))

    def _pair(self, source: Source, task: Task, row: TaskRow) -> Pair | None:
        if len(row.references) > 1:
            self.notes["first of several answers"] += 1
        pair = Pair(row.fields, row.references[0], row.origin)
        if source.max_target_words and len(pair.answer.split()) > source.max_target_words:
            self.counts["target too long"] += 1
            return None
        if source.max_document_tokens:
            limit = self._rng.choice(source.max_document_tokens)
            pair = shorten(task, self._tokenizer, pair, limit)
        if source.lead_words[1] and task.document:
            pair = replace(pair, answer=lead_target(task.read(pair.fields).text, *source.lead_words))
        return self._grounded(source, task, pair)

    def _grounded(self, source: Source, task: Task, pair: Pair) -> Pair | None:
        """Put a span of the context, or the no-answer text, in the place of a question's answer."""
        if task.kind != "qa":
            return pair
        if not pair.answer.strip():
            (self.notes if task.no_answer else self.counts)["unanswerable"] += 1
            return replace(pair, answer=task.no_answer) if task.no_answer else None
        if source.min_overlap <= 0:
            return pair
        grounded = ground(pair.fields["context"], pair.answer)
        if grounded.overlap < source.min_overlap:
            self.counts["answer is no span"] += 1
            return None
        answer = on_one_line(grounded.text) if task.evidence else grounded.text
        if answer not in task.read(pair.fields).text:
            self.counts["answer is outside the evidence"] += 1
            return None
        self.notes["answer is a span" if grounded.overlap == 1 else "answer became a span"] += 1
        return replace(pair, answer=answer)

    def _add(self, task: Task, pair: Pair, group: int) -> None:
        if task.kind == "choice":
            self._labels.setdefault(task.name, set()).add(pair.answer)
        example = encode_pair(task, self._tokenizer, pair, self._is_loss_everywhere)
        self._spool.add_pair(self._numbers[task.name], pair, example, group, self._reading)

    def _sample(self, source: Source, items: Iterator[T]) -> Iterator[T]:
        return (item for item in items if source.share >= 1 or self._rng.random() < source.share)


def _together(source: Source, task: Task, row: TaskRow, dialogue: int) -> int:
    """A number that is equal for rows that belong on one side of the validation split.

    The recipe's `group` column says it; else one document does, one dialogue, or equal fields.
    """
    if source.group:
        if source.group not in row.record:
            known = ", ".join(sorted(row.record))
            raise InvalidData(
                row.path, f"has no key {source.group!r} to group by; its keys are {known}", row.line
            )
        return digest("group", str(row.record[source.group]))
    if row.is_turn or "history" in task.fields:
        return dialogue
    if task.document:
        return digest("document", row.fields[task.document].strip())
    return digest("fields", *(row.fields[name].strip() for name in task.fields))

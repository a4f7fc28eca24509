"""Builds the packed rows that a run trains on, from the sources of a recipe, in bounded memory.

Everything is read, checked and tokenised before training begins, so that a wrong line is named within minutes
and not after hours. The result is kept in a folder named after a fingerprint of its inputs: a resumed run
finds it again. Read next: `packing.py` (rows on disk), `examples.py` (rendering).
"""

import hashlib
import json
import os
import random
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

from model_store.evidence import on_one_line
from model_store.recipes.cloze import make_questions, split_passages
from model_store.recipes.dialogue import replies
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from model_store.training.errors import InvalidOption
from model_store.training.examples import Pair, encode_pair, encode_text, fit, shorten
from model_store.training.grounding import ground, lead_target
from model_store.training.packing import RowWriter
from model_store.training.recipe import Source
from model_store.training.task_rows import task_rows
from model_store.training.text_files import describe, documents, expand, stamp

T = TypeVar("T")
WINDOW = 50_000  # pairs held in memory to shuffle them and to find those that share a document
_ROWS_FORMAT = 3  # of what `packing.RowWriter` writes; rows of an older one are made anew
_QUESTIONS_PER_PASSAGE = (3, 8)
_FOREIGN_SHARE = 0.5  # passages that get one question of the passage before, which they do not answer


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """Everything that decides what the rows hold.

    Args:
        sources: What to read.
        tasks: The tasks by name.
        block: Tokens in a row.
        is_loss_everywhere: Count the prompts' tokens too (pretraining).
        valid_share: The share of documents and records kept for validation, from 0 to below 1.
        seed: Of every draw.
    """

    sources: tuple[Source, ...]
    tasks: Mapping[str, Task]
    block: int
    is_loss_everywhere: bool
    valid_share: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Built:
    """Where the rows lie.

    Args:
        train: A folder for `packing.Rows`.
        valid: The same for validation; empty rows when no share was asked for.
        counts: What was used and what was left out, by reason, for the run's report.
    """

    train: Path
    valid: Path
    counts: Mapping[str, int]


Watch = Callable[[Task, Pair, Pair | None], None]  # gets a pair, and what of it fits into a row


def build(
    plan: BuildPlan,
    tokenizer: Tokenizer,
    cache: Path,
    report: Callable[[str], None],
    watch: Watch | None = None,
) -> Built:
    """Give the packed rows of a plan, made now or found in the cache.

    Args:
        plan: What to make.
        tokenizer: The model's own.
        cache: A folder for packed rows; one subfolder for each fingerprint.
        report: Gets one line for each file as it is read.
        watch: Is told of each example as it is packed; of none where rows are found in the cache.

    Raises:
        InvalidData: A file is wrong; names file and line.
    """
    files = [
        (source, file) for source in plan.sources for file in expand([source.path], source.kind == "examples")
    ]
    folder = cache / _fingerprint(plan, tokenizer, [file for _, file in files])
    if not (folder / "counts.json").exists():
        unfinished = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        try:
            counts = _Builder(plan, tokenizer, unfinished, watch).run(files, report)
            (unfinished / "counts.json").write_text(json.dumps(counts), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    counts = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
    return Built(folder / "train", folder / "valid", counts)


class _Builder:
    """Reads sources into two row writers."""

    def __init__(
        self, plan: BuildPlan, tokenizer: Tokenizer, folder: Path, watch: Watch | None = None
    ) -> None:
        self._plan, self._tokenizer, self._watch = plan, tokenizer, watch
        self._rng = random.Random(plan.seed)
        self._counts: Counter[str] = Counter()
        self._notes: Counter[str] = Counter()  # on what was read, beside what it is counted as
        size = (plan.block, tokenizer.eos_id, tokenizer.vocab_size)
        self._writers = [RowWriter(folder / name, *size) for name in ("train", "valid")]

    def run(self, files: list[tuple[Source, Path]], report: Callable[[str], None]) -> dict[str, int]:
        with self._writers[0], self._writers[1]:
            for source, file in files:
                before = self._counts.total()
                for _ in range(source.repeat):
                    self._read(source, file)
                found = describe(file, source.encoding)
                told = f"{file.name} ({found})" if found else file.name
                report(f"{told}: {self._counts.total() - before:,} {source.kind}")
            for writer in self._writers:
                writer.finish()
        return dict(self._counts + self._notes)

    def _read(self, source: Source, file: Path) -> None:
        if source.kind == "text":
            self._read_text(source, file)
        elif source.kind == "cloze":
            self._read_cloze(source, file)
        elif source.kind == "dialogue":
            self._read_dialogue(source, file)
        else:
            self._read_examples(source, file)

    def _read_text(self, source: Source, file: Path) -> None:
        for document in self._sample(source, documents(file)):
            self._writer().add_text(encode_text(self._tokenizer, document))
            self._counts["documents"] += 1

    def _read_cloze(self, source: Source, file: Path) -> None:
        task, last = self._plan.tasks[source.task], ""
        for document in documents(file):
            writer = self._writer()
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
                    self._add(writer, task, pair)

    def _read_dialogue(self, source: Source, file: Path) -> None:
        task = self._plan.tasks[source.task]
        for document in documents(file):
            writer = self._writer()
            for reply in self._sample(source, replies(document)):
                fields = {"history": reply.history, "speaker": reply.speaker}
                self._add(writer, task, Pair(fields, reply.text))

    def _read_examples(self, source: Source, file: Path) -> None:
        task = self._plan.tasks[source.task]
        window: list[Pair] = []
        for pair in self._pairs(source, task, file):
            window.append(pair)
            if len(window) >= WINDOW:
                self._add_shuffled(task, window)
                window.clear()
        self._add_shuffled(task, window)

    def _pairs(self, source: Source, task: Task, file: Path) -> Iterator[Pair]:
        for row in self._sample(source, task_rows(source, task, file, self._notes)):
            if len(row.references) > 1:
                self._notes["first of several answers"] += 1
            pair = Pair(row.fields, row.references[0], row.origin)
            if source.max_target_words and len(pair.answer.split()) > source.max_target_words:
                self._counts["target too long"] += 1
                continue
            if source.max_document_tokens:
                limit = self._rng.choice(source.max_document_tokens)
                pair = shorten(task, self._tokenizer, pair, limit)
            if source.lead_words[1] and task.document:
                answer = lead_target(task.read(pair.fields).text, *source.lead_words)
                pair = replace(pair, answer=answer)
            if (grounded := self._grounded(source, task, pair)) is not None:
                yield grounded

    def _grounded(self, source: Source, task: Task, pair: Pair) -> Pair | None:
        """Put a span of the context, or the no-answer text, in the place of a question's answer."""
        if task.kind != "qa":
            return pair
        if not pair.answer.strip():
            self._counts["unanswerable"] += 1
            return replace(pair, answer=task.no_answer) if task.no_answer else None
        if source.min_overlap <= 0:
            return pair
        found = ground(pair.fields["context"], pair.answer)
        if found.overlap < source.min_overlap:
            self._counts["answer is no span"] += 1
            return None
        answer = on_one_line(found.text) if task.evidence else found.text
        if answer not in task.read(pair.fields).text:
            self._counts["answer is outside the evidence"] += 1
            return None
        self._counts["answer is a span" if found.overlap == 1 else "answer became a span"] += 1
        return replace(pair, answer=answer)

    def _add_shuffled(self, task: Task, pairs: list[Pair]) -> None:
        """Add pairs in an order of the seed's, those on one document to one side of the validation split."""
        writers: dict[str, RowWriter] = defaultdict(self._writer)
        self._rng.shuffle(pairs)
        for pair in pairs:
            writer = writers[pair.fields[task.document]] if task.document else self._writer()
            self._add(writer, task, pair)

    def _add(self, writer: RowWriter, task: Task, pair: Pair) -> None:
        fitted = fit(task, self._tokenizer, pair, self._plan.block)
        if self._watch is not None:
            self._watch(task, pair, fitted)
        if fitted is None:
            self._counts["longer than a block"] += 1
            return
        if fitted is not pair:
            self._notes["cut to a block"] += 1
        writer.add_whole(encode_pair(task, self._tokenizer, fitted, self._plan.is_loss_everywhere))
        self._counts[f"{task.name} pairs"] += 1

    def _sample(self, source: Source, items: Iterator[T]) -> Iterator[T]:
        return (item for item in items if source.share >= 1 or self._rng.random() < source.share)

    def _writer(self) -> RowWriter:
        return self._writers[self._rng.random() < self._plan.valid_share]


def _fingerprint(plan: BuildPlan, tokenizer: Tokenizer, files: list[Path]) -> str:
    """Name the inputs: the plan, the tokenizer and each file's size and time of change."""
    stats = [stamp(file) for file in files]
    tasks = {name: task.to_dict() for name, task in plan.tasks.items()}
    sources = [asdict(source) for source in plan.sources]
    ids = tokenizer.encode("The quick brown fox, 1984. 学而时习之")
    probe = [tokenizer.vocab_size, tokenizer.bos_ids, ids]
    parts = [
        _ROWS_FORMAT,
        plan.block,
        plan.is_loss_everywhere,
        plan.valid_share,
        plan.seed,
        stats,
        tasks,
        sources,
        probe,
    ]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def require_block(block: int, num_positions: int) -> None:
    """Refuse a block that the model has no positions for.

    Raises:
        InvalidOption: Gives the legal range.
    """
    if not 8 <= block <= num_positions:
        raise InvalidOption(
            "--block", f"must be from 8 to the model's {num_positions} positions, not {block}"
        )

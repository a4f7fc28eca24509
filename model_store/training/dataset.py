"""Makes the packed rows that a run trains on, from the sources of a recipe, in bounded memory.

Everything is read, checked and tokenised before training begins, once, so that a wrong line is named within
minutes and not after hours. The result is kept in a folder named after a fingerprint of its inputs: a resumed
run, and the other processes of one on several devices, find it again. Read next: `reading.py` (sources),
`split.py` (validation), `packing.py` (rows on disk), `examples.py` (rendering).
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from model_store.atomic import write_atomically
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from model_store.training.defaults import choose_block
from model_store.training.errors import InvalidOption
from model_store.training.examples import Example, Pair, encode_pair, fit
from model_store.training.packing import RowWriter
from model_store.training.reading import Reader
from model_store.training.recipe import Source
from model_store.training.split import draw_examples, draw_texts, num_duplicates, seen_in_training
from model_store.training.spool import TEXT, Spool, Table
from model_store.training.text_files import expand, stamp

_ROWS_FORMAT = 6  # of what is written here; rows of an older one are made anew
_BUILT = "built.json"  # written last
_UNFINISHED = ".tmp"  # ends the name of a folder that is being filled
_KEYS = "keys.npy"  # a number for each item that is learned from, equal for equal ones


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """Everything that decides what the rows hold.

    Args:
        sources: What to read.
        tasks: The tasks by name.
        block: Tokens in a row; 0 chooses from the lengths of what is read.
        is_loss_everywhere: Count the prompts' tokens too (pretraining).
        valid_share: The share of each task's examples, and of the texts' tokens, kept for validation, from 0
            to below 1; None chooses it.
        seed: Of every draw.
        num_positions: The model's: no block is longer.
    """

    sources: tuple[Source, ...]
    tasks: Mapping[str, Task]
    block: int
    is_loss_everywhere: bool
    valid_share: float | None = 0.0
    seed: int = 0
    num_positions: int = 1024


@dataclass(frozen=True, slots=True)
class Built:
    """Where the rows lie.

    Args:
        folder: Holds all of it; its name is the fingerprint of what the rows were made from.
        data: A fingerprint of the files alone.
        block: Tokens in a row.
        why: Why the block was chosen; "" where it was given.
        counts: What was used and what was left out, by reason, for the run's report.
        notes: Lines for people on how the validation data was drawn.
    """

    folder: Path
    data: str
    block: int
    why: str
    counts: Mapping[str, int]
    notes: tuple[str, ...]

    @property
    def train(self) -> Path:
        """A folder for `packing.Rows`."""
        return self.folder / "train"

    @property
    def valid(self) -> Path:
        """The same for validation; empty rows when no share was asked for."""
        return self.folder / "valid"

    def num_equal(self, other: "Built") -> int:
        """How many different items to learn from are in `other`, too."""
        mine, others = (np.load(each.folder / _KEYS) for each in (self, other))
        return len(np.intersect1d(mine, others, assume_unique=True))


# gets a pair, its tokens, and what of it fits into a row
Watch = Callable[[Task, Pair, Example, Pair | None], None]


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
        InvalidOption: The model has no positions for the block.
    """
    if plan.block:
        require_block(plan.block, plan.num_positions)
    files = [
        (source, file) for source in plan.sources for file in expand([source.path], source.kind == "examples")
    ]
    stamps = [stamp(file) for _, file in files]
    pointer = cache / f"{_fingerprint(plan, tokenizer, stamps)}.block"  # what was chosen for the same data
    is_chosen = not plan.block
    if is_chosen and pointer.exists():
        plan = replace(plan, block=int(pointer.read_text(encoding="utf-8")))
    folder = cache / _fingerprint(plan, tokenizer, stamps)
    if not plan.block or not (folder / _BUILT).exists():
        unfinished = folder.with_name(f"{folder.name}{_UNFINISHED}")
        shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
        try:
            with Spool(unfinished / "spool") as spool:
                reader = Reader(plan.tasks, tokenizer, plan.is_loss_everywhere, plan.seed, spool)
                for source, file in files:
                    reader.read(source, file, report)
                told = _Packer(plan, tokenizer, spool, watch).pack(unfinished)
            told["notes"] += reader.missing_labels()
            told["counts"] = dict(reader.counts + reader.notes + told["counts"])
            shutil.rmtree(unfinished / "spool")
            (unfinished / _BUILT).write_text(json.dumps(told), encoding="utf-8")
            folder = cache / _fingerprint(replace(plan, block=told["block"]), tokenizer, stamps)
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    told = json.loads((folder / _BUILT).read_text(encoding="utf-8"))
    if is_chosen:
        write_atomically(pointer, str(told["block"]))
    why = told["why"] if is_chosen else ""
    return Built(folder, _digest(stamps), told["block"], why, told["counts"], tuple(told["notes"]))


class _Packer:
    """Makes rows of a spool."""

    def __init__(self, plan: BuildPlan, tokenizer: Tokenizer, spool: Spool, watch: Watch | None) -> None:
        self._plan, self._tokenizer, self._spool, self._watch = plan, tokenizer, spool, watch
        self._tasks = list(plan.tasks.values())
        self._counts: Counter[str] = Counter()
        self._notes: list[str] = []

    def pack(self, folder: Path) -> dict[str, Any]:
        """Choose the block, draw what validates, write the rows; give what is kept as `built.json`."""
        plan, table = self._plan, self._spool.table()
        block, why = plan.block, ""
        if not block:
            is_text = table.task == TEXT
            num_text = int(table.length[is_text].sum())
            block, why = choose_block(table.length[~is_text], num_text, plan.num_positions)
        if duplicates := num_duplicates(table):
            self._counts["duplicates"] = duplicates
        cut = self._cut_to(block, table)
        items = np.array([item for item in range(len(table.task)) if cut.get(item, 0) is not None], np.int64)
        kept = table.take(items)
        is_valid, by_row = draw_examples(kept, plan.valid_share, plan.seed)
        self._notes += [
            f"validation: most of task {self._tasks[task].name!r} is on one document, so single rows validate"
            for task in sorted(by_row)
        ]
        seen = seen_in_training(kept, is_valid)
        if num_seen := int(seen.sum()):
            self._counts["left out of validation, as training has them"] = num_seen
        held = draw_texts(kept, plan.valid_share, plan.seed)
        size = (block, self._tokenizer.eos_id, self._tokenizer.vocab_size)
        with RowWriter(folder / "train", *size) as train, RowWriter(folder / "valid", *size) as valid:
            for index in np.flatnonzero(kept.task == TEXT):
                example = self._spool.example(int(items[index]))
                border = len(example.ids) - int(held[index])
                train.add_text(example.part(0, border))
                valid.add_text(example.part(border, len(example.ids)))
                self._counts["documents"] += 1
            examples = np.flatnonzero((kept.task != TEXT) & ~seen)
            for index in np.random.default_rng(plan.seed).permutation(examples):
                item = int(items[index])
                writer = valid if is_valid[index] else train
                writer.add_whole(self._spool.example(cut.get(item) or item))
                self._counts[f"{self._tasks[table.task[item]].name} pairs"] += 1
            train.finish(), valid.finish()
        np.save(folder / _KEYS, np.unique(kept.row[~is_valid & ~seen]))
        return {"block": block, "why": why, "counts": self._counts, "notes": self._notes}

    def _cut_to(self, block: int, table: Table) -> dict[int, int | None]:
        """Cut what is longer than a block: item -> the cut one, or None where it cannot be cut."""
        cut: dict[int, int | None] = {}
        for item in np.flatnonzero(table.task != TEXT).tolist():
            is_long = table.length[item] > block
            if not is_long and self._watch is None:
                continue
            task, pair = self._tasks[table.task[item]], self._spool.pair(item)
            fitted = fit(task, self._tokenizer, pair, block) if is_long else pair
            if self._watch is not None:
                self._watch(task, pair, self._spool.example(item), fitted)
            if fitted is None:
                self._counts["longer than a block"] += 1
                cut[item] = None
            elif is_long:
                self._counts["cut to a block"] += 1
                example = encode_pair(task, self._tokenizer, fitted, self._plan.is_loss_everywhere)
                cut[item] = self._spool.add_pair(int(table.task[item]), fitted, example, 0, 0)
        return cut


def _fingerprint(plan: BuildPlan, tokenizer: Tokenizer, stamps: list[tuple[str, str]]) -> str:
    """Name the inputs: the plan, the tokenizer and each file's name and checksum."""
    ids = tokenizer.encode("The quick brown fox, 1984. 学而时习之")
    return _digest(
        [
            _ROWS_FORMAT,
            plan.block or -plan.num_positions,
            plan.is_loss_everywhere,
            plan.valid_share,
            plan.seed,
            stamps,
            {name: task.to_dict() for name, task in plan.tasks.items()},
            [{**asdict(source), "path": ""} for source in plan.sources],
            [tokenizer.vocab_size, tokenizer.bos_ids, ids],
        ]
    )


def _digest(parts: Sequence[object]) -> str:
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

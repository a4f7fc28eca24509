"""Which part of the data validates: an exact share, and nothing in it that training sees, too.

What belongs together (the questions on one document, the turns of one dialogue, equal rows) stays on one
side. Only numbers here; what they stand for is in `spool.py`.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from model_store.training.defaults import choose_held
from model_store.training.spool import TEXT, Table

Flags = npt.NDArray[np.bool_]
_ENOUGH_EXAMPLES, _ENOUGH_TOKENS = 100, 8192  # to validate on


def draw_examples(table: Table, share: float | None, seed: int) -> tuple[Flags, set[int]]:
    """Draw the examples that validate: of each task the share of its examples, rounded, but at least one.

    Groups are drawn in an order of the seed's and taken while they fit. Where a task's groups are all larger
    than its share, its smallest is taken, or, where that is more than half of the task, equal rows are the
    groups.

    Args:
        table: All items; texts are left alone.
        share: From 0 to below 1; None chooses.
        seed: Of the draw.

    Returns:
        A flag for each item, and the tasks of which single rows were drawn.
    """
    is_valid = np.zeros(len(table.task), np.bool_)
    by_row: set[int] = set()
    wanted = _wanted(table, share)
    if not wanted:
        return is_valid, by_row
    held = dict.fromkeys(wanted, 0)
    rng = np.random.default_rng(seed)
    examples = np.flatnonzero(table.task != TEXT)
    for items in _groups(examples, table.group, rng):
        if held == wanted:
            break
        if _fits(table, items, held, wanted):
            is_valid[items] = True
    for task in sorted(wanted):
        if held[task]:
            continue
        mine = examples[table.task[examples] == task]
        smallest = min(_groups(mine, table.group, rng), key=len)
        if 2 * len(smallest) <= len(mine):
            is_valid[smallest] = True
            continue
        by_row.add(task)
        for items in _groups(mine, table.row, rng):
            if _fits(table, items, held, wanted):
                is_valid[items] = True
    return is_valid, by_row


def _wanted(table: Table, share: float | None) -> dict[int, int]:
    """How many examples of each task are to validate."""
    tasks, counts = np.unique(table.task[table.task != TEXT], return_counts=True)
    numbers = zip(tasks.tolist(), counts.tolist(), strict=True)
    return {
        task: max(1, _held(count, share, _ENOUGH_EXAMPLES))
        for task, count in numbers
        if share != 0 and count > 1
    }


def _held(count: int, share: float | None, unit: int) -> int:
    return choose_held(count, unit) if share is None else round(share * count)


def _groups(
    items: npt.NDArray[np.int64], keys: npt.NDArray[np.uint64], rng: np.random.Generator
) -> Iterator[npt.NDArray[np.int64]]:
    """The items of equal keys together, one group after the other in a drawn order."""
    _, inverse = np.unique(keys[items], return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    parts = np.split(items[order], np.flatnonzero(np.diff(inverse[order])) + 1)
    return (parts[index] for index in rng.permutation(len(parts)))


def _fits(table: Table, items: npt.NDArray[np.int64], held: dict[int, int], wanted: dict[int, int]) -> bool:
    """Count a group as held where none of its tasks would have more than is wanted."""
    tasks, counts = np.unique(table.task[items], return_counts=True)
    more = dict(zip(tasks.tolist(), counts.tolist(), strict=True))
    if any(held.get(task, 0) + count > wanted.get(task, 0) for task, count in more.items()):
        return False
    for task, count in more.items():
        held[task] += count
    return True


def seen_in_training(table: Table, is_valid: Flags) -> Flags:
    """Flag what validates although training has its equal: rows of two dialogues, say."""
    is_example = table.task != TEXT
    trained = np.unique(table.row[is_example & ~is_valid])
    seen: Flags = is_example & is_valid & np.isin(table.row, trained)
    return seen


def draw_texts(table: Table, share: float | None, seed: int) -> npt.NDArray[np.int64]:
    """Draw the tokens of texts that validate: whole documents, or the end of the only one that is left.

    Args:
        table: All items; examples are left alone.
        share: Of all tokens of texts, from 0 to below 1; None chooses.
        seed: Of the draw.

    Returns:
        For each item, how many of its last tokens validate: none, all or, where no whole document is as
        short as the share, those of the longest document's end.
    """
    held = np.zeros(len(table.task), np.int64)
    texts = np.flatnonzero(table.task == TEXT)
    wanted = _held(int(table.length[texts].sum()), share, _ENOUGH_TOKENS)
    if wanted < 1:
        return held
    for items in _groups(texts, table.group, np.random.default_rng(seed)):
        size = int(table.length[items].sum())
        if int(held.sum()) + size <= wanted:
            held[items] = table.length[items]
    if not held.any():
        longest = texts[table.length[texts].argmax()]
        copies = texts[table.group[texts] == table.group[longest]]
        held[copies] = wanted // len(copies)
    return held


def num_duplicates(table: Table) -> int:
    """How many items were there before; a second reading of a file does not count."""
    num_repeated = 0
    for reading in np.unique(table.reading):
        rows = table.row[table.reading == reading]
        num_repeated += len(rows) - len(np.unique(rows))
    return num_repeated

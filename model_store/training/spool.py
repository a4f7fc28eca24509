"""What was read, tokenised once and kept on disk, so that the block can be chosen, the validation data drawn
and the rows packed without reading anything again.

Per item only a few numbers stay in memory. Filled by `reading.py`, used up by `dataset.py`.
"""

import hashlib
import json
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model_store.training.examples import Example, Pair

TEXT = -1  # the task number of a document of plain text


@dataclass(frozen=True, slots=True)
class Table:
    """The numbers of all items, one of each for each item.

    Args:
        task: The number of its task, or `TEXT`.
        length: Tokens.
        group: Equal for items that belong on one side of the validation split.
        row: Equal for items that are equal.
        reading: How often the file was read before: a recipe's `repeat` makes no duplicates.
    """

    task: npt.NDArray[np.int32]
    length: npt.NDArray[np.int64]
    group: npt.NDArray[np.uint64]
    row: npt.NDArray[np.uint64]
    reading: npt.NDArray[np.int32]

    def take(self, items: npt.NDArray[np.int64]) -> "Table":
        """The numbers of some items."""
        return Table(
            self.task[items], self.length[items], self.group[items], self.row[items], self.reading[items]
        )


class Spool:
    """Items in the order in which they came.

    Args:
        folder: Made when missing; two files go there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._ids = (folder / "spool.ids").open("w+b")
        self._pairs = (folder / "spool.pairs").open("w+b")
        self._task, self._reading = array("i"), array("i")
        self._group, self._row = array("Q"), array("Q")
        self._id_ends, self._pair_ends, self._num_answer = array("q", [0]), array("q", [0]), array("q")

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *_: object) -> None:
        self._ids.close()
        self._pairs.close()

    def __len__(self) -> int:
        return len(self._task)

    def add_text(self, example: Example, text: str, reading: int) -> None:
        """Keep a document, every token of which counts in the loss."""
        key = digest("text", text)
        self._add(TEXT, example.ids, key, key, reading, 0, b"")

    def add_pair(self, task: int, pair: Pair, example: Example, group: int, reading: int) -> int:
        """Keep an example of a task, as long as it is; give its number.

        Args:
            task: The task's number.
            pair: What `example` was made from.
            example: Its tokens; the loss counts either all of them or those of the answer, at the end.
            group: As in `Table`.
            reading: As in `Table`.
        """
        key = digest(str(task), *(f"{k}={v}" for k, v in sorted(pair.fields.items())), pair.answer)
        kept = json.dumps([dict(pair.fields), pair.answer, pair.origin]).encode()
        prompt = next((n for n, is_target in enumerate(example.is_target) if is_target), 0)
        self._add(task, example.ids, group, key, reading, len(example.ids) - prompt, kept)
        return len(self) - 1

    def _add(
        self, task: int, ids: Sequence[int], group: int, row: int, reading: int, answer: int, pair: bytes
    ) -> None:
        self._ids.seek(0, os.SEEK_END)
        self._pairs.seek(0, os.SEEK_END)
        self._ids.write(np.array(ids, np.uint32).tobytes())
        self._pairs.write(pair)
        self._id_ends.append(self._id_ends[-1] + len(ids))
        self._pair_ends.append(self._pair_ends[-1] + len(pair))
        self._task.append(task)
        self._reading.append(reading)
        self._group.append(group)
        self._row.append(row)
        self._num_answer.append(answer)

    def table(self) -> Table:
        """The numbers of all items so far."""
        return Table(
            np.array(self._task, np.int32),
            np.diff(np.array(self._id_ends, np.int64)).astype(np.int64),
            np.array(self._group, np.uint64),
            np.array(self._row, np.uint64),
            np.array(self._reading, np.int32),
        )

    def example(self, item: int) -> Example:
        """The tokens of an item, and where the loss counts."""
        start, end = self._id_ends[item : item + 2]
        self._ids.seek(4 * start)
        ids = np.frombuffer(self._ids.read(4 * (end - start)), np.uint32).tolist()
        if self._task[item] == TEXT:
            return Example(ids, [True] * len(ids))
        answer = self._num_answer[item]
        return Example(ids, [False] * (len(ids) - answer) + [True] * answer)

    def pair(self, item: int) -> Pair:
        """What an item of a task was made from."""
        start, end = self._pair_ends[item : item + 2]
        self._pairs.seek(start)
        fields, answer, origin = json.loads(self._pairs.read(end - start))
        return Pair(fields, answer, origin)


def digest(*parts: str) -> int:
    """A number of 64 bits for texts, equal for equal ones."""
    hashed = hashlib.blake2b(digest_size=8)
    for part in parts:
        hashed.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return int.from_bytes(hashed.digest(), "little")

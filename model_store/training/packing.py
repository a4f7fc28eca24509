"""Packs examples into rows of one length on disk, and gives them back as a memory-mapped dataset.

`RowWriter` packs: texts end to end, task examples whole. Positions begin anew with each task example, and
from that the model knows where attention stops (transformers' `find_packed_sequence_indices`): an example in
a row of many is what it is alone. The positions of texts run on, so that one may see the one before.
`Rows` is what the Trainer reads. Memory stays bounded whatever the size of the data. What goes in is decided
in `recipe.py` and `dataset.py`.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from model_store.training.errors import InvalidOption
from model_store.training.examples import Example

_OPEN_ROWS = 24  # rows that wait for an example that fits
_ENOUGH = 24  # a row with fewer free places is closed
IGNORED = -100  # the label that the loss leaves out


@dataclass(frozen=True, slots=True)
class PackedInfo:
    """What a folder of packed rows holds; `info.json`, written last.

    Args:
        block: Tokens in a row.
        num_rows: Rows.
        num_tokens: Tokens in them, padding left out.
        num_targets: Tokens that the loss counts, first ones of examples among them.
        dtype: `uint16`, or `uint32` for a vocabulary above 65,536.
    """

    block: int
    num_rows: int
    num_tokens: int
    num_targets: int
    dtype: str


class RowWriter:
    """Writes rows to `folder` as they fill.

    Args:
        folder: Made when missing; `ids.bin`, `targets.bin`, `firsts.bin` and `info.json` go there.
        block: Tokens in a row.
        pad_id: Fills the end of a row; each one stands at position 0, alone, and never counts in the loss.
        vocab_size: Chooses the width of an id on disk.
    """

    def __init__(self, folder: Path, block: int, pad_id: int, vocab_size: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._block, self._pad = folder, block, pad_id
        self._dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
        self._ids = (folder / "ids.bin").open("wb")
        self._targets = (folder / "targets.bin").open("wb")
        self._firsts = (folder / "firsts.bin").open("wb")
        self._open: list[list[Example]] = []
        self._run = Example([], [])
        self._rows = self._tokens = self._num_targets = 0

    def add_text(self, example: Example) -> None:
        """Append to the running text, which is cut into rows wherever it has to be."""
        self._run.ids.extend(example.ids)
        self._run.is_target.extend(example.is_target)
        while len(self._run.ids) >= self._block:
            head = slice(0, self._block)
            self._write([Example(self._run.ids[head], self._run.is_target[head])])
            del self._run.ids[head], self._run.is_target[head]

    def add_whole(self, example: Example) -> bool:
        """Put an example into a row where it fits whole; False when it is longer than a row and was left
        out."""
        size = len(example.ids)
        if size > self._block:
            return False
        for index, row in enumerate(self._open):
            if _size(row) + size <= self._block:
                row.append(example)
                if self._block - _size(row) < _ENOUGH:
                    self._write(self._open.pop(index))
                return True
        self._open.append([example])
        if len(self._open) > _OPEN_ROWS:
            fullest = max(range(len(self._open)), key=lambda index: _size(self._open[index]))
            self._write(self._open.pop(fullest))
        return True

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files; without `finish` before it, what was written is no dataset."""
        self._ids.close()
        self._targets.close()
        self._firsts.close()

    def finish(self) -> PackedInfo:
        """Write what is open, and `info.json`. The last, unfinished piece of running text is padded."""
        for row in [*self._open, *([[self._run]] if self._run.ids else [])]:
            self._write(row)
        self._open.clear()
        self.__exit__()
        info = PackedInfo(self._block, self._rows, self._tokens, self._num_targets, self._dtype.name)
        (self._folder / "info.json").write_text(json.dumps(asdict(info)), encoding="utf-8")
        return info

    def _write(self, row: list[Example]) -> None:
        padding = self._block - _size(row)
        ids = [token for example in row for token in example.ids]
        is_target = [flag for example in row for flag in example.is_target]
        is_first = [index == 0 for example in row for index in range(len(example.ids))]
        self._ids.write(np.array(ids + [self._pad] * padding, self._dtype).tobytes())
        self._targets.write(np.array(is_target + [False] * padding, np.bool_).tobytes())
        self._firsts.write(np.array(is_first + [True] * padding, np.bool_).tobytes())
        self._rows += 1
        self._tokens += len(ids)
        self._num_targets += sum(is_target)


def _size(row: list[Example]) -> int:
    return sum(len(example.ids) for example in row)


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The rows of a folder, memory-mapped.

    Args:
        folder: What a `RowWriter` filled.
        num_positions: The model's positions; a row may be moved to any start that fits into them.
        shifted_share: The share of rows, from 0 to 1, whose examples all begin at a drawn position instead of
            0, so that positions beyond the block are trained too. Which rows and where depends on the row's
            number only.
        prompt_weight: How much a token that is no target counts beside one that is, from 0 (not at all) to 1.
    """

    def __init__(
        self, folder: Path, num_positions: int = 0, shifted_share: float = 0.0, prompt_weight: float = 0.0
    ) -> None:
        self._info = PackedInfo(**json.loads((folder / "info.json").read_text(encoding="utf-8")))
        shape = (self._info.num_rows, self._info.block)
        self._ids: npt.NDArray[Any] = _mapped(folder / "ids.bin", self._info.dtype, shape)
        self._targets: npt.NDArray[np.bool_] = _mapped(folder / "targets.bin", "bool", shape)
        self._firsts: npt.NDArray[np.bool_] = _mapped(folder / "firsts.bin", "bool", shape)
        self._room = max(0, num_positions - self._info.block) if num_positions else 0
        self._share, self._prompt_weight = shifted_share, prompt_weight

    @property
    def info(self) -> PackedInfo:
        """What the folder holds."""
        return self._info

    def __len__(self) -> int:
        return self._info.num_rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(self._ids[index].astype(np.int64))
        places = np.arange(self._info.block)
        positions = torch.from_numpy(places - np.maximum.accumulate(places * self._firsts[index]))
        # what stands at 0 follows nothing: an example's first token, or padding
        is_target = torch.from_numpy(self._targets[index].copy()) & (positions > 0)
        row = {"input_ids": ids, "position_ids": positions + self._start(index)}
        if not self._prompt_weight:
            return {**row, "labels": torch.where(is_target, ids, IGNORED)}
        return {
            **row,
            "labels": torch.where(positions > 0, ids, IGNORED),
            "weights": torch.where(is_target, 1.0, self._prompt_weight) * (positions > 0),
        }

    def prompt(self, index: int, num_text: int) -> list[int]:
        """Give what stands before the answer of a row's first example, or the first tokens of a text.

        Args:
            index: The row.
            num_text: Tokens of a text, or of an example that is learned as a whole.
        """
        is_target = self._targets[index]
        end = int(is_target.argmax()) if is_target.any() else 0
        ids: list[int] = self._ids[index][: end or min(num_text, self._info.block // 2)].tolist()
        return ids

    def _start(self, index: int) -> int:
        if not self._room or not self._share:
            return 0
        draw = np.random.default_rng(index)
        return int(draw.integers(1, self._room + 1)) if draw.random() < self._share else 0


def require_rows(info: PackedInfo, what: str, minimum: int = 1) -> None:
    """Refuse data that does not fill a row.

    Raises:
        InvalidOption: `what` has fewer than `minimum` rows, or its texts together are shorter than a block.
    """
    if info.num_rows < minimum or (info.num_tokens < info.block and info.num_tokens == info.num_targets):
        raise InvalidOption(
            what,
            f"the text is shorter than a block ({info.num_tokens} of {info.block} tokens); lower --block",
        )


def _mapped(path: Path, dtype: str, shape: tuple[int, int]) -> npt.NDArray[Any]:
    if shape[0] == 0:
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype=dtype, mode="r", shape=shape)

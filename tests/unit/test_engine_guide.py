"""The engine's guide for newcomers keeps its word: line counts, and an example for the real classes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny import LetterPieces, ask, separate

import service.engine
from service.engine.block_pool import BlockPool
from service.engine.engine import Engine
from service.engine.model.attention import ForwardBatch
from service.engine.model.runner import ModelRunner
from service.engine.scheduler import Scheduler
from service.engine.sequence import Sequence
from service.engine.step_cost import Budget, StepCost

GUIDE = service.engine.__doc__ or ""
FOLDER = Path(service.engine.__file__).parent
READING = re.findall(r"^ +(\d+) +(\d+)  (\w+) ", GUIDE, re.MULTILINE)
EXAMPLE = re.findall(r"^ +(\d)  ([\d ]+?)  +([\d ]+?)  +([\d ]+?)  +(\d)  +(\d)$", GUIDE, re.MULTILINE)


def lines_of(name: str) -> int:
    """Lines of one of the engine's files."""
    return len((FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize(("lines", "name"), [(int(lines), name) for _, lines, name in READING])
def test_a_file_is_as_long_as_the_guide_says(lines: int, name: str) -> None:
    assert lines_of(name) == pytest.approx(lines, rel=0.1)


def test_the_reading_takes_an_hour() -> None:
    assert sum(int(minutes) for minutes, _, _ in READING) == 60
    assert sum(lines_of(name) for _, _, name in READING) + len(GUIDE.splitlines()) <= 1600


def test_every_file_of_the_guide_is_there() -> None:
    named = re.findall(r"`([a-z_.]+)`", GUIDE)
    missing = [
        name for name in named if name.islower() and not list(FOLDER.glob(name.replace(".", "/") + "*"))
    ]
    assert [name for name in missing if name not in ("computed", "registered", *SEQUENCE_FIELDS)] == []


SEQUENCE_FIELDS = ("num_computed_tokens", "num_registered_blocks")


class Example:
    """An engine of the example's size; its forward pass notes what it is given."""

    def __init__(self) -> None:
        self.pool = BlockPool(num_blocks=8, block_size=4)
        self.pool.allocate(1)  # block 0
        self.seen: list[tuple[list[int], list[int]]] = []  # positions and slots, by step
        runner = ModelRunner(self.forward, block_size=4, end_ids=[0])
        scheduler = Scheduler(self.pool, Budget(max_rows=16, max_running=4), StepCost())
        self.engine = Engine(scheduler, runner, LetterPieces(13))

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """A model that always says 7."""
        self.seen.append((batch.positions.tolist(), batch.slots.tolist()))
        return torch.nn.functional.one_hot(torch.tensor([7] * len(batch.logit_rows)), 13).float()

    def add(self) -> Sequence:
        """A prompt of five tokens."""
        [sequence] = separate([ask([1, 2, 3, 4, 5], max_new_tokens=9, ignore_eos=True)])
        self.engine.add(sequence)
        return sequence


def numbers(text: str) -> list[int]:
    """The numbers of a cell."""
    return [int(word) for word in text.split()]


def test_the_example_is_carried_out_as_it_stands_there() -> None:
    example = Example()
    sequence = example.add()
    assert len(EXAMPLE) == 5
    for _, positions, slots, blocks, computed, registered in EXAMPLE:
        example.engine.step()
        assert example.seen[-1] == (numbers(positions), numbers(slots))
        assert sequence.block_table == numbers(blocks)
        assert [sequence.num_computed_tokens, sequence.num_registered_blocks] == numbers(
            f"{computed} {registered}"
        )


def test_another_prompt_with_the_same_tokens_computes_its_last_one_alone() -> None:
    example = Example()
    example.add()
    for _ in EXAMPLE:
        example.engine.step()
    other = example.add()
    example.engine.step()
    positions, _ = example.seen[-1]
    assert (other.block_table[0], other.num_cached_tokens, positions[1:]) == (1, 4, [4])

"""What a small model knows of the sequences that a large one decodes: their tokens, in blocks of its own.

Each sequence that is drafted for has a twin here, the same request whose keys and values are the small
model's. It is brought level before it guesses, and what it guessed wrong is forgotten then. Whether guessing
pays is `draft_model`'s business.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from service.engine.batch import Batch, Scheduled, StepOutput
from service.engine.block_pool import BlockPool
from service.engine.sequence import Job, SamplingParams, Sequence, SequenceRequest, Status
from service.engine.step_cost import StepCost

NEAR = 16  # tokens that are computed together with a draft; more are caught up with before


@dataclass(slots=True, eq=False)
class Pair:
    """A sequence of the large model and its twin, as the small model knows it."""

    sequence: Sequence
    twin: Sequence  # the same request; its own blocks, and drafts behind the tokens
    acceptance: float
    num_known: int = 0  # tokens that the sequence had when its twin was last level with it
    has_failed: bool = False


class Twins:
    """The small model's side of all sequences that are drafted for.

    Args:
        execute: the small model's runner; draws what the sequences' requests say.
        pool: blocks of its cache.
        max_rows: rows of a pass at most.
        on_fault: told of every exception of a pass; the sequences go on without drafts.
    """

    def __init__(
        self,
        execute: Callable[[Batch], list[StepOutput]],
        pool: BlockPool,
        max_rows: int,
        on_fault: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self.cost = StepCost()  # of the small model's passes
        self._execute, self._pool, self._max_rows, self._on_fault = execute, pool, max_rows, on_fault
        self._all: dict[Sequence, Pair] = {}

    def get(self, sequence: Sequence) -> Pair | None:
        """A sequence with its twin, if it has one."""
        return self._all.get(sequence)

    def level(self, sequence: Sequence, acceptance: float) -> Pair | None:
        """A sequence with its twin, level with its tokens: what the twin guessed wrong is forgotten; None
        where blocks are too few.
        """
        pair = self._all.get(sequence)
        if pair is None:
            pair = self._all[sequence] = Pair(sequence, _twin_of(sequence), acceptance)
        twin, ids = pair.twin, sequence.token_ids
        at = pair.num_known
        while at < min(len(twin.token_ids), len(ids)) and twin.token_ids[at] == ids[at]:
            at += 1
        del twin.token_ids[at:]
        twin.token_ids += ids[at:]
        twin.num_computed_tokens = min(twin.num_computed_tokens, at, len(ids) - 1)
        pair.num_known = len(ids)
        return pair if self._reserve(twin, 1) else None

    def catch_up(
        self, pairs: list[Pair], limit_s: float, is_worth: Callable[[Pair, float], bool]
    ) -> list[Pair]:
        """Compute what the small model lacks of prompts.

        Args:
            pairs: those that would guess.
            limit_s: seconds of it in this step, about; at least some rows are computed.
            is_worth: whether a twin is to be brought level in so many seconds.

        Returns:
            Those that are near enough to guess now.
        """
        fitting = (n for n in range(NEAR, self._max_rows + 1, NEAR) if self.cost.predict(n) <= limit_s)
        room = max(fitting, default=NEAR)
        for pair in pairs:
            twin = pair.twin
            missing = twin.num_uncomputed_tokens - 1
            if room and missing >= NEAR and is_worth(pair, self.cost.predict(missing)):
                count = min(missing, room)
                room -= count
                self._run([Scheduled(twin, count)], [pair])
        return [pair for pair in pairs if pair.twin.num_uncomputed_tokens <= NEAR and not pair.has_failed]

    def guess(self, pairs: list[Pair], length: int) -> dict[Sequence, tuple[int, ...]]:
        """Draw so many tokens from the small model, for all twins at once, up to an end of text."""
        going = [pair for pair in pairs if self._reserve(pair.twin, length)]
        for _ in range(length):
            going = [pair for pair in going if room_of(pair.twin) >= 1 and not pair.has_failed]
            if going:
                self._run([Scheduled(pair.twin, pair.twin.num_uncomputed_tokens) for pair in going], going)
            going = [pair for pair in going if pair.twin.token_ids[-1] not in pair.twin.end_ids]
        able = [pair for pair in pairs if not pair.has_failed]
        drafts = {pair.sequence: tuple(pair.twin.token_ids[pair.num_known :]) for pair in able}
        return {sequence: ids for sequence, ids in drafts.items() if ids}

    def _run(self, items: list[Scheduled], pairs: list[Pair]) -> None:
        """One pass of the small model; one that fails ends its twins' drafts, and nothing else."""
        batch, started = Batch(tuple(items)), time.monotonic()
        try:
            outputs = self._execute(batch)
        except Exception as error:
            for pair in pairs:
                pair.has_failed = True
                self._release(pair.twin)
            self._on_fault(error)
            return
        drawn_s = sum(output.draw_s for output in outputs)
        self.cost.note(batch.num_rows, time.monotonic() - started - drawn_s)
        for item, output in zip(items, outputs, strict=True):
            item.sequence.num_computed_tokens += item.num_tokens
            item.sequence.token_ids += output.token_ids

    def measure(self, length: int, copies: int) -> None:
        """Learn what a pass over so many prompts of so many tokens takes; at the start, before any work."""
        request = SequenceRequest((0,) * length, SamplingParams(max_new_tokens=1, temperature=0.0))
        twins = [Sequence(Job(), index, request, 0.0) for index in range(copies)]
        twins = [twin for twin in twins if self._reserve(twin, 0)]
        if twins:
            self._run([Scheduled(twin, length) for twin in twins], [])
        for twin in twins:
            self._release(twin)

    def _reserve(self, twin: Sequence, num_tokens: int) -> bool:
        """Take blocks for a twin's tokens and some more; false where there are too few."""
        missing = self._pool.blocks_for(len(twin.token_ids) + num_tokens) - len(twin.block_table)
        blocks = self._pool.allocate(max(missing, 0))
        twin.block_table += blocks or []
        return blocks is not None

    def _release(self, twin: Sequence) -> None:
        self._pool.release(twin.block_table)
        twin.block_table, twin.num_computed_tokens = [], 0

    def forget_stopped(self) -> None:
        """Give back what ended or preempted sequences hold here."""
        stopped = [s for s in self._all if s.status is not Status.RUNNING]
        for sequence in stopped:
            self._release(self._all.pop(sequence).twin)

    def check(self) -> None:
        """Verify the block accounts; for tests.

        Raises:
            AssertionError: a bug of ours.
        """
        self._pool.check(pair.twin.block_table for pair in self._all.values())


def _twin_of(sequence: Sequence) -> Sequence:
    """A sequence to which the small model says what it would; nobody wants its log probabilities."""
    params = replace(sequence.params, logprobs=None, score_from=None)
    request = replace(sequence.request, params=params)
    twin = Sequence(sequence.job, sequence.index, request, sequence.arrived_at)
    twin.end_ids = sequence.end_ids
    return twin


def room_of(sequence: Sequence) -> int:
    """How many drafts could be accepted: the token behind the last is the large model's own."""
    return sequence.params.max_new_tokens - sequence.num_output_tokens - 1

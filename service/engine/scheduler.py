"""Waiting and running sequences -> the next batch, under a token budget. Owns no tensor.

Every step first gives each running sequence its next token (and drafts to verify), then spends what is left
of the budget on prefill, running sequences before waiting ones. A sequence needs no phase of its own for
that: it always computes its next uncomputed tokens, one while decoding, many while prefilling.

When blocks run out the youngest running sequence gives all of its blocks back and waits at the front of the
queue; what it had is recomputed, and the counter-based draws make it continue with the same text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from service.engine.batch import Batch, Scheduled
from service.engine.block_pool import BlockPool
from service.engine.fair_queue import FairQueue
from service.engine.prefix_cache import PrefixCache
from service.engine.sequence import Job, Sequence, Status
from service.engine.step_cost import StepCost


class Drafter(Protocol):
    """What proposes drafts and learns what became of them; see `Speculator`."""

    num_drafted: int
    num_accepted: int

    def draft(self, decoding: list[Sequence]) -> dict[Sequence, tuple[int, ...]]:
        """Choose drafts for some of the decoding sequences."""
        ...

    def note(self, sequence: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Learn from a verified draft."""
        ...


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of one step."""

    max_rows: int  # rows of a forward pass
    max_running: int  # sequences in flight
    max_running_share: int  # of one job, and of one tenant: a long summary leaves room for others


class Scheduler:
    """Chooses what runs; see the module's docstring.

    Args:
        pool: the KV blocks.
        budget: limits of one step.
        cost: knows what steps take.
        speculator: proposes drafts, if any.
    """

    def __init__(
        self, pool: BlockPool, budget: Budget, cost: StepCost, speculator: Drafter | None = None
    ) -> None:
        self.pool = pool
        self.budget = budget
        self.cost = cost
        self.speculator = speculator
        self.prefix_cache = PrefixCache(pool)
        self.waiting = FairQueue()
        self.running: list[Sequence] = []  # oldest first
        self.max_rows = budget.max_rows  # of the next step; less for a while after memory ran out
        self.num_preemptions = 0
        self._num_running_of: Counter[str] = Counter()  # by tenant

    # ---- coming and going -------------------------------------------------------------------------------

    def add(self, sequence: Sequence) -> None:
        """Put a sequence into the queue."""
        self.waiting.push(sequence)

    def finish(self, sequence: Sequence) -> None:
        """Forget a sequence, waiting or running, and give its blocks back. Finished ones are left alone."""
        if sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        elif sequence.status is Status.RUNNING:
            self._stop_running(sequence)
        sequence.status = Status.FINISHED

    def _stop_running(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._count_running(sequence.job, -1)
        self.prefix_cache.forget(sequence)

    def _count_running(self, job: Job, change: int) -> None:
        job.num_running += change
        self._num_running_of[job.tenant] += change
        if not self._num_running_of[job.tenant]:
            del self._num_running_of[job.tenant]

    def preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's blocks; it waits at the front of the queue and recomputes."""
        self._stop_running(sequence)
        sequence.status = Status.WAITING
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.push_front(sequence)

    def shrink(self, batch: Batch) -> None:
        """Memory ran out: the younger half of a batch gives way, and steps stay at half its rows, growing
        by one row a step.
        """
        self.max_rows = max(batch.num_rows // 2, 1)
        in_batch = {item.sequence for item in batch.items}
        youngest_first = [s for s in reversed(self.running) if s in in_batch]
        for sequence in youngest_first[: len(youngest_first) // 2]:
            self.preempt(sequence)

    @property
    def has_work(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self.running) or len(self.waiting) > 0

    # ---- the next batch ---------------------------------------------------------------------------------

    def schedule(self, now: float) -> Batch:
        """Choose the next step's work and reserve its blocks.

        Args:
            now: the engine's clock in seconds, noted as the start of newly admitted sequences.

        Returns:
            Decodes first, then prefills; empty only when nothing waits or runs.
        """
        items = self._schedule_decodes()
        if len(items) < len(self.running) or self.waiting:
            rows = sum(item.num_rows for item in items)
            left = min(self.max_rows - rows, self.cost.prefill_rows(rows, self.budget.max_rows))
            items += self._schedule_prefills(left)
            left -= sum(item.num_rows for item in items) - rows
            items += self._admit(left, now)
        return Batch(tuple(items))

    def _schedule_decodes(self) -> list[Scheduled]:
        decoding = [sequence for sequence in self.running if not sequence.is_prefilling]
        drafts = self.speculator.draft(decoding) if self.speculator else {}
        for sequence in decoding:
            if sequence.status is Status.RUNNING:
                self._reserve(sequence, 1)
        kept = [sequence for sequence in decoding if sequence.status is Status.RUNNING]
        left = self.max_rows - len(kept)
        items = []
        for sequence in kept:
            draft = self._with_room(sequence, drafts.get(sequence, ())[: max(left, 0)])
            left -= len(draft)
            items.append(Scheduled(sequence, 1, draft))
        return items

    def _schedule_prefills(self, rows: int) -> list[Scheduled]:
        items = []
        for sequence in [s for s in self.running if s.is_prefilling]:
            count = min(rows, sequence.num_uncomputed_tokens)
            if count > 0 and sequence.status is Status.RUNNING:
                items.append(Scheduled(sequence, count))  # blocks were reserved at admission
                rows -= count
        return items

    def _reserve(self, sequence: Sequence, num_tokens: int) -> None:
        """Make room for tokens to come, preempting the youngest if needed, which may be this sequence."""
        needed = self._blocks_for(sequence.num_computed_tokens + num_tokens)
        missing = max(needed - len(sequence.block_table), 0)
        while missing > self.pool.num_free:
            youngest = self.running[-1]
            self.preempt(youngest)
            if youngest is sequence:
                return
        sequence.block_table += self.pool.allocate(missing) or []

    def _with_room(self, sequence: Sequence, draft: tuple[int, ...]) -> tuple[int, ...]:
        """Reserve places for drafts from blocks that are left once everybody has one for its next token:
        guesses preempt nobody.
        """
        if not draft:
            return ()
        missing = self._blocks_for(sequence.num_computed_tokens + 1 + len(draft)) - len(sequence.block_table)
        blocks = self.pool.allocate(max(missing, 0))
        if blocks is None:
            return ()
        sequence.block_table += blocks
        return draft

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.pool.block_size)

    # ---- admission --------------------------------------------------------------------------------------

    def _admit(self, rows: int, now: float) -> list[Scheduled]:
        """Start waiting sequences in the order of their turns; one that waits for a block which another is
        just computing is passed over.
        """
        items: list[Scheduled] = []
        while rows > 0 and len(self.running) < self.budget.max_running:
            may_run = (s for s in self.waiting.candidates() if self._may_run_one_more(s.job))
            matches = ((s, self.prefix_cache.match(s)) for s in may_run)
            sequence, cached = next((found for found in matches if found[1] is not None), (None, None))
            if sequence is None or cached is None or not self._start(sequence, cached, now):
                break
            count = min(rows, sequence.num_uncomputed_tokens)
            items.append(Scheduled(sequence, count))
            rows -= count
        return items

    def _may_run_one_more(self, job: Job) -> bool:
        limit = self.budget.max_running_share
        return job.num_running < limit and not (job.tenant and self._num_running_of[job.tenant] >= limit)

    def _start(self, sequence: Sequence, cached: list[int], now: float) -> bool:
        """Move a sequence from waiting to running with blocks for all of its tokens; false if there are
        too few.
        """
        missing = self._blocks_for(len(sequence.token_ids)) - len(cached)
        if missing > self.pool.num_free - self.pool.count_unreferenced(cached):
            return False
        self.prefix_cache.claim(sequence, cached)
        sequence.block_table += self.pool.allocate(missing) or []
        self.waiting.take(sequence)
        sequence.status = Status.RUNNING
        self._count_running(sequence.job, 1)
        self.running.append(sequence)
        if sequence.started_at is None:
            sequence.started_at = now
        return True

    # ---- after the step ---------------------------------------------------------------------------------

    def grow(self) -> None:
        """A step went well: the next may have a row more, up to the budget."""
        self.max_rows = min(self.max_rows + 1, self.budget.max_rows)

    def advance(self, item: Scheduled, new_ids: Iterable[int]) -> None:
        """Note that a step computed an item's tokens and verified `new_ids`, the last of which is not
        computed yet.
        """
        sequence = item.sequence
        ids = tuple(new_ids)
        sequence.token_ids += ids
        sequence.num_computed_tokens += item.num_tokens + max(len(ids) - 1, 0)
        self.prefix_cache.publish(sequence)

    def check(self) -> None:
        """Verify the block accounts against all sequences; for tests and idle moments.

        Raises:
            AssertionError: a bug of ours.
        """
        assert all(not sequence.block_table for sequence in self.waiting), "a waiting sequence holds blocks"
        self.pool.check(sequence.block_table for sequence in self.running)
        self.prefix_cache.check(self.running)

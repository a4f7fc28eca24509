"""Waiting and running sequences -> the next batch, under a token budget. Owns no tensor.

Every step first gives each running sequence its next token (and drafts to verify), then spends what is left
of the budget on prefill: half of it first on jobs of which nothing runs yet, then running sequences before
waiting ones. A sequence needs no phase of its own for that: it always computes its next uncomputed tokens.

A step has a budget of rows and one of seconds for what comes behind the forward pass. Sequences that want
more of these seconds than there are take turns, by time: see `time_share`. A prompt whose first draw does not
fit is computed up to its last token.

When blocks run out the youngest running sequence gives all of its blocks back and waits at the front of the
queue; what it had is recomputed, and the counter-based draws make it continue with the same text.

The beams of a search are sequences like others, behind their leader, with whom they come and go. One that is
to write into a block that others hold, too, gets a copy first. `beams` says which there are.
"""

from __future__ import annotations

from collections.abc import Iterable

from service.engine.batch import Batch, Scheduled
from service.engine.block_pool import BlockPool
from service.engine.fair_queue import FairQueue
from service.engine.prefix_cache import PrefixCache
from service.engine.quota import Quota
from service.engine.sequence import Sequence, Status
from service.engine.speculator import Drafter, is_undrawn
from service.engine.step_cost import Budget, Room, StepCost
from service.engine.time_share import TimeShare


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
        self.time_share = TimeShare(cost, budget.max_rows)
        self.waiting: FairQueue[Sequence] = FairQueue()
        self.running: list[Sequence] = []  # oldest first
        self.started: list[Sequence] = []  # those that run for the first time since the last `schedule`
        self.max_rows = budget.max_rows  # of the next step; less for a while after memory ran out
        self.num_preemptions = 0
        # One job, as one tenant, runs at most its share at a time: a long summary leaves room for others.
        self.places = Quota(budget.max_running)

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
        for beam in sequence.followers:
            self.leave(beam)
        self.running.remove(sequence)
        self.places.give(sequence.job.tenant, sequence.params.num_beams)
        sequence.job.num_running -= sequence.params.num_beams
        if sequence.job.num_running == 0:
            self.time_share.leave(sequence.job)
        self.prefix_cache.forget(sequence)

    def leave(self, beam: Sequence) -> None:
        """Let a beam run no more; one that did not is left alone."""
        if beam.status is Status.RUNNING:
            self.running.remove(beam)
            self.prefix_cache.forget(beam)
            beam.status = Status.WAITING

    def preempt(self, sequence: Sequence) -> None:
        """Take a running sequence's blocks; it waits at the front of the queue and recomputes. A beam goes
        with its leader.
        """
        sequence = sequence.leader or sequence
        if sequence.status is not Status.RUNNING:
            return
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
        for item in batch.items:
            if item.copied is not None:  # nobody knows whether it was
                self.preempt(item.sequence)
        youngest_first = list(dict.fromkeys(s.leader or s for s in reversed(self.running) if s in in_batch))
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
        self.started.clear()
        # a beam without uncomputed tokens waits for the others of its search
        decoding = [sequence for sequence in self.running if sequence.num_uncomputed_tokens == 1]
        room = Room(self.max_rows, self.cost.drawing_s(len(decoding), self.budget.max_rows))
        chosen = self.time_share.choose(decoding, room)[: self.max_rows] if decoding else []
        items = self._schedule_decodes(chosen, room) if chosen else []
        if len(items) < len(self.running) or self.waiting:
            self._limit_prefill(items, room)
            prefilling = [sequence for sequence in self.running if sequence.is_prefilling]
            if prefilling and self.waiting:  # who begins need not wait until another's long prompt is read
                kept = room.rows - room.rows // 2
                room.rows -= kept
                items += self._admit(room, now, newcomers_only=True)
                room.rows += kept
                self._limit_prefill(items, room)
            items += [item for sequence in prefilling for item in self._prefill(sequence, room)]
            items += self._admit(room, now)
        return Batch(tuple(items))

    def _limit_prefill(self, items: list[Scheduled], room: Room) -> None:
        """Keep the prefill short that rides along with those of these items that draw."""
        rows, draw_s = sum(item.num_rows for item in items if item.samples), room.spent_s + room.owed_s
        room.rows = min(room.rows, self.cost.prefill_rows(rows, draw_s, self.budget.max_rows))

    def _schedule_decodes(self, decoding: list[Sequence], room: Room) -> list[Scheduled]:
        drafts = self.speculator.draft(decoding) if self.speculator else {}
        block_size = self.pool.block_size
        copied: dict[Sequence, tuple[int, int] | None] = {}
        for sequence in decoding:
            has_room = sequence.num_computed_tokens < len(sequence.block_table) * block_size
            is_beam = sequence.leader or sequence.followers  # one that may share its last block
            if (is_beam or not has_room) and sequence.status is Status.RUNNING:
                copied[sequence] = self.reserve(sequence, 1)
        kept = [sequence for sequence in decoding if sequence.status is Status.RUNNING]
        room.rows -= len(kept)
        items = []
        for sequence in kept:
            draft = drafts.get(sequence, ())[: max(room.rows, 0)]
            if draft:
                if not is_undrawn(sequence, draft):
                    draft = draft[: room.count(len(draft), self.cost.draw_s(sequence))]
                blocks = self.pool.allocate(self._missing(sequence, 1 + len(draft)))
                draft = () if blocks is None else draft  # guesses preempt nobody
                sequence.block_table += blocks or []
                room.rows -= len(draft)
            items.append(Scheduled(sequence, 1, draft, is_undrawn(sequence, draft), copied.get(sequence)))
        return items

    def _prefill(self, sequence: Sequence, room: Room) -> list[Scheduled]:
        """The next tokens of a prompt, as many as there is room for; it has the blocks for all of them."""
        count = min(room.rows, sequence.num_uncomputed_tokens)
        if sequence.next_scored is not None:
            num_plain = max(sequence.next_scored - 1 - sequence.num_computed_tokens, 0)
            num_scored = room.count_scored(max(count - num_plain, 0), self.cost.score_s())
            count = min(count, num_plain + num_scored)
        if count == sequence.num_uncomputed_tokens and not room.admits(self.cost.draw_s(sequence)):
            count -= 1
        room.rows -= max(count, 0)
        return [Scheduled(sequence, count)] if count > 0 else []

    def reserve(self, sequence: Sequence, num_tokens: int) -> tuple[int, int] | None:
        """Make room for tokens to come, preempting the youngest if needed, which may be this sequence.

        Returns:
            A block of other beams, too, and the one that replaces it, into which it must be copied first.
        """
        table, first = sequence.block_table, sequence.num_computed_tokens // self.pool.block_size
        shared = [block for block in table[first : first + 1] if self.pool.is_shared(block)]
        missing = self._missing(sequence, num_tokens) + len(shared)
        while missing > self.pool.num_free:
            self.preempt(self.running[-1])
            if sequence.status is not Status.RUNNING:
                return None
        blocks = self.pool.allocate(missing) or []
        if shared:
            self.pool.release(shared)
            table[first] = blocks.pop()
        table += blocks
        return (shared[0], table[first]) if shared else None

    def _missing(self, sequence: Sequence, num_tokens: int) -> int:
        """How many blocks more so many tokens to come take."""
        needed = self.pool.blocks_for(sequence.num_computed_tokens + num_tokens)
        return max(needed - len(sequence.block_table), 0)

    # ---- admission --------------------------------------------------------------------------------------

    def _admit(self, room: Room, now: float, newcomers_only: bool = False) -> list[Scheduled]:
        """Start waiting sequences in the order of their turns, or those of jobs of which none runs; one that
        waits for a block which another is just computing is passed over, and so is one to be scored while
        there is no time left for that: it would hold blocks and a place that others could use.
        """
        items: list[Scheduled] = []
        while room.rows > 0 and (startable := self._next_startable(room, newcomers_only)):
            if not self._start(*startable, now):
                break
            items += self._prefill(startable[0], room)
        return items

    def _next_startable(self, room: Room, newcomers_only: bool) -> tuple[Sequence, list[int]] | None:
        """The first with places, and its cached blocks; nobody takes what a search waits for."""
        full: set[str] = set()  # tenants
        for sequence in self.waiting.candidates():
            job, width = sequence.job, sequence.params.num_beams
            if newcomers_only and job.num_running:
                continue
            if self.places.num_held + width > self.places.limit:
                return None
            if self.places.excess(job.tenant, width) > 0:
                full.add(job.tenant)
            if job.tenant in full or job.num_running + width > self.places.share:
                continue
            if sequence.next_scored is not None and not room.scores(self.cost.score_s()):
                continue
            cached = self.prefix_cache.match(sequence)
            if cached is not None:
                return sequence, cached
        return None

    def _start(self, sequence: Sequence, cached: list[int], now: float) -> bool:
        """Let a waiting sequence run, with blocks for all of its tokens; false if there are too few."""
        wanted = missing = self.pool.blocks_for(len(sequence.token_ids)) - len(cached)
        for beam in sequence.followers:  # each shares the full blocks of the prompt, at least
            num_shared = sequence.num_prompt_tokens // self.pool.block_size
            wanted += max(self.pool.blocks_for(len(beam.token_ids)) - num_shared, 1)
        if wanted > self.pool.num_free - self.pool.count_unreferenced(cached):
            return False
        self.prefix_cache.claim(sequence, cached)
        sequence.block_table += self.pool.allocate(missing) or []
        self.waiting.take(sequence)
        sequence.status = Status.RUNNING
        self.places.take(sequence.job.tenant, sequence.params.num_beams)
        sequence.job.num_running += sequence.params.num_beams
        self.time_share.enter(sequence.job)
        self.running.append(sequence)
        if sequence.started_at is None:
            sequence.started_at = now
            self.started.append(sequence)
        return True

    # ---- after the step ---------------------------------------------------------------------------------

    def grow(self) -> None:
        """A step went well: the next may have a row more, up to the budget."""
        self.max_rows = min(self.max_rows + 1, self.budget.max_rows)

    def advance(self, item: Scheduled, new_ids: Iterable[int]) -> None:
        """Note a step: an item's tokens are computed, and `new_ids` verified, of which the last is not."""
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

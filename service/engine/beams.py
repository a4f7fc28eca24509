"""The sequences of a beam search: ordinary ones, in whatever batch, which a step leaves without a next token.

The sequence that was asked for is their leader and computes the prompt; the others follow it. When all beams
of a search have been computed, `BeamSearch` chooses how they go on, and each sequence takes over the text of
a beam with its blocks, by reference: what beams have in common is in the cache once. The scheduler copies the
last block, where it is not full, as soon as one of several is about to write into it.

A search is preempted as a whole and keeps its texts. Its leader is recomputed first; the others then share
what they have in common with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from service.engine.batch import Batch
from service.engine.beam_search import BeamSearch, Candidates
from service.engine.observer import Reporter
from service.engine.scheduler import Scheduler
from service.engine.sequence import Sequence, SequenceOutput, Status


class Beams:
    """Keeps all searches going.

    Args:
        scheduler: runs their sequences.
        reporter: is told of their tokens.
    """

    def __init__(self, scheduler: Scheduler, reporter: Reporter) -> None:
        self._scheduler, self._reporter = scheduler, reporter
        self._pool = scheduler.pool
        self._searches: dict[Sequence, BeamSearch] = {}  # by leader
        self._candidates: dict[Sequence, Candidates] = {}  # of those that were computed

    def add(self, leader: Sequence) -> None:
        """Begin a search."""
        request = leader.request
        self._searches[leader] = BeamSearch(leader.params, leader.end_ids, leader.detokenizer)
        unscored = replace(request, params=replace(request.params, score_from=None))
        leader.followers = [
            Sequence(leader.job, leader.index, unscored, leader.arrived_at, leader=leader)
            for _ in range(request.params.num_beams - 1)
        ]

    def forget(self, leader: Sequence) -> None:
        """A sequence ended: so does its search, if it has one."""
        if self._searches.pop(leader, None) is not None:
            for sequence in (leader, *leader.followers):
                self._candidates.pop(sequence, None)
            leader.followers = []

    def note(self, sequence: Sequence, candidates: Candidates) -> None:
        """A sequence was computed up to its last token."""
        self._candidates[sequence] = candidates

    def of(self, batch: Batch) -> Iterator[tuple[Sequence, BeamSearch]]:
        """The searches that a step computed for, with their leaders."""
        leaders = dict.fromkeys(item.sequence.leader or item.sequence for item in batch.items)
        return ((leader, self._searches[leader]) for leader in leaders if leader in self._searches)

    def go_on(self, leader: Sequence, search: BeamSearch, now: float) -> SequenceOutput | None:
        """Let a search go on by a token once all of its beams have been computed.

        Returns:
            Its best texts, once it is done.
        """
        beams = [leader, *leader.followers][: len(search.beams)]
        if leader.status is not Status.RUNNING or leader.num_uncomputed_tokens:
            return None
        if any(beam.status is not Status.RUNNING for beam in beams):
            self._bring_back(leader, beams[1:])
            return None
        if any(beam.num_uncomputed_tokens for beam in beams):
            return None
        search.advance([self._candidates.pop(beam) for beam in beams])
        if leader.first_token_at is None:
            self._reporter.said(leader, 0, now)
        if search.is_done:
            return self._finish(leader, search, now)
        self._take_over(leader, beams, search)
        return None

    def _finish(self, leader: Sequence, search: BeamSearch, now: float) -> SequenceOutput:
        """End a search: one outcome, the best text, with the next best behind it."""
        texts = [
            SequenceOutput(leader.index, b.text, b.token_ids, b.logprobs, (), b.finish_reason, score=score)
            for b, score in search.best_texts()
        ]
        num_tokens = sum(len(text.token_ids) for text in texts)
        self._reporter.said(leader, num_tokens, now)
        self._scheduler.finish(leader)
        self.forget(leader)
        stats = self._reporter.finished(leader, num_tokens)
        scores = tuple(leader.prompt_logprobs)
        return replace(texts[0], prompt_logprobs=scores, stats=stats, others=tuple(texts[1:]))

    def _join(self, leader: Sequence, beam: Sequence) -> None:
        """Let a beam run, with the blocks that it holds."""
        running = self._scheduler.running
        running.insert(running.index(leader) + 1, beam)
        beam.status = Status.RUNNING

    def _take_over(self, leader: Sequence, before: list[Sequence], search: BeamSearch) -> None:
        """Give each beam a sequence: the text so far, and a reference to each of its blocks."""
        after = [leader, *leader.followers][: len(search.beams)]
        parents = [before[beam.parent] for beam in search.beams]
        states = [(p.token_ids, p.block_table, p.block_keys, p.num_computed_tokens) for p in parents]
        for _, table, _, _ in states:
            self._pool.acquire(table)
        for sequence in before:
            self._pool.release(sequence.block_table)
            sequence.block_table = []
        for sequence, beam, (token_ids, table, keys, num_computed) in zip(
            after, search.beams, states, strict=True
        ):
            sequence.token_ids = [*token_ids, beam.token_ids[-1]]
            sequence.block_table, sequence.block_keys = list(table), list(keys)
            sequence.num_computed_tokens = num_computed
            sequence.num_registered_blocks = num_computed // self._pool.block_size
            if sequence.status is not Status.RUNNING:
                self._join(leader, sequence)
        for sequence in before[len(after) :]:
            self._scheduler.leave(sequence)

    def _bring_back(self, leader: Sequence, others: list[Sequence]) -> None:
        """After a preemption: let the others run again behind what they have in common with the leader."""
        size = self._pool.block_size
        for beam in others:
            pairs = zip(leader.token_ids, beam.token_ids, strict=True)
            num_common = next(at for at, (one, other) in enumerate(pairs) if one != other) // size
            beam.block_table = leader.block_table[:num_common]
            beam.block_keys = leader.block_keys[:num_common]
            beam.num_computed_tokens, beam.num_registered_blocks = num_common * size, num_common
            self._pool.acquire(beam.block_table)
            self._join(leader, beam)
            self._scheduler.reserve(beam, beam.num_uncomputed_tokens)
            if beam.status is not Status.RUNNING:  # there were too few blocks, and they all wait again
                return

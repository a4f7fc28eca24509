"""The engine, synchronous: add sequences, abort them, step. Testable without threads.

A step is schedule, execute, commit. After it, every sequence of its batch has advanced or has been failed
with an output that says so; nothing vanishes. `async_engine` runs this on a thread of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from service.engine.detokenizer import Detokenizer, TokenPieces
from service.engine.observer import NullObserver, Observer, StepStats
from service.engine.scheduler import Scheduler
from service.engine.sequence import (
    Batch,
    FinishReason,
    Scheduled,
    Sequence,
    SequenceOutput,
    SequenceStats,
    StepOutput,
    TokenLogprob,
)
from service.engine.speculator import Speculator
from service.engine.step_cost import StepCost

News = tuple[Sequence, SequenceOutput]


class Runner(Protocol):
    """What executes a batch; `ModelRunner`, or a stand-in that fails on purpose in a test."""

    def execute(self, batch: Batch) -> list[StepOutput]:
        """Run one step; one output per item."""
        ...


@dataclass(slots=True)
class _Text:
    """A sequence's text while it grows, and what of it has not been told yet."""

    detokenizer: Detokenizer
    end_ids: frozenset[int]
    text: str = ""
    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def keep(self, text: str, ids: tuple[int, ...], logprobs: tuple[TokenLogprob, ...]) -> None:
        """Add a step's news; of log probabilities, those of `ids`."""
        self.text += text
        self.ids += ids
        self.logprobs += logprobs[: len(ids)]

    def take(self) -> tuple[str, tuple[int, ...], tuple[TokenLogprob, ...]]:
        """Everything kept since the last time."""
        taken = self.text, tuple(self.ids), tuple(self.logprobs)
        self.text = ""
        self.ids.clear()
        self.logprobs.clear()
        return taken


@dataclass(slots=True)
class Engine:
    """See the module's docstring.

    Args:
        scheduler: waiting and running sequences.
        runner: computes batches.
        pieces: the tokenizer's bytes, for texts.
        cost: learns step times, which scheduler and speculator use.
        speculator: whose drafts the scheduler puts into batches, if any.
        observer: watches.
        clock: seconds; never goes back.
    """

    scheduler: Scheduler
    runner: Runner
    pieces: TokenPieces
    cost: StepCost = field(default_factory=StepCost)
    speculator: Speculator | None = None
    observer: Observer = field(default_factory=NullObserver)
    clock: Callable[[], float] = time.monotonic
    on_fault: Callable[[BaseException], None] = lambda error: None  # told of every exception in a step
    slowest_step_s: float = 0.0
    facts: dict[str, str | int] = field(default_factory=dict)  # how it was built, for people
    _texts: dict[Sequence, _Text] = field(default_factory=dict)

    # ---- coming and going -------------------------------------------------------------------------------

    def add(self, sequence: Sequence) -> None:
        """Take a sequence in; it waits for its turn."""
        params = sequence.params
        ends = {*params.stop_token_ids} if params.ignore_eos else {self.pieces.eos_id, *params.stop_token_ids}
        self._texts[sequence] = _Text(Detokenizer(self.pieces, params.stop), frozenset(ends))
        self.scheduler.add(sequence)

    def abort(self, sequences: Iterable[Sequence]) -> None:
        """Drop sequences nobody waits for any more; their blocks are free at once. Finished ones are left
        alone.
        """
        for sequence in sequences:
            if sequence in self._texts:
                self._end(sequence)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.has_work

    # ---- one step ---------------------------------------------------------------------------------------

    def step(self) -> list[News]:
        """Advance every sequence of the next batch, or fail it.

        Returns:
            What happened, one entry per sequence with news.
        """
        started = self.clock()
        batch = self.scheduler.schedule(started)
        if not batch.items:
            return self._give_up()
        self._tell_starts(batch, started)
        try:
            outputs = self.runner.execute(batch)
        except (MemoryError, torch.OutOfMemoryError) as error:
            return self._shed(batch, error)
        except Exception as error:
            return self._fail([item.sequence for item in batch.items], error)
        news = self._commit(batch, outputs)
        self.scheduler.grow()
        self._tell_step(batch, self.clock() - started)
        return news

    def _commit(self, batch: Batch, outputs: list[StepOutput]) -> list[News]:
        now = self.clock()
        news: list[News] = []
        for item, output in zip(batch.items, outputs, strict=True):
            try:
                said = self._advance(item, output, now)
            except Exception as error:
                news += self._fail([item.sequence], error)
            else:
                news += [] if said is None else [(item.sequence, said)]
        return news

    def _advance(self, item: Scheduled, output: StepOutput, now: float) -> SequenceOutput | None:
        """Give a sequence its tokens, its text, and its end if this is it."""
        sequence, state = item.sequence, self._texts[item.sequence]
        self._learn(item, output)
        sequence.prompt_logprobs += output.prompt_logprobs
        text, ids, reason = self._read(sequence, output.token_ids)
        state.keep(text, ids, output.logprobs)
        self.scheduler.advance(item, ids)
        if ids:
            self._tell_tokens(sequence, len(ids), now)
        if sequence.params.max_new_tokens == 0 and sequence.num_uncomputed_tokens == 0:
            reason = FinishReason.LENGTH
        if reason is not None:
            return self._finish(sequence, state, reason, now)
        if not ids or not sequence.request.is_streamed:
            return None
        text, ids, logprobs = state.take()
        return SequenceOutput(sequence.index, text, ids, logprobs, self._scores(sequence, ids))

    def _read(
        self, sequence: Sequence, new_ids: tuple[int, ...]
    ) -> tuple[str, tuple[int, ...], FinishReason | None]:
        """Text of new tokens up to the one that ends the sequence; tokens behind that one never were."""
        state, params = self._texts[sequence], sequence.params
        text = ""
        for count, token_id in enumerate(new_ids, start=1):
            if token_id in state.end_ids:
                return text, new_ids[:count], FinishReason.STOP
            text += state.detokenizer.push(token_id)
            if state.detokenizer.is_stopped:
                return text, new_ids[:count], FinishReason.STOP
            if sequence.num_output_tokens + count >= params.max_new_tokens:
                return text, new_ids[:count], FinishReason.LENGTH
        return text, new_ids, None

    def _scores(self, sequence: Sequence, ids: tuple[int, ...]) -> tuple[TokenLogprob, ...]:
        """The prompt's log probabilities, once, with the first token."""
        return tuple(sequence.prompt_logprobs) if sequence.num_output_tokens == len(ids) else ()

    # ---- ends -------------------------------------------------------------------------------------------

    def _finish(self, sequence: Sequence, state: _Text, reason: FinishReason, now: float) -> SequenceOutput:
        text, ids, logprobs = state.take()
        text += state.detokenizer.finish()
        scores = self._scores(sequence, ids)
        stats = self._end(sequence, now)
        return SequenceOutput(sequence.index, text, ids, logprobs, scores, reason, stats=stats)

    def _end(self, sequence: Sequence, now: float | None = None) -> SequenceStats:
        """Forget a sequence, give its blocks back, and account for it."""
        self.scheduler.finish(sequence)
        del self._texts[sequence]
        stats = _account(sequence, self.clock() if now is None else now)
        self.observer.on_finish(stats)
        return stats

    def _fail(self, sequences: Iterable[Sequence], error: BaseException) -> list[News]:
        """End these sequences with an error output; everybody else goes on."""
        self.on_fault(error)
        return [(s, _failure(s, type(error).__name__, self._end(s))) for s in sequences]

    def _shed(self, batch: Batch, error: BaseException) -> list[News]:
        """Out of memory: the younger half of the batch gives way for a while; a single row fails."""
        if batch.num_rows == 1:
            return self._fail([batch.items[0].sequence], error)
        self.on_fault(error)
        self.scheduler.shrink(batch)
        return []

    def _give_up(self) -> list[News]:
        """Nothing runs and the next in line cannot start: no later step would change that."""
        stuck = list(self.scheduler.waiting.candidates())[:1]
        return self._fail(stuck, RuntimeError("the sequence is longer than the whole cache")) if stuck else []

    # ---- telling ----------------------------------------------------------------------------------------

    def _learn(self, item: Scheduled, output: StepOutput) -> None:
        if self.speculator is not None and item.draft_ids:
            self.speculator.note(item.sequence, len(item.draft_ids), len(output.token_ids) - 1)

    def _tell_starts(self, batch: Batch, now: float) -> None:
        for item in batch.items:
            if item.sequence.started_at == now:
                self.observer.on_start(now - item.sequence.arrived_at)

    def _tell_tokens(self, sequence: Sequence, count: int, now: float) -> None:
        last = sequence.last_token_at
        self.observer.on_tokens(count, now - (sequence.arrived_at if last is None else last), last is None)
        if sequence.first_token_at is None:
            sequence.first_token_at = now
        sequence.last_token_at = now

    def _tell_step(self, batch: Batch, duration_s: float) -> None:
        self.cost.note(batch.num_rows, duration_s)
        self.slowest_step_s = max(self.slowest_step_s, duration_s)
        scheduler = self.scheduler
        self.observer.on_step(
            StepStats(
                duration_s=duration_s,
                num_rows=batch.num_rows,
                num_cache_queries=scheduler.num_cache_queries,
                num_cache_hits=scheduler.num_cache_hits,
                num_drafted=self.speculator.num_drafted if self.speculator else 0,
                num_accepted=self.speculator.num_accepted if self.speculator else 0,
                num_preemptions=scheduler.num_preemptions,
            )
        )


def _failure(sequence: Sequence, error: str, stats: SequenceStats) -> SequenceOutput:
    return SequenceOutput(sequence.index, finish_reason=FinishReason.ERROR, error=error, stats=stats)


def _account(sequence: Sequence, now: float) -> SequenceStats:
    started = now if sequence.started_at is None else sequence.started_at
    first = now if sequence.first_token_at is None else sequence.first_token_at
    return SequenceStats(
        num_prompt_tokens=sequence.num_prompt_tokens,
        num_output_tokens=sequence.num_output_tokens,
        num_cached_tokens=sequence.num_cached_tokens,
        queue_s=started - sequence.arrived_at,
        prefill_s=first - started,
    )

"""The engine, synchronous: add sequences, abort them, step. Testable without threads.

A step is schedule, execute, commit. After it, every sequence of its batch has advanced or has been failed
with an output that says so; nothing vanishes. `async_engine` runs this on a thread of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from service.engine.batch import Batch, Scheduled, StepOutput
from service.engine.beams import Beams
from service.engine.detokenizer import Detokenizer, TokenPieces
from service.engine.observer import Reporter
from service.engine.pulse import Pulse
from service.engine.scheduler import Scheduler
from service.engine.sequence import FinishReason, Sequence, SequenceOutput, Status, TokenLogprob

Outputs = list[tuple[Sequence, SequenceOutput]]


class Runner(Protocol):
    """What executes a batch; `ModelRunner`, or a stand-in that fails on purpose in a test."""

    def execute(self, batch: Batch) -> list[StepOutput]:
        """Run one step; one output per item.

        Raises:
            MemoryError: a batch of fewer rows may fit.
        """
        ...


@dataclass(slots=True)
class Engine:
    """See the module's docstring.

    Args:
        scheduler: waiting and running sequences, and what steps cost.
        runner: computes batches.
        pieces: the tokenizer's bytes, for texts.
        clock: seconds; never goes back.
        on_fault: told of every exception in a step.
    """

    scheduler: Scheduler
    runner: Runner
    pieces: TokenPieces
    clock: Callable[[], float] = time.monotonic
    on_fault: Callable[[BaseException], None] = lambda error: None
    facts: dict[str, str | int] = field(default_factory=dict)  # how it was built, for people
    beams: Beams = field(init=False)
    reporter: Reporter = field(init=False)
    pulse: Pulse = field(init=False)

    def __post_init__(self) -> None:
        """Nobody watches yet: see `Reporter.observer`."""
        self.reporter = Reporter(self.scheduler, self.clock)
        self.beams = Beams(self.scheduler, self.reporter)
        self.pulse = Pulse(self.clock)

    # ---- coming and going -------------------------------------------------------------------------------

    def add(self, sequence: Sequence) -> None:
        """Take a sequence in; it waits for its turn."""
        params = sequence.params
        own_end = () if params.ignore_eos else (self.pieces.eos_id,)
        sequence.end_ids = frozenset((*own_end, *params.stop_token_ids))
        sequence.detokenizer = Detokenizer(
            self.pieces,
            params.stop,
            sequence.request.prompt_ids,
            shows_specials=not params.skip_special_tokens,
            shows_stop=params.include_stop_str_in_output,
        )
        if params.num_beams > 1:
            self.beams.add(sequence)
        self.scheduler.add(sequence)

    def abort(self, sequences: Iterable[Sequence]) -> None:
        """Drop sequences nobody waits for; their blocks are free at once. Finished ones are left alone."""
        for sequence in sequences:
            if sequence.status is not Status.FINISHED:
                self._end(sequence)
                self.reporter.finished(sequence)

    def _end(self, sequence: Sequence) -> None:
        self.scheduler.finish(sequence)
        self.beams.forget(sequence)

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.has_work

    # ---- one step ---------------------------------------------------------------------------------------

    def step(self) -> Outputs:
        """Advance every sequence of the next batch, or fail it.

        Returns:
            What happened, one entry per sequence with something to tell.
        """
        self.pulse.begin()
        try:
            return self._step()
        finally:
            self.pulse.end()

    def _step(self) -> Outputs:
        started = self.clock()
        batch = self.scheduler.schedule(started)
        self.reporter.scheduled(started)
        if not batch.items:
            if self.scheduler.running:  # they were started, and what they want to draw is for the next step
                return []
            stuck = list(self.scheduler.waiting.candidates())[:1]  # no later step would let it start
            return self._fail(stuck, RuntimeError("the sequence is longer than the whole cache"))
        executed = self.clock()
        try:
            results = self.runner.execute(batch)
        except MemoryError as error:
            return self._shed(batch, error)
        except Exception as error:
            return self._fail([item.sequence for item in batch.items], error)
        forward_s = self.clock() - executed - sum(result.draw_s + result.score_s for result in results)
        self.scheduler.time_share.charge_step(batch, results, forward_s / batch.num_rows)
        outputs = self._commit(batch, results)
        self.scheduler.grow()
        self.scheduler.cost.note(batch.num_rows, forward_s)
        duration_s = self.clock() - started
        self.reporter.stepped(batch, duration_s)
        return outputs

    def _commit(self, batch: Batch, results: list[StepOutput]) -> Outputs:
        now = self.clock()
        outputs: Outputs = []
        for item, result in zip(batch.items, results, strict=True):
            if item.sequence.status is not Status.RUNNING:  # a beam whose search has just failed
                continue
            try:
                output = self._advance(item, result, now)
            except Exception as error:
                outputs += self._fail([item.sequence], error)
            else:
                outputs += [] if output is None else [(item.sequence, output)]
        for leader, search in self.beams.of(batch):
            try:
                output = self.beams.go_on(leader, search, now)
            except Exception as error:
                outputs += self._fail([leader], error)
            else:
                outputs += [] if output is None else [(leader, output)]
        return outputs

    def _advance(self, item: Scheduled, result: StepOutput, now: float) -> SequenceOutput | None:
        """Give a sequence its tokens, its text, and its end if this is it."""
        sequence = item.sequence
        if item.draft_ids and self.scheduler.speculator is not None:
            self.scheduler.speculator.note(sequence, len(item.draft_ids), len(result.token_ids) - 1)
        ids, reason = self._read(sequence, result.token_ids) if result.token_ids else ((), None)
        if result.candidates is not None:
            self.beams.note(sequence, result.candidates)
        if result.prompt_logprobs:
            sequence.prompt_logprobs += result.prompt_logprobs
        if result.logprobs:
            sequence.unsent.logprobs += result.logprobs[: len(ids)]
        self.scheduler.advance(item, ids)
        if ids:
            self.reporter.said(sequence, len(ids), now)
        if sequence.params.max_new_tokens == 0 and sequence.num_uncomputed_tokens == 0:
            reason = FinishReason.LENGTH
        if reason is not None:
            return self._finish(sequence, reason)
        if not ids or not sequence.request.is_streamed:
            return None
        text, ids, logprobs = sequence.unsent.take()
        return SequenceOutput(sequence.index, text, ids, logprobs, self._scores(sequence, ids))

    def _read(
        self, sequence: Sequence, new_ids: tuple[int, ...]
    ) -> tuple[tuple[int, ...], FinishReason | None]:
        """Turn new tokens into text up to the one that ends the sequence; tokens behind that never were."""
        unsent, detokenizer, params = sequence.unsent, sequence.detokenizer, sequence.params
        num_left = params.max_new_tokens - sequence.num_output_tokens
        for count, token_id in enumerate(new_ids, start=1):
            unsent.token_ids.append(token_id)
            if token_id in sequence.end_ids:
                if params.include_stop_str_in_output:
                    unsent.text += detokenizer.push(token_id)
                return new_ids[:count], FinishReason.STOP
            unsent.text += detokenizer.push(token_id)
            if detokenizer.is_stopped:
                return new_ids[:count], FinishReason.STOP
            if count >= num_left:
                return new_ids[:count], FinishReason.LENGTH
        return new_ids, None

    def _scores(self, sequence: Sequence, ids: tuple[int, ...]) -> tuple[TokenLogprob, ...]:
        """The prompt's log probabilities, once, with the first token."""
        return tuple(sequence.prompt_logprobs) if sequence.num_output_tokens == len(ids) else ()

    # ---- ends -------------------------------------------------------------------------------------------

    def _finish(self, sequence: Sequence, reason: FinishReason) -> SequenceOutput:
        text, ids, logprobs = sequence.unsent.take()
        text += sequence.detokenizer.finish()
        scores = self._scores(sequence, ids)
        self._end(sequence)
        stats = self.reporter.finished(sequence)
        return SequenceOutput(sequence.index, text, ids, logprobs, scores, reason, stats=stats)

    def _fail(self, sequences: Iterable[Sequence], error: BaseException) -> Outputs:
        """End these sequences with an error output; everybody else goes on."""
        outputs: Outputs = []
        for sequence in dict.fromkeys(sequence.leader or sequence for sequence in sequences):
            self._end(sequence)
            name, stats = type(error).__name__, self.reporter.finished(sequence)
            output = SequenceOutput(sequence.index, finish_reason=FinishReason.ERROR, error=name, stats=stats)
            outputs.append((sequence, output))
        if outputs:
            self.on_fault(error)
        return outputs

    def _shed(self, batch: Batch, error: MemoryError) -> Outputs:
        """Out of memory: the younger half of the batch gives way for a while; a single row fails."""
        if batch.num_rows == 1:
            return self._fail([batch.items[0].sequence], error)
        self.on_fault(error)
        self.scheduler.shrink(batch)
        return []

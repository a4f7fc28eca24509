"""A task under way: the engine's stream with an account of tokens and time, and the handle the dialects hold.

`Prepared` is what `TaskRunner.prepare_*` returns: everything that can be refused has been. Leaving it, for
whatever reason, aborts what is unfinished. Read `generate` for the simplest use.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Protocol, Self

from service.engine.sequence import FinishReason, SequenceOutput, SequenceRequest, SequenceStats
from service.errors import EngineFault, InvalidRequest
from service.tasks.calls import ModelLimits, Origin, Timings, Usage
from service.tasks.events import Event


class Stream(Protocol):
    """What a task needs of the engine's `JobStream`."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def __anext__(self) -> SequenceOutput: ...

    def extend(self, requests: Sequence[SequenceRequest]) -> range: ...

    def abort(self, index: int) -> None: ...


class Submitter(Protocol):
    """What a task needs of `AsyncEngine`."""

    def submit(
        self,
        requests: Sequence[SequenceRequest],
        tenant: str = ...,
        salt: str = ...,
        deadline: float | None = ...,
    ) -> Stream: ...


class Job:
    """The sequences of one task, some added later: `num_sequences` in all, `num_unfinished` in the engine.

    Args:
        stream: the engine's stream.
        num_sequences: how many were submitted at first.
        num_dropped: tokens that `overflow` cut before.
    """

    def __init__(self, stream: Stream, num_sequences: int, num_dropped: int = 0) -> None:
        self.stream = stream
        self.num_sequences = num_sequences
        self.num_unfinished = num_sequences
        self._num_dropped = num_dropped
        self._stats: list[SequenceStats] = []
        self._started_at = time.monotonic()

    def extend(self, requests: Sequence[SequenceRequest]) -> range:
        """Add sequences; returns their indices. Never refused."""
        self.num_sequences += len(requests)
        self.num_unfinished += len(requests)
        return self.stream.extend(requests)

    def abort(self, index: int) -> None:
        """Drop one unfinished sequence: what it would still say is not wanted."""
        self.num_unfinished -= 1
        self.stream.abort(index)

    async def outputs(self) -> AsyncIterator[SequenceOutput]:
        """Yield what the engine reports until every sequence has finished, those added meanwhile included.

        Raises:
            EngineFault: a sequence failed.
            DeadlineExceeded: the job's time is over.
        """
        while self.num_unfinished:
            output = await anext(self.stream)
            self._account(output)
            yield output

    def _account(self, output: SequenceOutput) -> None:
        if output.finish_reason is None:
            return
        if output.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
            raise EngineFault
        self.num_unfinished -= 1
        if output.stats is not None:
            self._stats.append(output.stats)

    def usage(self) -> Usage:
        """Tokens of all sequences that have finished."""
        return Usage(
            prompt_tokens=sum(stats.num_prompt_tokens for stats in self._stats),
            completion_tokens=sum(stats.num_output_tokens for stats in self._stats),
            cached_tokens=sum(stats.num_cached_tokens for stats in self._stats),
            dropped_tokens=self._num_dropped,
        )

    def timings(self) -> Timings:
        """Wall time since submission, parted at the first sequence's start and at the first token."""
        total_s = time.monotonic() - self._started_at
        queue_s = min((stats.queue_s for stats in self._stats), default=total_s)
        first_token_s = min((stats.queue_s + stats.prefill_s for stats in self._stats), default=total_s)
        return Timings(
            queue_ms=_as_ms(queue_s),
            prefill_ms=_as_ms(first_token_s - queue_s),
            decode_ms=_as_ms(max(total_s - first_token_s, 0.0)),
            total_ms=_as_ms(total_s),
        )


class Prepared:
    """An admitted task. Enter it, consume `events()`, leave it.

    Args:
        job: the submitted sequences.
        seed: the seed in use, drawn or given.
        make_events: starts the event stream.
    """

    def __init__(self, job: Job, seed: int, make_events: Callable[[], AsyncIterator[Event]]) -> None:
        self.seed = seed
        self._job = job
        self._make_events = make_events

    async def __aenter__(self) -> Self:
        """Hold the job."""
        await self._job.stream.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Abort whatever is unfinished."""
        await self._job.stream.__aexit__(kind, error, trace)

    async def events(self) -> AsyncIterator[Event]:
        """Yield the task's events; exactly one `Done` comes last.

        Raises:
            EngineFault: the engine failed under this job.
            DeadlineExceeded: the job's time is over.
        """
        async with aclosing(self._make_events()) as events:  # type: ignore[type-var]  # they are generators
            async for event in events:
                yield event


def submit(
    engine: Submitter,
    requests: Sequence[SequenceRequest],
    origin: Origin,
    limits: ModelLimits,
    param: str,
    num_dropped: int = 0,
) -> Job:
    """Submit a task's first sequences.

    Raises:
        InvalidRequest: there are more than a job may have.
        Refused: the engine takes no more work now.
    """
    check_job_size(len(requests), limits, param)
    stream = engine.submit(requests, origin.tenant, origin.salt, origin.deadline)
    return Job(stream, len(requests), num_dropped)


def check_job_size(num_sequences: int, limits: ModelLimits, param: str) -> None:
    """Raise `InvalidRequest` when a job would start with too many sequences."""
    if num_sequences > limits.max_job_sequences:
        raise too_many_sequences(limits, param)


def too_many_sequences(limits: ModelLimits, param: str) -> InvalidRequest:
    """What to raise for a text that makes too many: it is not read to the end to tell how many."""
    most = limits.max_job_sequences
    return InvalidRequest(
        f"{param} makes more than {most} sequences; at most {most} sequences in one request", param
    )


def _as_ms(seconds: float) -> float:
    return round(seconds * 1000, 3)

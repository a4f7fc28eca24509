"""What a caller holds of its job: an async stream of outputs that aborts the rest when it is left.

Lives on the event loop. A reader that is slow costs bounded memory: outputs it has not read are merged, one
entry per sequence. `async_engine` fills it.
"""

from __future__ import annotations

import asyncio
import collections.abc
import time
from dataclasses import replace
from types import TracebackType
from typing import Protocol, Self

from service.engine.sequence import (
    FinishReason,
    Job,
    Sequence,
    SequenceOutput,
    SequenceRequest,
    SequenceStats,
)
from service.errors import EngineFault


class StreamOwner(Protocol):
    """What a stream needs of its engine."""

    def enqueue(self, stream: JobStream, sequences: collections.abc.Sequence[Sequence]) -> None:
        """Let sequences of the stream's job wait for their turn.

        Raises:
            InvalidRequest: a beam search among them might not fit into the whole cache; nothing was added.
        """
        ...

    def drop(self, stream: JobStream, sequences: collections.abc.Sequence[Sequence]) -> None:
        """Abort sequences whose outputs nobody reads any more."""
        ...

    def close(self, stream: JobStream) -> None:
        """Forget a stream that was left."""
        ...


class JobStream:
    """Outputs of one job. Enter it, iterate it, leave it; leaving aborts what is unfinished.

    Args:
        owner: the engine.
        job: the job.
        deadline: until when it must be done, on the monotonic clock.
    """

    def __init__(self, owner: StreamOwner, job: Job, deadline: float) -> None:
        self.job, self.deadline = job, deadline
        self.unfinished: dict[int, Sequence] = {}
        self.num_submitted = 0
        self.submitted_at = time.monotonic()
        self.stats: list[SequenceStats] = []  # of the sequences that were read to their end
        self._owner = owner
        self._unread: dict[int, SequenceOutput] = {}
        self._error: Exception | None = None
        self._changed = asyncio.Event()

    # ---- the caller's side ------------------------------------------------------------------------------

    def extend(self, requests: collections.abc.Sequence[SequenceRequest]) -> range:
        """Add sequences to the job; none is refused for want of a place.

        Returns:
            Their indices, which continue those of the job.

        Raises:
            InvalidRequest: as `StreamOwner.enqueue`.
        """
        first, now = self.num_submitted, time.monotonic()
        sequences = [Sequence(self.job, first + i, request, now) for i, request in enumerate(requests)]
        self._owner.enqueue(self, sequences)
        self.num_submitted += len(sequences)
        self.unfinished.update((sequence.index, sequence) for sequence in sequences)
        return range(first, self.num_submitted)

    @property
    def has_unread(self) -> bool:
        """Whether the next output is there already."""
        return bool(self._unread)

    def abort(self, index: int) -> None:
        """Drop one sequence; it gives no further output."""
        sequence = self.unfinished.pop(index, None)
        self._unread.pop(index, None)
        if sequence is not None:
            self._owner.drop(self, [sequence])
        self._changed.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = list(self.unfinished.values())
        self.unfinished.clear()
        self._unread.clear()
        self._owner.drop(self, left)
        self._owner.close(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SequenceOutput:
        """Wait for the next output of any sequence.

        Raises:
            EngineFault: a sequence failed, or the engine died.
            StopAsyncIteration: every sequence has finished.
        """
        while not self._unread:
            if self._error is not None:
                raise self._error
            if not self.unfinished:
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        output = self._unread.pop(next(iter(self._unread)))
        if output.finish_reason in (FinishReason.ERROR, FinishReason.ABORT):
            raise EngineFault
        if output.stats is not None:
            self.stats.append(output.stats)
        return output

    # ---- the engine's side ------------------------------------------------------------------------------

    def put(self, output: SequenceOutput) -> None:
        """Add an output, merged into what is not read yet; those of aborted sequences are dropped."""
        if output.index not in self.unfinished:
            return
        if output.finish_reason is not None:
            del self.unfinished[output.index]
        earlier = self._unread.get(output.index)
        self._unread[output.index] = output if earlier is None else _merge(earlier, output)
        self._changed.set()

    def fail(self, error: Exception) -> None:
        """End the stream with an error, once what was produced has been read."""
        self._error = self._error or error
        self._changed.set()


def _merge(first: SequenceOutput, second: SequenceOutput) -> SequenceOutput:
    return replace(
        second,
        text=first.text + second.text,
        token_ids=first.token_ids + second.token_ids,
        logprobs=first.logprobs + second.logprobs,
        prompt_logprobs=first.prompt_logprobs or second.prompt_logprobs,
    )

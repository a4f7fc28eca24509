"""Runs a summary: every chunk at once, then the summaries' summary.

The chunks' summaries, joined, are summarised in turn until they fit one window. A round that does not shrink
them ends it: then the joined summaries are the answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator

from service.engine.job_stream import JobStream
from service.engine.sequence import FinishReason, SequenceOutput
from service.tasks.calls import ChunkSummary, Origin, ScoredSummary, SummarizeResult
from service.tasks.documents import Span
from service.tasks.events import Chunk, Done, Event, Plan, Token
from service.tasks.job import timings, usage
from service.tasks.offload import Offloader, size_of
from service.tasks.summarize import Plotted, Summarizer
from service.tasks.trimming import Trimmer

_SHRINKS = 0.9  # a round of reduction must leave at most this share of the tokens, or it was the last


class Summary:
    """A summary as it grows, trimmed."""

    def __init__(self) -> None:
        self.text = ""
        self.finish_reason = ""
        self.scored: tuple[ScoredSummary, ...] = ()  # of a beam search
        self._trimmer = Trimmer()

    def push(self, output: SequenceOutput) -> str:
        """Take an output of the engine; return what can be shown now."""
        delta = self._trimmer.push(output.text)
        self.text += delta
        self.finish_reason = output.finish_reason or ""
        self.scored = tuple(
            ScoredSummary(each.text.strip(), each.score, each.finish_reason or "")
            for each in (output, *output.others)
            if each.score is not None
        )
        return delta


async def summarize_events(
    job: JobStream, summarizer: Summarizer, plotted: Plotted, offloader: Offloader, origin: Origin
) -> AsyncGenerator[Event]:
    """Yield the plan, chunks as they finish, the last reduction's tokens, and the result."""
    yield Plan(plotted.strategy, len(plotted.spans))
    run = _Run(job, summarizer, offloader, origin)
    chunks = [Summary() for _ in plotted.spans]
    if len(chunks) == 1:
        async for token in run.stream(chunks[0]):
            yield token
        yield _chunk_event(plotted.spans[0], 0, chunks[0])
        final = chunks[0]
    else:
        async for index in run.collect(chunks, first_index=0):
            yield _chunk_event(plotted.spans[index], index, chunks[index])
        final = Summary()
        async for token in run.reduce([chunk.text for chunk in chunks], plotted.num_text_tokens, final):
            yield token
    summaries = tuple(
        ChunkSummary(span.start, span.end, chunk.text)
        for span, chunk in zip(plotted.spans, chunks, strict=True)
    )
    spent = usage(job, plotted.num_dropped)
    told = final.text, final.finish_reason, summaries
    yield Done(SummarizeResult(summarizer.seed, *told, spent, timings(job), final.scored))


def _chunk_event(span: Span, index: int, summary: Summary) -> Chunk:
    return Chunk(index, span.start, span.end, summary.text)


class _Run:
    """The rounds of one job."""

    def __init__(self, job: JobStream, summarizer: Summarizer, offloader: Offloader, origin: Origin) -> None:
        self._origin = origin
        self._job = job
        self._summarizer = summarizer
        self._offloader = offloader

    async def stream(self, summary: Summary) -> AsyncIterator[Token]:
        """Show the one sequence that runs, token by token."""
        async for output in self._job:
            delta = summary.push(output)
            if delta or output.finish_reason:
                yield Token(0, delta, finish_reason=output.finish_reason)

    async def collect(self, summaries: list[Summary], first_index: int) -> AsyncIterator[int]:
        """Let a round run and yield the index of each summary when it is complete."""
        async for output in self._job:
            index = output.index - first_index
            summaries[index].push(output)
            if output.finish_reason is not None:
                yield index

    async def reduce(self, parts: list[str], num_tokens: int, final: Summary) -> AsyncIterator[Token]:
        """Summarise the joined parts until they fit one window; the last sequence is streamed.

        Args:
            parts: summaries of the text's chunks.
            num_tokens: tokens of the text they summarise.
            final: takes the result.
        """
        while True:
            joined = "\n".join(part for part in parts if part)
            plotted = await self._plot(joined)
            is_last = plotted is not None and len(plotted.spans) == 1
            if plotted is None or (not is_last and plotted.num_text_tokens > num_tokens * _SHRINKS):
                # The joined summaries themselves: another round would not shorten them.
                final.text = joined.strip()
                final.finish_reason = FinishReason.LENGTH if joined else FinishReason.STOP
                yield Token(0, final.text, finish_reason=final.finish_reason)
                return
            num_tokens = plotted.num_text_tokens
            first_index = self._job.extend(plotted.requests).start
            if is_last:
                async for token in self.stream(final):
                    yield token
                return
            summaries = [Summary() for _ in plotted.spans]
            async for _ in self.collect(summaries, first_index):
                pass
            parts = [summary.text for summary in summaries]

    async def _plot(self, joined: str) -> Plotted | None:
        if not joined:
            return None
        work = self._summarizer.plot_round(joined, self._job.num_submitted)
        return await self._offloader.run(size_of([joined]), work, self._origin, is_admitted=True)

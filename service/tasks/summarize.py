"""Summaries of documents of any length: every chunk at once, then the summaries' summary.

A text that fits the window is one sequence. A longer one is split (`chunking`), its chunks are sequences of
one job that run side by side, and their summaries, joined, are summarised in turn until they fit one window.
A round that does not shrink them ends it: then the joined summaries are the answer. Read `qa` next.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from model_store.evidence import SEPARATOR
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from service.engine.sequence import FinishReason, SequenceOutput, SequenceRequest
from service.errors import PromptTooLong
from service.tasks.calls import ChunkSummary, Overflow, Strategy, SummarizeCall, SummarizeResult
from service.tasks.chunking import Document, Span, split
from service.tasks.events import Chunk, Done, Event, Plan, Token
from service.tasks.extract import SentenceAutomaton
from service.tasks.fitting import drop_tokens, num_dropped
from service.tasks.job import Job
from service.tasks.offload import Offloader
from service.tasks.sampling import Decoding, check_neutral
from service.tasks.trimming import Trimmer

MIN_CHUNK_TOKENS = 16  # a window that leaves less for the text is no use to summarise with
_SHRINKS = 0.9  # a round of reduction must leave at most this share of the tokens, or it was the last


@dataclass(frozen=True, slots=True)
class Plotted:
    """Chunks of a text and the sequences that summarise them."""

    spans: tuple[Span, ...]
    requests: tuple[SequenceRequest, ...]
    num_text_tokens: int
    num_dropped: int = 0
    strategy: str = "single"


# Fields without meaning where the text's sentences alone say how long a summary can be.
_FREE_ONLY = {"min_new_tokens": 0, "ignore_eos": False}


def check_sampling(call: SummarizeCall, task: Task) -> None:
    """Raise `InvalidRequest` for sampling fields that have no meaning for whole sentences of the text."""
    if task.extractive:
        check_neutral(call.sampling, _FREE_ONLY, "for a model whose summaries are sentences of the text")


class Summarizer:
    """Renders one call's texts.

    Args:
        task: of kind summarize.
        tokenizer: the model's.
        decoding: resolved sampling fields.
        n_positions: the model's window.
        is_streamed: whether the final summary's tokens are wanted as they come.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: Tokenizer,
        decoding: Decoding,
        n_positions: int,
        is_streamed: bool = True,
    ) -> None:
        self._task = task
        self._tokenizer = tokenizer
        self._decoding = decoding
        self._n_positions = n_positions
        self._is_streamed = is_streamed
        self._field = task.document or task.fields[0]
        self.seed = decoding.params.seed

    def plot(self, text: str, strategy: Strategy, overflow: Overflow) -> Plotted:
        """Decide how a text will be read.

        Raises:
            PromptTooLong: strategy `single` and it does not fit, or no room for any text beside the new
                tokens.
        """
        if strategy == "single":
            return self._plot_single(text, overflow)
        document = Document(text, self._tokenizer)
        is_short = document.num_tokens(0, len(text)) <= self._n_positions
        if strategy == "auto" and is_short and self._excess(text) <= 0:
            return self._plot_single(text, overflow)
        return self._plot_chunks(document, first_ordinal=0)

    def plot_round(self, text: str, first_ordinal: int) -> Plotted:
        """Plan a round of reduction: as many chunks as it takes, one if the text fits the window."""
        return self._plot_chunks(Document(text, self._tokenizer), first_ordinal)

    def _plot_chunks(self, document: Document, first_ordinal: int) -> Plotted:
        text = document.text
        spans = tuple(split(document, self._capacity(), lambda start, end: self._excess(text[start:end])))
        is_last = len(spans) == 1  # of all others nobody reads the tokens, only the end
        requests = tuple(
            self._request(text[span.start : span.end], first_ordinal + place, is_last)
            for place, span in enumerate(spans)
        )
        total = document.num_tokens(0, len(text))
        return Plotted(spans, requests, total, strategy="map_reduce" if len(spans) > 1 else "single")

    def _plot_single(self, text: str, overflow: Overflow) -> Plotted:
        start = 0
        total = len(self._encode(text))
        count = total
        while True:
            excess = num_dropped(count, self._decoding, self._n_positions, overflow, self._field)
            if not excess or start >= len(text):
                break
            start = len(text) - len(self._shortened(text[start:], excess))
            count = len(self._encode(text[start:]))
        request = self._request(text[start:], 0, is_last=True)
        return Plotted((Span(start, len(text)),), (request,), count, total - count)

    def _shortened(self, text: str, excess: int) -> str:
        """Drop about so many tokens; half the text where the prompt holds but a few of its sentences."""
        if self._task.evidence:
            return text[-(len(text) // 2) :] if len(text) > 1 else ""
        return drop_tokens(self._tokenizer, text, excess)

    def _encode(self, text: str) -> list[int]:
        return self._task.encode(self._tokenizer, {self._field: text.strip()})

    def _excess(self, text: str) -> int:
        return len(self._encode(text)) + self._decoding.max_new_tokens - self._n_positions

    def _capacity(self) -> int:
        """Tokens of text that fit one window beside template and new tokens."""
        room = self._n_positions - len(self._encode(""))
        capacity = room - self._decoding.max_new_tokens
        if capacity < MIN_CHUNK_TOKENS:
            most = room - MIN_CHUNK_TOKENS
            window = f"a window of {self._n_positions} tokens"
            raise PromptTooLong(
                f"max_new_tokens must be at most {most}, or {window} has no room for text", "max_new_tokens"
            )
        return capacity

    def _request(self, text: str, ordinal: int, is_last: bool) -> SequenceRequest:
        ids = self._encode(text)
        room = self._n_positions - len(ids)
        params = self._decoding.params_for(min(self._decoding.max_new_tokens, room))
        if self._task.extractive:
            sentences = self._task.read({self._field: text.strip()}).text.split(SEPARATOR)
            automaton = SentenceAutomaton(sentences, self._tokenizer)
            params = replace(params, allowed_next=automaton, min_new_tokens=0)
        return SequenceRequest(tuple(ids), params, ordinal, self._is_streamed and is_last)


class Summary:
    """A summary as it grows, trimmed."""

    def __init__(self) -> None:
        self.text = ""
        self.finish_reason = ""
        self._trimmer = Trimmer()

    def push(self, output: SequenceOutput) -> str:
        """Take the engine's news; return what can be shown now."""
        delta = self._trimmer.push(output.text)
        self.text += delta
        self.finish_reason = output.finish_reason or ""
        return delta


async def summarize_events(
    job: Job, summarizer: Summarizer, plotted: Plotted, offloader: Offloader
) -> AsyncIterator[Event]:
    """Yield the plan, chunks as they finish, the last reduction's tokens, and the result."""
    yield Plan(plotted.strategy, len(plotted.spans))
    run = _Run(job, summarizer, offloader)
    chunks = [Summary() for _ in plotted.spans]
    outputs = job.outputs()
    if len(chunks) == 1:
        async for token in run.stream(outputs, chunks[0]):
            yield token
        yield _chunk_event(plotted.spans[0], 0, chunks[0])
        final = chunks[0]
    else:
        async for index in run.collect(outputs, chunks, first_index=0):
            yield _chunk_event(plotted.spans[index], index, chunks[index])
        final = Summary()
        async for token in run.reduce([chunk.text for chunk in chunks], plotted.num_text_tokens, final):
            yield token
    summaries = tuple(
        ChunkSummary(span.start, span.end, chunk.text)
        for span, chunk in zip(plotted.spans, chunks, strict=True)
    )
    yield Done(
        SummarizeResult(
            summarizer.seed, final.text, final.finish_reason, summaries, job.usage(), job.timings()
        )
    )


def _chunk_event(span: Span, index: int, summary: Summary) -> Chunk:
    return Chunk(index, span.start, span.end, summary.text)


class _Run:
    """The rounds of one job."""

    def __init__(self, job: Job, summarizer: Summarizer, offloader: Offloader) -> None:
        self._job = job
        self._summarizer = summarizer
        self._offloader = offloader

    async def stream(self, outputs: AsyncIterator[SequenceOutput], summary: Summary) -> AsyncIterator[Token]:
        """Show the one sequence that runs, token by token."""
        async for output in outputs:
            delta = summary.push(output)
            if delta or output.finish_reason:
                yield Token(0, delta, finish_reason=output.finish_reason)

    async def collect(
        self, outputs: AsyncIterator[SequenceOutput], summaries: list[Summary], first_index: int
    ) -> AsyncIterator[int]:
        """Let a round run and yield the place of each summary when it is complete."""
        async for output in outputs:
            place = output.index - first_index
            summaries[place].push(output)
            if output.finish_reason is not None:
                yield place

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
                yield self._keep(joined, final)
                return
            num_tokens = plotted.num_text_tokens
            first_index = self._job.extend(plotted.requests).start
            outputs = self._job.outputs()
            if is_last:
                async for token in self.stream(outputs, final):
                    yield token
                return
            summaries = [Summary() for _ in plotted.spans]
            async for _ in self.collect(outputs, summaries, first_index):
                pass
            parts = [summary.text for summary in summaries]

    async def _plot(self, joined: str) -> Plotted | None:
        if not joined:
            return None
        ordinal = self._job.num_sequences
        return await self._offloader.run([joined], lambda: self._summarizer.plot_round(joined, ordinal))

    def _keep(self, joined: str, final: Summary) -> Token:
        """Give the joined summaries themselves: another round would not shorten them."""
        final.text = joined.strip()
        final.finish_reason = FinishReason.LENGTH if joined else FinishReason.STOP
        return Token(0, final.text, finish_reason=final.finish_reason)

"""How documents of any length are read for their summaries: whole, or in chunks side by side.

A text that fits the window is one sequence. A longer one is split (`chunking`), and its chunks are sequences
of one job. Nothing runs here: read `reduction` next, which makes one summary of theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from model_store.evidence import SENTENCE_BREAK
from model_store.steps import Steps
from model_store.task import Task
from model_store.tokenizer import Tokenizer
from service.engine.sequence import SequenceRequest
from service.errors import InvalidRequest, PromptTooLong
from service.tasks.calls import ModelLimits, Overflow, Strategy, SummarizeCall
from service.tasks.chunking import split
from service.tasks.documents import Document, Span, read_document
from service.tasks.extract import SentenceAutomaton
from service.tasks.fitting import check_can_fit, num_dropped
from service.tasks.job import check_job_size, too_many_sequences
from service.tasks.rendering import drop_tokens, read, render, render_read
from service.tasks.sampling import Decoding, check_neutral

MIN_CHUNK_TOKENS = 16  # a window that leaves less for the text is no use to summarise with


@dataclass(frozen=True, slots=True)
class Plotted:
    """Chunks of a text and the sequences that summarise them."""

    spans: tuple[Span, ...]
    requests: tuple[SequenceRequest, ...]
    num_text_tokens: int
    num_dropped: int = 0
    strategy: str = "single"


# Fields without meaning where the text's sentences alone say how long a summary can be.
_FREE_ONLY = ("min_new_tokens", "ignore_eos")


def check_sampling(call: SummarizeCall, task: Task, decoding: Decoding) -> None:
    """Raise `InvalidRequest` for sampling fields that have no meaning for whole sentences of the text, or
    without a beam search.
    """
    if decoding.params.num_beams == 1 < decoding.params.num_return_sequences:
        text = "num_return_sequences must be 1 or left out without num_beams above 1: there is one summary"
        raise InvalidRequest(text, "num_return_sequences")
    if task.extractive:
        check_neutral(call.sampling, _FREE_ONLY, "for a model whose summaries are sentences of the text")


class Summarizer:
    """Renders one call's texts.

    Args:
        task: of kind summarize.
        tokenizer: the model's.
        decoding: resolved sampling fields.
        limits: of the model.
        is_streamed: whether the final summary's tokens are wanted as they come.
    """

    def __init__(
        self,
        task: Task,
        tokenizer: Tokenizer,
        decoding: Decoding,
        limits: ModelLimits,
        is_streamed: bool = True,
    ) -> None:
        self._task = task
        self._tokenizer = tokenizer
        self._decoding = decoding
        self._limits = limits
        self._n_positions = limits.n_positions
        self._is_streamed = is_streamed
        self._field = task.document or task.fields[0]
        self.seed = decoding.params.seed

    def plot(self, text: str, strategy: Strategy, overflow: Overflow) -> Steps[Plotted]:
        """Decide how a text will be read.

        Raises:
            PromptTooLong: strategy `single` and it does not fit, or no room for any text beside the new
                tokens.
            InvalidRequest: there are more chunks than a job may have.
        """
        if strategy == "single":
            return (yield from self._plot_single(text, overflow))
        # What a job's chunks can hold: their capacity and, of each, a token that begins in the white space
        # before it.
        max_tokens = self._limits.max_job_sequences * (max(self._room(), MIN_CHUNK_TOKENS) + 1)
        document = yield from read_document(text, self._tokenizer, max_tokens)
        if document is None:
            raise too_many_sequences(self._limits, self._field)
        is_short = document.num_tokens(0, len(text)) <= self._n_positions
        if strategy == "auto" and is_short and (yield from self._excess(text)) <= 0:
            return (yield from self._plot_single(text, overflow))
        return (yield from self._plot_chunks(document, 0, self._limits.max_job_sequences))

    def plot_round(self, text: str, first_ordinal: int) -> Steps[Plotted]:
        """Plan a round of reduction: as many chunks as it takes, one if the text fits the window."""
        document = yield from read_document(text, self._tokenizer)
        assert document is not None, "no round is refused for its length"
        return (yield from self._plot_chunks(document, first_ordinal))

    def _plot_chunks(
        self, document: Document, first_ordinal: int, max_chunks: int | None = None
    ) -> Steps[Plotted]:
        text = document.text

        def excess(start: int, end: int) -> Steps[int]:
            return self._excess(text[start:end])

        spans = yield from split(document, self._capacity(), excess, max_chunks)
        if max_chunks is not None:
            check_job_size(len(spans), self._limits, self._field)
        is_last = len(spans) == 1  # of all others nobody reads the tokens, only the end
        requests: list[SequenceRequest] = []
        for span in spans:
            ordinal = first_ordinal + len(requests)
            requests.append((yield from self._request(text[span.start : span.end], ordinal, is_last)))
        total = document.num_tokens(0, len(text))
        strategy = "map_reduce" if len(spans) > 1 else "single"
        return Plotted(tuple(spans), tuple(requests), total, strategy=strategy)

    def _plot_single(self, text: str, overflow: Overflow) -> Steps[Plotted]:
        if overflow == "error" and not self._task.evidence:
            yield from check_can_fit(self._tokenizer, text.strip(), self._n_positions, self._field)
        start = 0
        total = count = len((yield from self._encode(text)))
        while True:
            excess = num_dropped(count, self._decoding, self._n_positions, overflow, self._field)
            if not excess or start >= len(text):
                break
            if self._task.evidence:  # the prompt holds but a few of the sentences: half of the text goes
                start = len(text) - (len(text) - start) // 2
            else:
                shorter = yield from drop_tokens(self._tokenizer, text[start:], excess)
                start = len(text) - len(shorter)
            count = len((yield from self._encode(text[start:])))
        if excess:  # nothing of the text is left, and still it does not fit
            num_dropped(count, self._decoding, self._n_positions, "error", self._field)
        request = yield from self._request(text[start:], 0, is_last=True)
        return Plotted((Span(start, len(text)),), (request,), count, total - count)

    def _encode(self, text: str) -> Steps[list[int]]:
        return render(self._task, self._tokenizer, self._fields(text))

    def _fields(self, text: str) -> dict[str, str]:
        return {self._field: text.strip()}

    def _excess(self, text: str) -> Steps[int]:
        ids = yield from self._encode(text)
        return len(ids) + self._decoding.max_new_tokens - self._n_positions

    def _room(self) -> int:
        """Tokens of text that fit one window beside template and new tokens."""
        template = self._task.encode(self._tokenizer, self._fields(""))
        return self._n_positions - len(template) - self._decoding.max_new_tokens

    def _capacity(self) -> int:
        """The same, if it is enough to summarise with."""
        capacity = self._room()
        if capacity < MIN_CHUNK_TOKENS:
            limit = capacity + self._decoding.max_new_tokens - MIN_CHUNK_TOKENS
            window = f"a window of {self._n_positions} tokens"
            raise PromptTooLong(
                f"max_new_tokens must be at most {limit}, or {window} has no room for text", "max_new_tokens"
            )
        return capacity

    def _request(self, text: str, ordinal: int, is_last: bool) -> Steps[SequenceRequest]:
        evidence = yield from read(self._task, self._fields(text))
        ids = yield from render_read(self._task, self._tokenizer, self._fields(text), evidence)
        room = self._n_positions - len(ids)
        params = replace(self._decoding.params, max_new_tokens=min(self._decoding.max_new_tokens, room))
        if self._task.extractive:
            automaton = SentenceAutomaton(evidence.text.split(SENTENCE_BREAK), self._tokenizer)
            params = replace(params, allowed_next=automaton, min_new_tokens=0)
        return SequenceRequest(tuple(ids), params, ordinal, self._is_streamed and is_last)

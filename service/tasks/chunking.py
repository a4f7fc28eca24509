"""Splits a document at sentence ends, exactly by tokens, with offsets in code points.

Borders are planned on one tokenisation of the whole text and then proven: each chunk is rendered and
tokenised as the model will see it, and shrinks until it fits. The cost is linear in the text, and in steps. A
text that makes too many chunks is given up as soon as that is certain. Read `documents` for what is planned
on, `summarize` and `qa` for the use.
"""

from __future__ import annotations

from collections.abc import Callable

from model_store.steps import Steps
from service.errors import PromptTooLong
from service.tasks.documents import Document, Span

_FILL = 0.9  # plan chunks this full, so that moving a border to a sentence end does not make one chunk more

_MAX_GROWTH = 2  # of a window over the one before it, in tokens

Excess = Callable[[int, int], Steps[int]]
"""Tokens by which `text[start:end]`, rendered and with its new tokens, exceeds the model's window."""


def split(
    document: Document, capacity: int, excess: Excess, max_spans: int | None = None
) -> Steps[list[Span]]:
    """Cut a document into chunks of similar size that tile it.

    Args:
        document: what to cut.
        capacity: tokens of text that fit one chunk, about; at least 1.
        excess: proves that a chunk fits (<= 0).
        max_spans: how many chunks are of use; None for any number.

    Returns:
        Chunks in order. None of them is blank, unless all of the text is. When there are more than
        `max_spans`, so many and one.

    Raises:
        PromptTooLong: one character does not fit.
    """
    spans = _Spans(document.text, max_spans)
    position = 0
    while position < len(document.text) and not spans.are_too_many:
        end = yield from _chunk_end(document, position, capacity, 0, position + 1, excess)
        spans.add(Span(position, end))
        position = end
    return _without_blanks(document.text, spans.taken)


def windows(
    document: Document, capacity: int, overlap: int, excess: Excess, max_spans: int | None = None
) -> Steps[list[Span]]:
    """Cut a document into overlapping windows that cover it.

    Args:
        document: what to cut.
        capacity: tokens of text that fit one window, about; at least 1.
        overlap: every run of at most so many tokens lies wholly in some window; well below `capacity`.
        excess: proves that a window fits (<= 0).
        max_spans: how many windows that are not blank are of use; None for any number.

    Returns:
        Windows in order; starts and ends both ascend. When more than `max_spans` are not blank, up to the
        first that is too many.

    Raises:
        PromptTooLong: one character does not fit.
    """
    spans = _Spans(document.text, max_spans)
    start = end = 0
    while end < len(document.text) and not spans.are_too_many:
        last = Span(start, end)
        start = _overlap_start(document, last, overlap) if end else 0
        # Where a window had to be much smaller than planned, so will its neighbour: beginning with all of the
        # capacity again would read the rest of the document once more for each.
        planned = min(capacity, _MAX_GROWTH * document.num_tokens(last.start, last.end)) if end else capacity
        end = yield from _chunk_end(document, start, planned, overlap, last.end + 1, excess)
        if end <= last.end:  # the overlap left no room to get on
            start = last.end
            end = yield from _chunk_end(document, start, planned, overlap, last.end + 1, excess)
        spans.add(Span(start, end))
    return spans.taken


class _Spans:
    """Spans taken so far, and whether more than `max_spans` of them have something to read."""

    def __init__(self, text: str, max_spans: int | None) -> None:
        self.taken: list[Span] = []
        self._text, self._max_spans = text, max_spans
        self._num_read = 0

    def add(self, span: Span) -> None:
        """Add the next one."""
        self.taken.append(span)
        self._num_read += not _is_blank(self._text, span)

    @property
    def are_too_many(self) -> bool:
        """Whether it is certain that there are more than are of use."""
        return self._max_spans is not None and self._num_read > self._max_spans


def _overlap_start(document: Document, last: Span, overlap: int) -> int:
    """Where the next window begins: at a border at least `overlap` tokens before the last one's end."""
    latest = document.reach_back(last.end, overlap)
    earliest = max(document.reach_back(last.end, overlap + overlap // 2), last.start + 1)
    if earliest > latest:
        return max(latest, last.start + 1)
    return document.best_border(earliest, latest, latest)


def _chunk_end(
    document: Document, start: int, capacity: int, overlap: int, floor: int, excess: Excess
) -> Steps[int]:
    """Choose a chunk's end: near an equal share of what is left, at a good border, proven to fit.

    `floor` is the least end that gets on; a chunk that must be shorter to fit may end before it.
    """
    step = 0  # what is read of a chunk may hardly depend on its length: then it must shrink faster
    while True:
        end = _planned_end(document, start, capacity, overlap, floor)
        too_many = yield from excess(start, end)
        if too_many <= 0:
            return end
        if end <= start + 1:
            raise PromptTooLong("the model's window leaves no room for a single character of the text")
        capacity = min(capacity, document.num_tokens(start, end))
        capacity = max(capacity - max(too_many, step), 0)
        step = capacity // 4


def _planned_end(document: Document, start: int, capacity: int, overlap: int, floor: int) -> int:
    size = len(document.text)
    left = document.num_tokens(start, size)
    if left <= capacity:
        return size
    furthest = max(document.reach(start, capacity), start + 1)
    usable = max(int(capacity * _FILL), overlap + 1, 1)
    count = max(-(-(left - overlap) // (usable - overlap)), 2)
    share = min(-(-(left + (count - 1) * overlap) // count), capacity)
    lowest = min(max(document.reach(start, share * 2 // 3), floor, start + 1), furthest)
    wanted = min(max(document.reach(start, share), lowest), furthest)
    return document.best_border(lowest, furthest, wanted)


def _without_blanks(text: str, spans: list[Span]) -> list[Span]:
    """Give chunks of nothing but white space to their neighbours: stripped, those stay what they were."""
    merged: list[Span] = []
    for span in spans:
        if merged and (_is_blank(text, span) or _is_blank(text, merged[-1])):
            merged[-1] = Span(merged[-1].start, span.end)
        else:
            merged.append(span)
    return merged


def _is_blank(text: str, span: Span) -> bool:
    return not text[span.start : span.end].strip()


def stripped(text: str, span: Span) -> Span:
    """The span without the white space at its ends; empty at its start when there is nothing else."""
    part = text[span.start : span.end]
    lead = len(part) - len(part.lstrip())
    trail = len(part) - len(part.rstrip())
    return Span(span.start + lead, span.end - trail) if lead < len(part) else Span(span.start, span.start)

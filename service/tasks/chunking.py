"""Splits a document at sentence ends, exactly by tokens, with offsets in code points.

Borders are planned on one tokenisation of the whole text and then proven: each chunk is rendered and
tokenised as the model will see it, and shrinks until it fits. The cost is linear in the text. Read
`summarize` and `qa` for the use.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from model_store.borders import clause_ends, sentence_ends, splits_character, word_ends
from model_store.tokenizer import Tokenizer
from service.errors import PromptTooLong

_SLICE = 8192  # code points tokenised at once: a bound on how long the interpreter lock is held
_FILL = 0.9  # plan chunks this full, so that moving a border to a sentence end does not make one chunk more

Excess = Callable[[int, int], int]
"""Tokens by which `text[start:end]`, rendered and with its new tokens, exceeds the model's window."""


@dataclass(frozen=True, slots=True)
class Span:
    """`text[start:end]`, in code points."""

    start: int
    end: int


class Document:
    """A text with its token starts and its borders.

    Args:
        text: any text.
        tokenizer: measures it.
    """

    def __init__(self, text: str, tokenizer: Tokenizer) -> None:
        self.text = text
        self._starts = token_starts(text, tokenizer)  # ascending; a character of several tokens has several
        self._borders = (sentence_ends(text), clause_ends(text), word_ends(text))  # best first

    def num_tokens(self, start: int, end: int) -> int:
        """Tokens that begin in `text[start:end]`."""
        return bisect_left(self._starts, end) - bisect_left(self._starts, start)

    def reach(self, start: int, num_tokens: int) -> int:
        """The furthest end such that `text[start:end]` has at most `num_tokens`; `start` if there is none."""
        place = bisect_left(self._starts, start) + max(num_tokens, 0)
        return max(self._starts[place], start) if place < len(self._starts) else len(self.text)

    def reach_back(self, end: int, num_tokens: int) -> int:
        """The last start such that `text[start:end]` has at least `num_tokens`; 0 if there is none."""
        place = bisect_left(self._starts, end) - num_tokens
        return self._starts[place] if place > 0 else 0

    def best_border(self, low: int, high: int, wanted: int) -> int:
        """The border in [low, high] of the best kind, and of these the one nearest to `wanted`.

        Without any border of a kind, `wanted` itself, moved off the middle of a character if that is
        possible.
        """
        for borders in self._borders:
            place = bisect_left(borders, wanted)
            near = [p for p in borders[max(place - 1, 0) : place + 1] if low <= p <= high]
            if near:
                return min(near, key=lambda p: abs(p - wanted))
        whole = (
            p for p in range(wanted, max(low, wanted - 64) - 1, -1) if not splits_character(self.text, p)
        )
        return next(whole, wanted)


def token_starts(text: str, tokenizer: Tokenizer) -> list[int]:
    """Tokenise a text slice by slice (cut before white space where there is some) and list the tokens'
    starts.
    """
    starts: list[int] = []
    position = 0
    while position < len(text):
        end = _slice_end(text, position)
        _, offsets = tokenizer.encode_with_offsets(text[position:end])
        for start, _ in offsets:
            starts.append(max(position + start, starts[-1] if starts else 0))
        position = end
    return starts


def _slice_end(text: str, start: int) -> int:
    end = start + _SLICE
    if end >= len(text):
        return len(text)
    return next((p for p in range(end, start + _SLICE // 2, -1) if text[p].isspace()), end)


def split(document: Document, capacity: int, excess: Excess) -> list[Span]:
    """Cut a document into chunks of similar size that tile it.

    Args:
        document: what to cut.
        capacity: tokens of text that fit one chunk, about; at least 1.
        excess: proves that a chunk fits (<= 0).

    Returns:
        Chunks in order. None of them is blank, unless all of the text is.

    Raises:
        PromptTooLong: one character does not fit.
    """
    spans: list[Span] = []
    position = 0
    while position < len(document.text):
        end = _chunk_end(document, position, capacity, 0, position + 1, excess)
        spans.append(Span(position, end))
        position = end
    return _without_blanks(document.text, spans)


def windows(document: Document, capacity: int, overlap: int, excess: Excess) -> list[Span]:
    """Cut a document into overlapping windows that cover it.

    Args:
        document: what to cut.
        capacity: tokens of text that fit one window, about; at least 1.
        overlap: every run of at most so many tokens lies wholly in some window; well below `capacity`.
        excess: proves that a window fits (<= 0).

    Returns:
        Windows in order; starts and ends both ascend.

    Raises:
        PromptTooLong: one character does not fit.
    """
    size = len(document.text)
    spans = [Span(0, _chunk_end(document, 0, capacity, overlap, 1, excess))]
    while spans[-1].end < size:
        last = spans[-1]
        start = _overlap_start(document, last, overlap)
        end = _chunk_end(document, start, capacity, overlap, last.end + 1, excess)
        if end <= last.end:  # the overlap left no room to get on
            start, end = last.end, _chunk_end(document, last.end, capacity, overlap, last.end + 1, excess)
        spans.append(Span(start, end))
    return spans


def _overlap_start(document: Document, last: Span, overlap: int) -> int:
    """Where the next window begins: at a border at least `overlap` tokens before the last one's end."""
    latest = document.reach_back(last.end, overlap)
    earliest = max(document.reach_back(last.end, overlap + overlap // 2), last.start + 1)
    if earliest > latest:
        return max(latest, last.start + 1)
    return document.best_border(earliest, latest, latest)


def _chunk_end(
    document: Document, start: int, capacity: int, overlap: int, floor: int, excess: Excess
) -> int:
    """Choose the end of the chunk at `start`: near an equal share of what is left, at a good border, proven
    to fit.

    `floor` is the least end that gets on; a chunk that must be shorter to fit may end before it.
    """
    step = 0  # what is read of a chunk may hardly depend on its length: then it must shrink faster
    while True:
        end = _planned_end(document, start, capacity, overlap, floor)
        too_many = excess(start, end)
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

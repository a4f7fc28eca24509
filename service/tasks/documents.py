"""A text with its tokens and its borders: what chunks and windows are planned on. Offsets are code points.

It is read in steps, and no further than it takes to know that it has too many tokens.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from model_store.borders import clause_ends, sentence_ends, whole_characters, word_ends
from model_store.steps import Steps
from model_store.tokenizer import Tokenizer
from service.tasks.rendering import SLICE

_PIECE = 32768  # code points whose borders are found at once
_LONGEST_PIECE = 2**18  # without a letter or digit: no border in there is worth more of the lock
_BEFORE = 64  # code points before a piece that may decide about a border in it: an abbreviation, a joiner
_WORDY = re.compile(r"[^\W_]")


@dataclass(frozen=True, slots=True)
class Span:
    """`text[start:end]`, in code points."""

    start: int
    end: int


class Document:
    """A text with its token starts and its borders.

    Args:
        text: any text.
        starts: of its tokens, ascending; a character of several tokens has several.
        borders: where it may be cut, by kind, the best first; each ascending.
    """

    def __init__(self, text: str, starts: Sequence[int], borders: Sequence[Sequence[int]]) -> None:
        self.text = text
        self._starts = starts
        self._borders = borders

    def num_tokens(self, start: int, end: int) -> int:
        """Tokens that begin in `text[start:end]`."""
        return bisect_left(self._starts, end) - bisect_left(self._starts, start)

    def reach(self, start: int, num_tokens: int) -> int:
        """The furthest end such that `text[start:end]` has at most `num_tokens`; `start` if there is none."""
        index = bisect_left(self._starts, start) + max(num_tokens, 0)
        return max(self._starts[index], start) if index < len(self._starts) else len(self.text)

    def reach_back(self, end: int, num_tokens: int) -> int:
        """The last start such that `text[start:end]` has at least `num_tokens`; 0 if there is none."""
        index = bisect_left(self._starts, end) - num_tokens
        return self._starts[index] if index > 0 else 0

    def best_border(self, low: int, high: int, wanted: int) -> int:
        """The border in [low, high] of the best kind, and of these the one nearest to `wanted`.

        Without any border of a kind, `wanted` itself, moved off the middle of a character if that is
        possible.
        """
        for borders in self._borders:
            index = bisect_left(borders, wanted)
            near = [p for p in borders[max(index - 1, 0) : index + 1] if low <= p <= high]
            if near:
                return min(near, key=lambda p: abs(p - wanted))
        return whole_characters(self.text, wanted, low)


def read_document(text: str, tokenizer: Tokenizer, max_tokens: int | None = None) -> Steps[Document | None]:
    """Tokenise a text and find its borders.

    Args:
        text: any text.
        tokenizer: measures it.
        max_tokens: how many tokens are of use, those of white space not counted; None for any number.

    Returns:
        The document; None when it has more tokens than `max_tokens`.
    """
    starts = yield from token_starts(text, tokenizer, max_tokens)
    if starts is None:
        return None
    return Document(text, starts, (yield from borders_of(text)))


def token_starts(text: str, tokenizer: Tokenizer, max_tokens: int | None = None) -> Steps[list[int] | None]:
    """Tokenise a text slice by slice (cut before white space where there is some) and list the tokens'
    starts; see `read_document`.
    """
    starts: list[int] = []
    position, num_blank = 0, 0
    while position < len(text):
        end = min(position + SLICE, len(text))
        if end < len(text):
            end = next((p for p in range(end, position + SLICE // 2, -1) if text[p].isspace()), end)
        part = text[position:end]
        _, offsets = tokenizer.encode_with_offsets(part)
        for start, _ in offsets:
            starts.append(max(position + start, starts[-1] if starts else 0))
        num_blank += sum(not part[slice(*offset)].strip() for offset in offsets)
        if max_tokens is not None and len(starts) - num_blank > max_tokens:
            return None
        position = end
        yield
    return starts


def borders_of(text: str) -> Steps[tuple[list[int], list[int], list[int]]]:
    """Sentence ends, clause ends and word ends, found piece by piece."""
    kinds = (sentence_ends, clause_ends, word_ends)
    borders: tuple[list[int], list[int], list[int]] = ([], [], [])
    start = 0
    while start < len(text):
        # A piece ends before a letter or digit: no border's marks and white space go on across it.
        longest = min(start + _LONGEST_PIECE, len(text))
        wordy = _WORDY.search(text, start + _PIECE, longest)
        low, end = max(start - _BEFORE, 0), longest if wordy is None else wordy.start()
        piece = text[low : end + 1]  # what follows decides, too
        for ends, kind in zip(borders, kinds, strict=True):
            ends += [low + at for at in kind(piece) if start < low + at <= end]
        start = end
        yield
    return borders

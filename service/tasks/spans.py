"""Which tokens may come next if an answer has to be a piece of the context: an automaton over the context's
bytes.

A state is a set of (start, position) pairs: the answer so far may be `data[start:position]` for any of them.
A token is allowed if its bytes go on with the context at one of the positions, and the answer may end where a
word ends. One space before the answer is not part of it; punctuation alone is no answer.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from model_store.borders import modifiers, word_starts_and_ends
from service.tasks.vocabulary import Reading, Vocabulary

State = tuple[int, int]  # where the answer starts, where it is now; bytes
FINISH_TOKENS = 8  # tokens an answer may have beyond its limit to complete a word


class Automaton(Protocol):
    """What the search needs to know about answers that are possible."""

    def __call__(self, output_ids: Sequence[int]) -> Sequence[int]:
        """Ids allowed next, never none; the end id among them means the answer may end here."""
        ...


class SpanText:
    """A window of the context as the automaton reads it.

    Args:
        text: the window.
        reading: how the tokenizer reads text (whether case and accents are lost).
    """

    def __init__(self, text: str, reading: Reading) -> None:
        data, byte_at = _folded(text, reading)
        starts, ends = word_starts_and_ends(text)
        meant = _next_meaningful(text)
        self.data = data
        # A word of which the tokenizer sees nothing is no answer.
        self._start_at = {
            byte_at[p]: p
            for p in starts
            if meant[p] < len(text) and byte_at[meant[p]] < byte_at[meant[p] + 1]
        }
        self._end_at = {byte_at[p]: p for p in reversed(ends)}
        self.min_end = {byte: byte_at[meant[p] + 1] for byte, p in self._start_at.items()}
        self.starts = list(self._start_at)
        self.ends = self._end_at.keys()
        self.borders = frozenset((*self.starts, *self.ends))

    def is_answer(self, state: State) -> bool:
        """Whether an answer may end here: behind a word, and not only of punctuation."""
        return state[1] in self.ends and state[1] >= self.min_end[state[0]]

    def points(self, state: State) -> tuple[int, int]:
        """The state's span in code points of the window."""
        return self._start_at[state[0]], self._end_at[state[1]]


def _folded(text: str, reading: Reading) -> tuple[bytes, list[int]]:
    """A text as the tokenizer sees it, and where each character of it starts there, the end included.

    Characters that combine (one with its marks, Hangul letters in a row) are folded together, and all but the
    first of them start where the next one does.
    """
    data, byte_at = bytearray(), [0]
    pattern = r"(?s:.)" if text.isascii() else rf"[\u1100-\u11ff]+|(?s:.)[{modifiers()}]*"
    for cluster in re.findall(pattern, text):
        data += reading.fold(cluster).encode()
        byte_at += [len(data)] * len(cluster)
    return bytes(data), byte_at


def _next_meaningful(text: str) -> list[int]:
    """For each position, the next character (there or later) that is neither space nor punctuation."""
    following = [len(text)] * (len(text) + 1)
    for index in range(len(text) - 1, -1, -1):
        character = text[index]
        is_meaningful = character.isalnum() or unicodedata.category(character)[0] not in "PZC"
        following[index] = index if is_meaningful else following[index + 1]
    return following


@dataclass(frozen=True, slots=True)
class _Node:
    """What may follow one sequence of output tokens."""

    following: dict[int, list[State]]
    span: State | None  # the first in the context, if the answer may end here
    allowed: tuple[int, ...]


class SpanAutomaton:
    """Allows exactly the spans of a text from word border to word border.

    Args:
        text: the window.
        vocabulary: the tokenizer's tokens by their bytes.
        end_id: the token that ends an answer.
        max_tokens: answers do not go on after so many tokens, except to complete a word.
        stop: strings that no answer may hold.

    Cost: the first step walks once over the words of the window; every other step over the few places where
        the
    answer so far occurs. Steps are remembered, so sequences that share a beginning share the work.
    """

    def __init__(
        self, text: str, vocabulary: Vocabulary, end_id: int, max_tokens: int, stop: Sequence[str] = ()
    ) -> None:
        self._text = SpanText(text, vocabulary)
        self._vocabulary = vocabulary
        self._end_id = end_id
        self._max_tokens = max_tokens
        self._stop = tuple(vocabulary.fold(item).encode() for item in stop)
        first = [(start, start) for start in self._text.starts]
        self._nodes: dict[tuple[int, ...], _Node] = {(): self._expand(first, 0)}

    def __call__(self, output_ids: Sequence[int]) -> Sequence[int]:
        """Ids allowed after `output_ids`, never none; the end id alone when nothing else goes on."""
        return self._node(tuple(output_ids)).allowed

    def span(self, output_ids: Sequence[int]) -> tuple[int, int] | None:
        """The answer that `output_ids` (without the end) spell: code points of its first place, or None."""
        span = self._node(tuple(output_ids)).span
        return None if span is None else self._text.points(span)

    def _node(self, output_ids: tuple[int, ...]) -> _Node:
        node = self._nodes.get(output_ids)
        if node is None:
            states = self._node(output_ids[:-1]).following.get(output_ids[-1], [])
            node = self._nodes[output_ids] = self._expand(states, len(output_ids))
        return node

    def _expand(self, states: list[State], length: int) -> _Node:
        ending = [state for state in states if self._text.is_answer(state)]
        following: dict[int, list[State]] = {}
        if not (ending and length >= self._max_tokens):
            for token_id, state in self._steps(states, is_first=length == 0):
                following.setdefault(token_id, []).append(state)
        following.pop(self._end_id, None)
        can_end = bool(ending) or not following
        allowed = (*following, self._end_id) if can_end else tuple(following)
        return _Node(following, min(ending, default=None), allowed)

    def _steps(self, states: list[State], is_first: bool) -> Iterator[tuple[int, State]]:
        for start, position in states:
            for token_id, reached in self._vocabulary.steps(self._text, position, is_first):
                if not any(self._text.data.find(item, start, reached) >= 0 for item in self._stop):
                    yield token_id, (start, reached)


@dataclass(frozen=True, slots=True)
class Continued:
    """An automaton for sequences whose prompt holds the beginning of the answer.

    Args:
        prefix_ids: the beginning.
        automaton: of whole answers.
    """

    prefix_ids: tuple[int, ...]
    automaton: Automaton

    def __call__(self, output_ids: Sequence[int]) -> Sequence[int]:
        """Ids allowed after the beginning and `output_ids`."""
        return self.automaton((*self.prefix_ids, *output_ids))

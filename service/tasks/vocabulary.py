"""A tokenizer's tokens by their bytes: which of them can go on with a text at a place.

Two ways of writing: byte-level (and SentencePiece) tokens carry their spaces; WordPiece tokens imply them.
Both are learned from `Tokenizer.piece`, not from names of tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from model_store.borders import is_cjk
from model_store.tokenizer import Tokenizer

_LONGEST = 256  # bytes of a token, beyond any real one: each of its beginnings is kept


class Reading(Protocol):
    """What the tokenizer makes of a text."""

    def fold(self, text: str) -> str:
        """The text as the tokenizer sees it, longer or shorter than it was."""
        ...


class Place(Protocol):
    """What a step needs of the text."""

    data: bytes
    borders: frozenset[int]


class Tokens:
    """Tokens by bytes, found by walking along a text."""

    def __init__(self) -> None:
        self._ids: dict[bytes, list[int]] = {}
        self._beginnings: set[bytes] = set()

    def add(self, piece: bytes, token_id: int) -> None:
        """Add a token that writes `piece`; one that is longer than any real one is never found."""
        if len(piece) > _LONGEST:
            return
        self._ids.setdefault(piece, []).append(token_id)
        self._beginnings.update(piece[:length] for length in range(1, len(piece)))

    def walk(self, data: bytes, start: int) -> Iterator[tuple[int, int]]:
        """Yield (token id, where it ends) for every token that `data` has at `start`."""
        for end in range(start + 1, len(data) + 1):
            part = data[start:end]
            for token_id in self._ids.get(part, ()):
                yield token_id, end
            if part not in self._beginnings:
                return


class Vocabulary:
    """All tokens of a tokenizer that write something.

    Args:
        tokenizer: the model's.

    Cost: one pass over the vocabulary; build it once per model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.fold = tokenizer.normalized
        self._own = Tokens()  # what a token writes by itself
        self._joined = Tokens()  # WordPiece: tokens that go on within a word
        self.implies_spaces = False
        if not tokenizer.is_contextual:
            self._own = _all_tokens(tokenizer)
            return
        pieces = ((token_id, tokenizer.piece(None, token_id)) for token_id in range(tokenizer.vocab_size))
        # A token of ASCII letters, to see what others write after it.
        probe = next((token_id for token_id, piece in pieces if piece.isalpha()), None)
        for token_id in range(tokenizer.vocab_size):
            own = tokenizer.piece(None, token_id)
            if not own or tokenizer.is_special(token_id):
                continue
            after = tokenizer.piece(probe, token_id)
            self.implies_spaces = self.implies_spaces or after == b" " + own
            if after == own:
                self._joined.add(own, token_id)
            if after != own or is_cjk(own.decode("utf-8", "replace")[0]):
                self._own.add(own, token_id)
        if not self.implies_spaces:
            self._own = _all_tokens(tokenizer)

    def steps(self, place: Place, position: int, is_first: bool) -> Iterator[tuple[int, int]]:
        """Yield (token id, position after it) for every token that can come at a position of the text.

        Args:
            place: the text.
            position: in bytes.
            is_first: whether no token came before; then one space may be written that the text does not have.
        """
        if self.implies_spaces:
            yield from self._wordpiece_steps(place, position, is_first)
            return
        yield from self._own.walk(place.data, position)
        if is_first:
            spaced = b" " + place.data[position : position + _LONGEST]
            for token_id, end in self._own.walk(spaced, 0):
                yield token_id, position + end - 1

    def _wordpiece_steps(self, place: Place, position: int, is_first: bool) -> Iterator[tuple[int, int]]:
        """Words skip the white space before them; what is joined has none."""
        data = place.data
        word = position
        while word < len(data) and data[word : word + 1].isspace():
            word += 1
        if is_first or word > position or position in place.borders:
            yield from self._own.walk(data, word)
        if word == position and not is_first:
            yield from self._joined.walk(data, position)


def _all_tokens(tokenizer: Tokenizer) -> Tokens:
    tokens = Tokens()
    for token_id in range(tokenizer.vocab_size):
        piece = tokenizer.piece(None, token_id)
        if piece and not tokenizer.is_special(token_id):
            tokens.add(piece, token_id)
    return tokens

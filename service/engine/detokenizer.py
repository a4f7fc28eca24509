"""Ids to text, as they come: UTF-8 safe, and stop strings held back no longer than needed.

The deltas of one sequence put together are its text, however many tokens a step brings. Nothing else in the
service turns generated ids into text.
"""

from __future__ import annotations

import codecs
import collections.abc
import copy
from typing import Protocol, Self


class TokenPieces(Protocol):
    """What the engine needs of a tokenizer."""

    @property
    def eos_id(self) -> int:
        """The end-of-text id."""
        ...

    def piece(self, previous_id: int | None, token_id: int) -> bytes:
        """The bytes this token adds to a text; empty for special tokens."""
        ...

    def is_special(self, token_id: int) -> bool:
        """Whether a token is a mark and no text."""
        ...

    def special_piece(self, previous_id: int | None, token_id: int) -> bytes:
        """The bytes a special token has where it is shown."""
        ...


class Detokenizer:
    """Text of one sequence.

    Args:
        pieces: gives the bytes of a token.
        stop: stop strings; the text ends before the first one.
        prompt_ids: what the text goes on from; a word's first token may imply a space after it.
        shows_specials: whether special tokens are part of the text.
        shows_stop: whether the stop string is.
    """

    def __init__(
        self,
        pieces: TokenPieces,
        stop: collections.abc.Sequence[str] = (),
        prompt_ids: collections.abc.Sequence[int] = (),
        shows_specials: bool = False,
        shows_stop: bool = False,
    ) -> None:
        self._pieces = pieces
        self._stop = tuple(stop)
        self._shows_specials, self._shows_stop = shows_specials, shows_stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._previous_id = last_of_text(pieces, prompt_ids)
        self._held = ""  # decoded, not yet shown: it may be the start of a stop string
        self.is_stopped = False

    def push(self, token_id: int) -> str:
        """Add a token and return the text that can be shown now.

        Half a character waits for its other half; bytes that can be no character become U+FFFD. After a stop
        string was found, `is_stopped` is true and no further token may come.
        """
        if not self._pieces.is_special(token_id):
            piece = self._pieces.piece(self._previous_id, token_id)
            self._previous_id = token_id
        else:
            is_shown = self._shows_specials
            piece = self._pieces.special_piece(self._previous_id, token_id) if is_shown else b""
        text = self._decoder.decode(piece)
        if not self._stop:
            return text
        self._held += text
        position = self._find_stop()
        if position is None:
            return self._show(len(self._held) - self._possible_stop_length())
        self.is_stopped = True
        self._held = self._held[:position]
        return self._show(position)

    def fork(self) -> Self:
        """Another one that goes on from here by itself."""
        forked = copy.copy(self)
        forked._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        forked._decoder.setstate(self._decoder.getstate())
        return forked

    def finish(self) -> str:
        """Return what was held back for a stop string that did not come. Half a character is dropped."""
        return self._show(len(self._held))

    def _show(self, length: int) -> str:
        shown, self._held = self._held[:length], self._held[length:]
        return shown

    def _find_stop(self) -> int | None:
        """Where the text ends: at the stop string that is complete first, wherever tokens have borders."""
        ends = [(at + len(stop), at) for stop in self._stop if (at := self._held.find(stop)) >= 0]
        return min(ends)[0 if self._shows_stop else 1] if ends else None

    def _possible_stop_length(self) -> int:
        """Length of the longest tail that is the start of a stop string."""
        longest = max(len(stop) for stop in self._stop) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            tail = self._held[-length:]
            if any(stop.startswith(tail) for stop in self._stop):
                return length
        return 0


def last_of_text(pieces: TokenPieces, ids: collections.abc.Sequence[int]) -> int | None:
    """The last token that is no mark; None where there is none."""
    return next((token_id for token_id in reversed(ids) if not pieces.is_special(token_id)), None)

"""Log probabilities as a reply tells them: texts and offsets beside the numbers.

A token with ten alternatives takes more than a kilobyte as objects, and a request may ask for hundreds of
thousands of tokens. They are kept as numbers and become `TokenScore`s when they are read. Read `generate` for
the use.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from math import isnan, nan

from model_store.tokenizer import Tokenizer
from service.engine.sequence import TokenLogprob
from service.tasks.calls import TokenScore


class Scorer:
    """Gives tokens their texts and offsets, one after the other.

    Args:
        tokenizer: the model's.
        offset: of the first token, in code points.
        previous_id: the last token of text before it; None at the start of a text.
    """

    def __init__(self, tokenizer: Tokenizer, offset: int, previous_id: int | None = None) -> None:
        self._tokenizer, self._offset = tokenizer, offset
        self._previous_id = previous_id

    def score(self, entry: TokenLogprob) -> TokenScore:
        """The next token's."""

        def as_text(token_id: int) -> str:
            return self._tokenizer.piece(self._previous_id, token_id).decode("utf-8", "replace")

        piece = self._tokenizer.piece(self._previous_id, entry.token_id)
        continues = bool(piece) and piece[0] & 0xC0 == 0x80  # goes on with a character that began before
        offset = max(self._offset - continues, 0)
        top = tuple((as_text(token_id), logprob) for token_id, logprob in entry.top)
        top_ids = tuple(token_id for token_id, _ in entry.top)
        text = piece.decode("utf-8", "replace")
        score = TokenScore(entry.token_id, text, offset, entry.logprob, top, piece, top_ids)
        self._offset += sum(byte & 0xC0 != 0x80 for byte in piece)
        if not self._tokenizer.is_special(entry.token_id):
            self._previous_id = entry.token_id
        return score


class Scores:
    """The scores of one choice, in order; each time they are read, they are made anew.

    Args:
        tokenizer: the model's.
        offset: of the first token, in code points.
        previous_id: the last token of text before it; None at the start of a text.
    """

    def __init__(self, tokenizer: Tokenizer, offset: int, previous_id: int | None = None) -> None:
        self._tokenizer, self._offset, self._previous_id = tokenizer, offset, previous_id
        self._ids, self._logprobs = array("i"), array("d")  # NaN where there is no logprob
        self._top_ids, self._top_logprobs = array("i"), array("d")
        self._top_ends = array("q")  # in these, of each token

    def add(self, entries: Iterable[TokenLogprob]) -> None:
        """Take the next tokens in."""
        for entry in entries:
            self._ids.append(entry.token_id)
            self._logprobs.append(nan if entry.logprob is None else entry.logprob)
            self._top_ids.extend(token_id for token_id, _ in entry.top)
            self._top_logprobs.extend(logprob for _, logprob in entry.top)
            self._top_ends.append(len(self._top_ids))

    def __len__(self) -> int:
        """Tokens."""
        return len(self._ids)

    def __iter__(self) -> Iterator[TokenScore]:
        """All of them."""
        scorer, start = Scorer(self._tokenizer, self._offset, self._previous_id), 0
        for token_id, logprob, end in zip(self._ids, self._logprobs, self._top_ends, strict=True):
            top = tuple(zip(self._top_ids[start:end], self._top_logprobs[start:end], strict=True))
            yield scorer.score(TokenLogprob(token_id, None if isnan(logprob) else logprob, top))
            start = end

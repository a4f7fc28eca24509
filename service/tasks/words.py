"""A vocabulary as llguidance is told of it, which works on bytes: each token as the bytes that it writes."""

from __future__ import annotations

from collections.abc import Sequence

import llguidance
import numpy as np
from numpy.typing import NDArray

from model_store.borders import is_cjk
from model_store.tokenizer import Tokenizer

MAX_SHORT_TEXTS, _SHORT_CHARS = 4096, 64  # forced texts whose ids are kept


class Words:
    """A tokenizer's tokens as llguidance is told of them, each as what it writes behind a word.

    Some tokenizers imply spaces, so that a token writes something else at the start of a text or behind a
    Chinese character. There such a token is not allowed: the text would not be what llguidance took it for.

    Args:
        tokenizer: the model's. Cost: one pass over the vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        ids = range(tokenizer.vocab_size)
        behind_word = behind_cjk = alone = [tokenizer.piece(None, token_id) for token_id in ids]
        if tokenizer.is_contextual:
            word = next((token_id for token_id in ids if alone[token_id].isalpha()), None)
            behind_word = [tokenizer.piece(word, token_id) for token_id in ids]
            cjk = next((token_id for token_id in ids if _ends_with_cjk(alone[token_id])), None)
            behind_cjk = [tokenizer.piece(cjk, token_id) for token_id in ids]
        self._otherwise_first = _bits([a != b for a, b in zip(alone, behind_word, strict=True)])
        self._otherwise_behind_cjk = _bits([a != b for a, b in zip(behind_cjk, behind_word, strict=True)])
        self._implies_spaces = bool(self._otherwise_first.any())
        self.ends = _bits([token_id in tokenizer.eos_token_ids for token_id in ids])
        specials = [token_id for token_id in ids if tokenizer.is_special(token_id)]
        names = {token_id: f"<|{token_id}|>".encode() for token_id in (*specials, *tokenizer.eos_token_ids)}
        # what llguidance's wrapper reads
        self.tokens = [names.get(token_id, behind_word[token_id]) for token_id in ids]
        self.special_token_ids = sorted(names)
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, None
        self._ids_of: dict[str, list[int]] = {}  # what is forced is mostly a key of a schema, again and again
        self.backend = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(self),
            n_vocab=tokenizer.vocab_size,
            eos_token=list(tokenizer.eos_token_ids),
        )

    def __call__(self, text: str) -> list[int]:
        """Give the ids of a text within another, for llguidance, which forces them where only one text can
        follow. A tokenizer that implies spaces would write one before it.
        """
        ids = self._ids_of.get(text)
        if ids is None:
            encode = self.backend.greedy_tokenize if self._implies_spaces else self.tokenizer.encode
            ids = encode(text)
            if len(text) <= _SHORT_CHARS and len(self._ids_of) < MAX_SHORT_TEXTS:
                self._ids_of[text] = ids
        return ids

    def otherwise(self, previous_id: int | None) -> NDArray[np.uint8] | None:
        """Bits of the tokens that write something else than llguidance was told behind this one."""
        if not self._implies_spaces:
            return None
        if previous_id is None:
            return self._otherwise_first
        is_behind_cjk = _ends_with_cjk(self.tokenizer.piece(None, previous_id))
        return self._otherwise_behind_cjk if is_behind_cjk else None

    def kept(self, previous_id: int | None, ids: list[int]) -> list[int]:
        """Those of some tokens, one behind the other, before the first that writes something else than
        llguidance was told.
        """
        for at, token_id in enumerate(ids if self._implies_spaces else ()):
            otherwise = self.otherwise(previous_id)
            if otherwise is not None and otherwise[token_id // 8] >> token_id % 8 & 1:
                return ids[:at]
            previous_id = token_id
        return ids


def _bits(flags: Sequence[bool]) -> NDArray[np.uint8]:
    """Flags as whole words of 32 bits, lowest bit first."""
    padded = np.zeros(-(-len(flags) // 32) * 32, np.bool_)
    padded[: len(flags)] = flags
    return np.packbits(padded, bitorder="little")


def _ends_with_cjk(piece: bytes) -> bool:
    text = piece.decode(errors="replace")
    return bool(text) and is_cjk(text[-1])

"""Logits processors: each changes the logits of the rows that ask for it and leaves the others alone.

Same order and same arithmetic as transformers' processors of the same names; the frequency and presence
penalties follow OpenAI's definition. `sampler` draws from what is left.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from service.engine.draw_memo import DrawMemo
from service.engine.sequence import SamplingParams, TokenMask

_STRONGEST = 1e30  # stands for infinity; divided by any temperature it stays finite


@dataclass(slots=True)
class SampleRow:
    """One row to sample: whose it is and which text stands before it, drafts included."""

    params: SamplingParams
    prompt_ids: Sequence[int]
    output_ids: Sequence[int]
    ordinal: int = 0
    num_drafts: int = 0  # how many of the last output ids are guesses
    memo: DrawMemo = field(default_factory=DrawMemo)  # its sequence's
    kind_of_draw: str = ""  # rows of one kind are drawn, and timed, together
    allowed: Sequence[int] | TokenMask | None = None  # by its constraint, once it was asked
    asked_s: float = 0.0  # how long the step waited for that

    def ask(self) -> Sequence[int] | TokenMask | None:
        """What its constraint allows; None where it has none."""
        if self.allowed is None and self.params.allowed_next is not None:
            self.allowed = self.params.allowed_next(self.output_ids)
        return self.allowed


def is_plain(params: SamplingParams, num_output: int) -> bool:
    """Whether no processor touches this row, so that a greedy choice is the raw argmax."""
    return (
        params.repetition_penalty == 1.0
        and params.frequency_penalty == 0.0
        and params.presence_penalty == 0.0
        and params.no_repeat_ngram_size == 0
        and num_output >= params.min_new_tokens
        and not params.logit_bias
        and params.allowed_next is None
    )


def process(logits: Tensor, rows: Sequence[SampleRow], end_ids: Sequence[int]) -> None:
    """Apply every processor to every row that asks for it, in place.

    Args:
        logits: (R, vocab) float32.
        rows: one per row of logits.
        end_ids: ids that end a text, forbidden while `min_new_tokens` is not reached.
    """
    for row_logits, row in zip(logits, rows, strict=True):
        if not is_plain(row.params, len(row.output_ids)):
            _process_row(row_logits, row, end_ids)


def _process_row(logits: Tensor, row: SampleRow, end_ids: Sequence[int]) -> None:
    params = row.params
    if params.repetition_penalty != 1.0:
        _penalise_repetition(logits, row, params.repetition_penalty)
    if params.frequency_penalty or params.presence_penalty:
        _penalise_counts(logits, row.output_ids, params)
    if params.no_repeat_ngram_size:
        banned = _repeating_ids([*row.prompt_ids, *row.output_ids], params.no_repeat_ngram_size)
        _forbid(logits, banned)
    if len(row.output_ids) < params.min_new_tokens:
        _forbid(logits, [*end_ids, *params.stop_token_ids])
    if params.logit_bias:
        ids, values = zip(*params.logit_bias, strict=True)
        logits[list(ids)] += torch.tensor(values, device=logits.device)
    allowed = row.ask()
    if allowed is not None:
        _allow_only(logits, allowed, end_ids)
    if not math.isfinite(float(logits.max())):
        _repair(logits, end_ids)


def _penalise_repetition(logits: Tensor, row: SampleRow, penalty: float) -> None:
    """CTRL's penalty (Keskar et al., 2019): every token seen becomes less likely."""
    seen = torch.tensor(sorted({*row.prompt_ids, *row.output_ids}), device=logits.device)
    scores = logits[seen]
    logits[seen] = torch.where(scores < 0, scores * penalty, scores / penalty)


def _penalise_counts(logits: Tensor, output_ids: Sequence[int], params: SamplingParams) -> None:
    counts = Counter(output_ids)
    if counts:
        ids = torch.tensor(list(counts), device=logits.device)
        times = torch.tensor(list(counts.values()), dtype=logits.dtype, device=logits.device)
        logits[ids] -= times * params.frequency_penalty + params.presence_penalty


def _repeating_ids(ids: Sequence[int], size: int) -> set[int]:
    """Ids that would complete an n-gram of this size a second time."""
    if len(ids) < size:
        return set()
    last = tuple(ids[len(ids) - size + 1 :])
    starts = range(len(ids) - size + 1)
    return {ids[at + size - 1] for at in starts if tuple(ids[at : at + size - 1]) == last}


def _forbid(logits: Tensor, ids: Iterable[int]) -> None:
    banned = sorted(set(ids))
    if banned:
        logits[banned] = -torch.inf


def _repair(logits: Tensor, end_ids: Sequence[int]) -> None:
    """Extreme penalties overflow, and a small vocabulary can be forbidden altogether: then the text ends."""
    torch.nan_to_num_(logits, nan=0.0, posinf=_STRONGEST, neginf=-torch.inf)
    if float(logits.max()) == -torch.inf:
        logits[end_ids[0]] = 0.0


def _allow_only(logits: Tensor, allowed: Sequence[int] | TokenMask, end_ids: Sequence[int]) -> None:
    """Keep the allowed ids; where none is left the text ends."""
    if isinstance(allowed, TokenMask):
        _allow_bits(logits, allowed)
        return
    ids = sorted(set(allowed)) or list(end_ids[:1])
    kept = logits[ids].clone()
    logits.fill_(-torch.inf)
    logits[ids] = kept if bool((kept > -torch.inf).any()) else torch.zeros_like(kept)


def _allow_bits(logits: Tensor, mask: TokenMask) -> None:
    """As `_allow_only`, by one bit for each id."""
    flags = np.unpackbits(mask.bits, count=len(logits), bitorder="little").view(np.bool_)
    allowed = torch.from_numpy(flags).to(logits.device)
    logits.masked_fill_(~allowed, -torch.inf)
    if not bool((logits > -torch.inf).any()):
        logits.masked_fill_(allowed, 0.0)

"""Logits to the candidates of a beam search: the likeliest tokens of each row, as transformers weighs them.

Processors change log probabilities here, not logits, and nothing makes these sum to 1 again: a beam's score
is a sum of what they leave.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from service.engine.beam_search import Candidates
from service.engine.model.alternatives import Alternatives
from service.engine.model.logits_processors import SampleRow, process
from service.engine.sequence import TokenLogprob


def continuations(
    logits: Tensor, rows: Sequence[SampleRow], ends: Sequence[Collection[int]], end_ids: Sequence[int]
) -> list[Candidates]:
    """Take the tokens that a search can need of every row.

    Args:
        logits: (R, vocab) float32; left as they are.
        rows: one per row of logits.
        ends: for each row the ids that end its text.
        end_ids: ids that end a text where nothing else is left.

    Returns:
        Of each row, likeliest first: what ends a text and is among the best `num_beams`, and twice
        `num_beams` others (some of these may end it by a stop string); fewer where fewer are possible.
    """
    logprobs = logits.log_softmax(-1)  # (R, vocab)
    wanted = [row.params.logprobs for row in rows]
    raw = logprobs if all(count is None for count in wanted) else logprobs.clone()
    process(logprobs, rows, end_ids)
    num_wanted = max(2 * row.params.num_beams + len(ids) for row, ids in zip(rows, ends, strict=True))
    scores, tokens = torch.topk(logprobs, min(num_wanted, logits.shape[-1]))  # each (R, num_wanted)
    candidates = []
    for at, (row, own_ends) in enumerate(zip(rows, ends, strict=True)):
        pairs = enumerate(zip(tokens[at].tolist(), scores[at].tolist(), strict=True))
        width = row.params.num_beams
        kept = [
            (token_id, score)
            for rank, (token_id, score) in pairs
            if score > -torch.inf and (rank < width or token_id not in own_ends)
        ][: 3 * width]
        ids = [token_id for token_id, _ in kept]
        told = () if wanted[at] is None else _told(raw[at], ids, wanted[at] or 0)
        candidates.append(Candidates(tuple(ids), tuple(score for _, score in kept), told))
    return candidates


def _told(logprobs: Tensor, ids: list[int], num_top: int) -> tuple[TokenLogprob, ...]:
    """What is told of each candidate: its own log probability, and the strongest tokens at its place."""
    values, tops = torch.topk(logprobs, min(num_top, len(logprobs)))
    alternatives = Alternatives(tops.tolist(), values.tolist())
    own = logprobs[ids].tolist()
    return tuple(TokenLogprob(*each, alternatives) for each in zip(ids, own, strict=True))

"""Logits to ids and log probabilities: greedy or drawn, one result per row whatever the rows beside it.

Greedy rows take the argmax. Drawn rows are filtered (top-k, top-p, min-p, as in transformers) and drawn by
inverse CDF from the row's own uniform number, so the same request gives the same token in any batch.
`logits_processors` runs before this, `runner` calls it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from service.engine.model.alternatives import Alternatives
from service.engine.model.logits_processors import SampleRow, is_plain, process
from service.engine.model.random_draws import uniforms
from service.engine.sequence import SamplingParams, TokenLogprob

# so many of the strongest tokens are looked at before all of them are
_CANDIDATES = 1024
# a temperature below this draws the strongest token anyway, and would overflow
_COLDEST = 1e-5
# the vocabulary is searched in two levels of running sums, over chunks of so many tokens
_CHUNK = 256


@dataclass(slots=True)
class Drawn:
    """What a row gave: its next id, its log probabilities if they are wanted, and the seconds of each."""

    token_id: int
    logprob: TokenLogprob | None = None
    draw_s: float = 0.0
    score_s: float = 0.0


class Sampler(Protocol):
    """How ids and log probabilities are taken from rows of logits on one processor."""

    def draw(
        self, logits: Tensor, indices: Sequence[int], rows: Sequence[SampleRow], end_ids: Sequence[int]
    ) -> list[Drawn]:
        """Choose the next id of some rows.

        Args:
            logits: (R, vocab) float32; left as they are.
            indices: of the rows in it, rising.
            rows: one for each index.
            end_ids: ids that end a text.
        """
        ...

    def score(
        self, logits: Tensor, indices: Sequence[int], ids: Sequence[int], num_top: int
    ) -> list[TokenLogprob]:
        """Log probabilities of given ids and of the strongest alternatives, from raw logits.

        Args:
            logits: (R, vocab) float32.
            indices: of the rows in it.
            ids: one for each index.
            num_top: alternatives of each.
        """
        ...


def draw_rows(
    logits: Tensor, indices: Sequence[int], params: Sequence[SamplingParams], draws: NDArray[np.float64]
) -> list[int]:
    """Draw an id for some rows; `backends.cpu.draw` does the same faster.

    Args:
        logits: (R, vocab) float32.
        indices: the rows to draw for, G of them.
        params: one for each; temperatures are above 0.
        draws: from 0 to below 1, one for each.

    Returns:
        G ids.
    """
    weights = kept_weights(logits[list(indices)], params)
    ids: list[int] = _invert_in_chunks(weights, torch.from_numpy(draws).to(logits.device)).tolist()
    return ids


def kept_weights(logits: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """How much each token weighs in the draw, beside the likeliest's 1; 0 where top-k, top-p or min-p leave
    it out. What they leave is what is at least as strong as one token, so one number says it.

    Args:
        logits: (G, vocab) float32.
        params: one for each row; temperatures are above 0.

    Returns:
        (G, vocab) float32.
    """
    temperatures, offsets = temperatures_of(params), min_p_offsets(params)
    inverse = torch.from_numpy((1 / temperatures).astype(np.float32)).to(logits.device)
    largest = logits.amax(-1, keepdim=True)  # (G, 1)
    weights = ((logits - largest) * inverse.unsqueeze(1)).exp()
    lowest = largest + torch.from_numpy(offsets).to(logits.device).unsqueeze(1)
    for i, row in enumerate(params):  # one at a time, so that neighbours cannot change a sum
        if row.top_k or row.top_p < 1:
            lowest[i] = torch.maximum(lowest[i], _lowest_kept(logits[i], weights[i], row))
    return weights * (logits >= lowest)


def temperatures_of(params: Sequence[SamplingParams]) -> NDArray[np.float64]:
    """Temperatures of drawn rows, as warm as they have to be."""
    return np.maximum([row.temperature for row in params], _COLDEST)


def min_p_offsets(params: Sequence[SamplingParams]) -> NDArray[np.float32]:
    """How far a logit may be below the largest by min-p; minus infinity where it is off."""
    with np.errstate(divide="ignore"):
        return (temperatures_of(params) * np.log([row.min_p for row in params])).astype(np.float32)


def _lowest_kept(logits: Tensor, weights: Tensor, params: SamplingParams) -> Tensor:
    """The smallest logit that top-k keeps and, of what that leaves, top-p: the strongest tokens whose mass
    reaches top_p are kept, at least one.
    """
    if 0 < params.top_k < len(logits):
        values, masses = _strongest_masses(logits, weights, params.top_k)
        wanted = params.top_p * masses[-1]
    else:
        wanted = params.top_p * weights.double().sum()
        values, masses = _strongest_masses(logits, weights, min(_CANDIDATES, len(logits)))
        if masses[-1] < wanted:
            values, masses = _strongest_masses(logits, weights, len(logits))
    last = len(values) - 1
    return values[last if params.top_p >= 1 else min(int(torch.searchsorted(masses, wanted)), last)]


def _strongest_masses(logits: Tensor, weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest logits of a row, falling, and the running sum of their weights."""
    values, ids = torch.topk(logits, count)
    return values, weights[ids].double().cumsum(0)


def strongest(logits: Tensor) -> list[int]:
    """The first of the strongest ids of each row; numpy searches ten times as fast as torch."""
    ids: list[int] = (logits.numpy() if logits.is_cpu else logits).argmax(-1).tolist()
    return ids


class TorchSampler:
    """The reference, on any processor. Rows of one kind are drawn together, and timed together."""

    def draw(
        self, logits: Tensor, indices: Sequence[int], rows: Sequence[SampleRow], end_ids: Sequence[int]
    ) -> list[Drawn]:
        """See `Sampler`."""
        by_kind: dict[str, list[int]] = {}
        for at, row in enumerate(rows):
            by_kind.setdefault(row.kind_of_draw, []).append(at)
        drawn: dict[int, Drawn] = {}
        for of_kind in by_kind.values():
            started = time.monotonic()
            ids = sample(
                _rows_of(logits, [indices[at] for at in of_kind]), [rows[at] for at in of_kind], end_ids
            )
            each_s = (time.monotonic() - started) / len(of_kind)
            for at, token_id in zip(of_kind, ids, strict=True):
                started, logprob, num_top = time.monotonic(), None, rows[at].params.logprobs
                if num_top is not None:
                    logprob = self.score(logits, [indices[at]], [token_id], num_top)[0]
                score_s = 0.0 if logprob is None else time.monotonic() - started
                drawn[at] = Drawn(token_id, logprob, each_s, score_s)
        return [drawn[at] for at in range(len(rows))]

    def score(
        self, logits: Tensor, indices: Sequence[int], ids: Sequence[int], num_top: int
    ) -> list[TokenLogprob]:
        """See `Sampler`."""
        return logprobs_of(logits[list(indices)], ids, num_top)


def _rows_of(logits: Tensor, indices: Sequence[int]) -> Tensor:
    """Some rows, in rising order; a view where they stand side by side."""
    first, last = indices[0], indices[-1]
    if len(indices) == len(logits):
        return logits
    return logits[first : last + 1] if last - first + 1 == len(indices) else logits[list(indices)]


def sample(
    logits: Tensor,
    rows: Sequence[SampleRow],
    end_ids: Sequence[int],
) -> list[int]:
    """Choose the next id of every row.

    Args:
        logits: (R, vocab) float32; left as they are.
        rows: one per row of logits.
        end_ids: ids that end a text.

    Returns:
        R ids.
    """
    if not all(is_plain(row.params, len(row.output_ids)) for row in rows):
        logits = logits.clone()
        process(logits, rows, end_ids)
    drawn = [i for i, row in enumerate(rows) if row.params.temperature > 0]
    ids = strongest(logits) if len(drawn) < len(rows) else [0] * len(rows)
    if drawn:
        params = [rows[i].params for i in drawn]
        ordinals, positions = [rows[i].ordinal for i in drawn], [len(rows[i].output_ids) for i in drawn]
        draws = uniforms([row.seed for row in params], ordinals, positions)
        for index, token_id in zip(drawn, draw_rows(logits, drawn, params, draws), strict=True):
            ids[index] = token_id
    return ids


def _invert(weights: Tensor, draws: Tensor) -> Tensor:
    """Per row, the first index where the running sum passes draw times the total; never one of weight 0."""
    sums = weights.double().cumsum(-1)  # (G, n)
    total = sums[:, -1:].contiguous()
    indices = torch.searchsorted(sums, draws.unsqueeze(1) * total, right=True)
    return torch.minimum(indices, torch.searchsorted(sums, total)).squeeze(1)


def _invert_in_chunks(weights: Tensor, draws: Tensor) -> Tensor:
    """`_invert` over many weights: find the chunk first, then the index in it."""
    chunks = F.pad(weights, (0, -weights.shape[1] % _CHUNK)).view(len(weights), -1, _CHUNK)  # (G, n, chunk)
    masses = chunks.sum(-1, dtype=torch.float64)  # (G, n)
    chunk = _invert(masses, draws)  # (G,)
    each = torch.arange(len(draws), device=weights.device)
    before = masses.cumsum(-1)[each, chunk] - masses[each, chunk]
    left = (draws * masses.sum(-1) - before) / masses[each, chunk]
    return chunk * _CHUNK + _invert(chunks[each, chunk], left.clamp(0.0, 1.0))


def logprobs_of(logits: Tensor, ids: Sequence[int], num_top: int) -> list[TokenLogprob]:
    """Log probabilities of chosen ids and of the strongest alternatives, from raw logits.

    Args:
        logits: (R, vocab) float32.
        ids: the chosen id of each row.
        num_top: alternatives per row.
    """
    logprobs = logits.log_softmax(-1)
    chosen = logprobs[range(len(ids)), list(ids)].tolist()
    values, tops = torch.topk(logprobs, min(num_top, logits.shape[-1]))
    tops_of_rows = [Alternatives(*row) for row in zip(tops.tolist(), values.tolist(), strict=True)]
    return [TokenLogprob(*row) for row in zip(ids, chosen, tops_of_rows, strict=True)]

"""Logits to ids: greedy or drawn, one result per row whatever the rows beside it.

Greedy rows take the argmax. Drawn rows are filtered (top-k, top-p, min-p, as in transformers) and drawn by
inverse CDF from the row's own uniform number, so the same request gives the same token in any batch.
`logits_processors` runs before this, `runner` calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from service.engine.model.alternatives import Alternatives
from service.engine.model.logits_processors import SampleRow, is_plain, process
from service.engine.model.random_draws import uniforms
from service.engine.sequence import SamplingParams, TokenLogprob

# candidate counts: a row's own parameters choose, so neighbours cannot change its result
_SMALL, _LARGE = 64, 1024
# a temperature below this draws the strongest token anyway, and would overflow
_COLDEST = 1e-5
# the full vocabulary is searched in two levels of running sums, over chunks of so many tokens
_CHUNK = 256

DrawFromAll = Callable[
    [Tensor, Sequence[int], Sequence[float], Sequence[float], NDArray[np.float64]], Sequence[int]
]


def draw_from_all(
    logits: Tensor,
    indices: Sequence[int],
    temperatures: Sequence[float],
    min_p: Sequence[float],
    draws: NDArray[np.float64],
) -> list[int]:
    """Draw from the whole vocabulary for some rows; `backends.cpu.draw` does the same faster.

    Args:
        logits: (R, vocab) float32.
        indices: the rows to draw for, G of them.
        temperatures: above 0, one for each.
        min_p: the minimum probability of a token beside the likeliest, one for each.
        draws: from 0 to below 1, one for each.

    Returns:
        G ids.
    """
    device = logits.device
    scaled = logits[list(indices)] / torch.tensor(temperatures, device=device).unsqueeze(1)
    floor = torch.tensor(min_p, device=device).unsqueeze(1)
    weights = _drop_below_min_p(scaled.softmax(-1), floor)
    ids: list[int] = _invert_in_chunks(weights, torch.from_numpy(draws).to(device)).tolist()
    return ids


def strongest(logits: Tensor) -> list[int]:
    """The first of the strongest ids of each row."""
    ids: list[int] = logits.argmax(-1).tolist()
    return ids


def strongest_on_host(logits: Tensor) -> list[int]:
    """As `strongest`, by numpy, whose search is ten times torch's on a processor."""
    ids: list[int] = logits.numpy().argmax(-1).tolist()
    return ids


@dataclass(frozen=True, slots=True)
class Draw:
    """How ids are taken from whole rows of logits on one processor; by default in torch, on any."""

    strongest: Callable[[Tensor], list[int]] = strongest
    from_all: DrawFromAll = draw_from_all


def sample(
    logits: Tensor,
    rows: Sequence[SampleRow],
    end_ids: Sequence[int],
    draw: Draw = Draw(),
) -> list[int]:
    """Choose the next id of every row.

    Args:
        logits: (R, vocab) float32; left as they are.
        rows: one per row of logits.
        end_ids: ids that end a text.
        draw: takes the ids of greedy rows, and of drawn rows without top-k and top-p.

    Returns:
        R ids.
    """
    if not all(is_plain(row.params, len(row.output_ids)) for row in rows):
        logits = logits.clone()
        process(logits, rows, end_ids)
    free = [i for i, row in enumerate(rows) if _is_free(row.params)]
    cut = [i for i, row in enumerate(rows) if row.params.temperature > 0 and not _is_free(row.params)]
    is_greedy = len(free) + len(cut) < len(rows)
    ids = draw.strongest(logits) if is_greedy else [0] * len(rows)
    drawn: list[int] = []
    if free:
        of_free = [rows[i] for i in free]
        min_p = [row.params.min_p for row in of_free]
        drawn += draw.from_all(logits, free, _temperatures(of_free), min_p, _draws(of_free))
    if cut:
        drawn += _draw_cut(logits[cut], [rows[i] for i in cut])
    for index, token_id in zip(free + cut, drawn, strict=True):
        ids[index] = token_id
    return ids


def _is_free(params: SamplingParams) -> bool:
    """Whether a row is drawn from all tokens."""
    return params.temperature > 0 and params.top_k == 0 and params.top_p == 1.0


def _temperatures(rows: Sequence[SampleRow]) -> list[float]:
    return [max(row.params.temperature, _COLDEST) for row in rows]


def _draws(rows: Sequence[SampleRow]) -> NDArray[np.float64]:
    seeds, ordinals = [row.params.seed for row in rows], [row.ordinal for row in rows]
    return uniforms(seeds, ordinals, [len(row.output_ids) for row in rows])


def _draw_cut(logits: Tensor, rows: Sequence[SampleRow]) -> list[int]:
    """Draw for rows (G, vocab) with top-k or top-p, together for those that need equally many candidates."""
    scaled = logits / logits.new_tensor(_temperatures(rows)).unsqueeze(1)  # (G, V)
    draws = torch.from_numpy(_draws(rows)).to(logits.device)
    params = [row.params for row in rows]
    ids = torch.empty(len(rows), dtype=torch.long, device=logits.device)
    for count, members in _group_by_candidates(scaled, params).items():
        ids[members] = _draw_group(scaled[members], [params[i] for i in members], draws[members], count)
    return list(map(int, ids.tolist()))


def _group_by_candidates(logits: Tensor, params: Sequence[SamplingParams]) -> dict[int, list[int]]:
    """Row numbers by the number of strongest tokens that decide them."""
    groups: dict[int, list[int]] = {}
    for i, row in enumerate(params):
        groups.setdefault(_num_candidates(logits[i], row), []).append(i)
    return groups


def _num_candidates(logits: Tensor, params: SamplingParams) -> int:
    vocabulary = logits.shape[0]
    if 0 < params.top_k <= _LARGE:
        return min(_SMALL if params.top_k <= _SMALL else _LARGE, vocabulary)
    if params.top_k == 0 and vocabulary > _LARGE:
        strongest = torch.topk(logits, _LARGE).values
        mass = (strongest - logits.logsumexp(-1)).exp().sum()
        return _LARGE if float(mass) > params.top_p + 1e-4 else vocabulary
    return vocabulary


def _draw_group(logits: Tensor, params: Sequence[SamplingParams], draws: Tensor, count: int) -> Tensor:
    """Draw for rows (G, vocab) that look at their `count` strongest tokens; (G,) ids."""
    min_p = logits.new_tensor([row.min_p for row in params]).unsqueeze(1)
    values, ids = torch.topk(logits, count)  # strongest first
    top_k = torch.tensor([row.top_k or logits.shape[1] for row in params], device=logits.device).unsqueeze(1)
    top_p = logits.new_tensor([row.top_p for row in params]).unsqueeze(1)
    values = values.masked_fill(torch.arange(count, device=logits.device) >= top_k, -torch.inf)
    among_all = logits.log_softmax(-1).gather(1, ids)  # a logsumexp of one row may sum in another order
    logprobs = torch.where(top_k < logits.shape[1], values.log_softmax(-1), among_all)  # (G, count)
    weights = _drop_past_top_p(logprobs.exp(), top_p)
    indices = _invert(_drop_below_min_p(weights, min_p), draws)
    return ids.gather(1, indices.unsqueeze(1)).squeeze(1)


def _drop_past_top_p(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """Keep the smallest set, strongest first, whose mass reaches top_p (1 keeps all); always at least one."""
    mass_before = probabilities.cumsum(-1) - probabilities
    kept = (mass_before < top_p) | (top_p >= 1.0)
    kept[:, 0] = True
    return probabilities * kept


def _drop_below_min_p(probabilities: Tensor, min_p: Tensor) -> Tensor:
    """Keep what is at least min_p times as likely as the likeliest."""
    return probabilities * (probabilities >= min_p * probabilities.amax(-1, keepdim=True))


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

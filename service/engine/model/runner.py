"""Batch -> tensors -> next ids. Runs the forward pass it is given, decides nothing.

Lays a batch out as one row of tokens, runs the forward pass, samples the rows that want a token and verifies
drafts: a draft counts if it is the token the row before it drew.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from service.engine.batch import Batch, Scheduled, StepOutput
from service.engine.beam_search import Candidates
from service.engine.model.asking import Asking, wait_for
from service.engine.model.attention import Forward, ForwardBatch
from service.engine.model.continuations import continuations
from service.engine.model.logits_processors import SampleRow
from service.engine.model.output_view import OutputView
from service.engine.model.sampler import Drawn, Sampler, TorchSampler
from service.engine.sequence import TokenLogprob
from service.engine.step_cost import StepCost

_NUMPY = {torch.int64: np.int64, torch.int32: np.int32}
CopyBlocks = Callable[[Sequence[tuple[int, int]]], None]
# rows of log probabilities held at a time
_SCORED_AT_ONCE = 64
_FULL = 1 + 1e-9  # of a part, by shares that are not quite exact


class ModelRunner:
    """Executes batches.

    Args:
        forward: the model's forward pass, cache included: a ragged batch -> (R, vocab) float32 logits.
        block_size: tokens in a KV block.
        end_ids: ids that end a text.
        layout: the device where a step is laid out; None for the machine's memory.
        sampler: takes ids and log probabilities from logits.
        cost: knows how long a draw takes, so that one is not made of too many at once.
        copy_blocks: copies blocks of the cache; beam search needs it.
    """

    def __init__(
        self,
        forward: Forward,
        block_size: int,
        end_ids: Sequence[int],
        layout: torch.device | None = None,
        sampler: Sampler | None = None,
        cost: StepCost | None = None,
        copy_blocks: CopyBlocks | None = None,
    ) -> None:
        self.on_progress: Callable[[], None] = lambda: None  # called whenever a part of a step is done
        self._cost = cost or StepCost()
        self._forward = forward
        self._layout = layout
        self._block_size = block_size
        self._end_ids = tuple(end_ids)
        self._sampler = sampler or TorchSampler()
        self._copy_blocks = copy_blocks
        self._asking = Asking()

    @torch.inference_mode()
    def execute(self, batch: Batch) -> list[StepOutput]:
        """Run one step.

        Args:
            batch: what to compute; blocks for all of its rows are reserved.

        Returns:
            One output per item, in order.

        Raises:
            MemoryError: the device's memory does not suffice for so many rows.
        """
        try:
            return self._execute(batch)
        except torch.OutOfMemoryError as error:
            raise MemoryError(str(error)) from error

    def _execute(self, batch: Batch) -> list[StepOutput]:
        scored = [_scored_rows(item) for item in batch.items]
        sampled = [_sampled_rows(item) for item in batch.items]
        counts = [item.num_rows for item in batch.items]
        wanted, first = [], 0
        for count, score, draw in zip(counts, scored, sampled, strict=True):
            wanted += [first + row for row in (*score, *draw)]
            first += count
        copied = [item.copied for item in batch.items if item.copied is not None]
        if copied:
            assert self._copy_blocks is not None, "beams without a cache to copy in"
            self._copy_blocks(copied)
        rows = [_sample_rows(item) if draw else [] for item, draw in zip(batch.items, sampled, strict=True)]
        all_rows = [row for of_item in rows for row in of_item]
        asked = self._asking.begin(all_rows, self.on_progress)
        try:
            logits = self._forward(self._lay_out(batch, counts, wanted))  # (R, vocab)
            if wanted and not logits.is_cpu:
                logits[0, 0].item()  # waits for the device, so that what follows is timed by itself
            self.on_progress()
        finally:  # a constraint is asked by nobody else then
            wait_for(asked, all_rows)
        return self._read(batch, logits, scored, sampled, rows)

    def _lay_out(self, batch: Batch, counts: list[int], wanted: list[int]) -> ForwardBatch:
        """Put all tokens into one row; S sequences, B blocks in the longest table."""
        size = self._block_size
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        ends: list[int] = []
        for item, count in zip(batch.items, counts, strict=True):
            sequence = item.sequence
            start = sequence.num_computed_tokens
            ids += sequence.token_ids[start : start + item.num_tokens]
            ids += item.draft_ids
            table = sequence.block_table
            new_positions = range(start, start + count)
            positions += new_positions
            slots += [table[position // size] * size + position % size for position in new_positions]
            ends.append(start + count)
        return ForwardBatch(
            input_ids=self._tensor(ids),
            positions=self._tensor(positions),
            slots=self._tensor(slots),
            query_starts=self._tensor(np.cumsum([0, *counts]), torch.int32),
            context_lens=self._tensor(ends, torch.int32),
            block_tables=self._tensor(_pad([item.sequence.block_table for item in batch.items]), torch.int32),
            logit_rows=self._tensor(wanted),
            max_query_len=max(counts),
        )

    def _tensor(self, values: object, dtype: torch.dtype = torch.int64) -> Tensor:
        tensor = torch.from_numpy(np.asarray(values, _NUMPY[dtype]))
        return tensor if self._layout is None else tensor.to(self._layout)

    def _read(
        self,
        batch: Batch,
        logits: Tensor,
        scored: list[range],
        sampled: list[range],
        rows_of: list[list[SampleRow]],
    ) -> list[StepOutput]:
        """Draw from all rows that want a token, then give each item what is its own."""
        score_at, draw_at = _split(scored, sampled)
        drawn = self._draw_rows(batch, logits, draw_at, rows_of)
        candidates = self._candidates(batch, logits, draw_at, rows_of)
        outputs = []
        for index, (item, rows, of_item) in enumerate(zip(batch.items, score_at, drawn, strict=True)):
            ids = [row.token_id for row in of_item]
            new_ids = (*item.draft_ids, *ids) if item.is_undrawn else _verified(item.draft_ids, ids)
            logprobs = tuple(row.logprob for row in of_item[: len(new_ids)] if row.logprob is not None)
            draw_s, score_s = sum(row.draw_s for row in of_item), sum(row.score_s for row in of_item)
            draw_s += sum(row.asked_s for row in rows_of[index])
            started = time.monotonic() if rows else 0.0
            scores = self._score_prompt(item, logits, rows)
            score_s += time.monotonic() - started if rows else 0.0
            candidate, candidate_s = candidates.get(index, (None, 0.0))
            outputs.append(StepOutput(new_ids, logprobs, scores, draw_s + candidate_s, score_s, candidate))
        return outputs

    def _draw_rows(
        self, batch: Batch, logits: Tensor, draw_at: list[list[int]], rows_of: list[list[SampleRow]]
    ) -> list[list[Drawn]]:
        """Draw for each item from each of its rows, some milliseconds' worth of rows at a time."""
        drawn: list[list[Drawn]] = [[] for _ in batch.items]
        owners: list[list[Drawn]] = []
        indices: list[int] = []
        rows: list[SampleRow] = []
        kinds: list[str] = []
        for item, draw, of_item, own in zip(batch.items, draw_at, drawn, rows_of, strict=True):
            if draw and item.sequence.params.num_beams == 1:
                owners += [of_item] * len(draw)
                kinds += [item.sequence.kind_of_draw] * len(draw)
                indices += draw
                rows += own
        for at in self._parts(kinds):
            new = self._sampler.draw(logits, indices[at], rows[at], self._end_ids)
            for of_item, row in zip(owners[at], new, strict=True):
                of_item.append(row)
            self.on_progress()
        return drawn

    def _parts(self, kinds: list[str]) -> Iterator[slice]:
        """Divide rows of these kinds, in their order, so that a sign of life is due after each part."""
        start, filled = 0, 0.0
        for end, kind in enumerate(kinds):
            share = 1 / self._cost.rows_at_once(kind)
            if end > start and filled + share > _FULL:
                yield slice(start, end)
                start, filled = end, 0.0
            filled += share
        if kinds:
            yield slice(start, len(kinds))

    def _candidates(
        self, batch: Batch, logits: Tensor, draw_at: list[list[int]], rows_of: list[list[SampleRow]]
    ) -> dict[int, tuple[Candidates, float]]:
        """Give the beams of a search what may come next, and the seconds it took, by the item's index."""
        candidates: dict[int, tuple[Candidates, float]] = {}
        items = batch.items
        beams = [at for at, draw in enumerate(draw_at) if draw and items[at].sequence.params.num_beams > 1]
        for at in self._parts([items[index].sequence.kind_of_draw for index in beams]):
            part = beams[at]
            started = time.monotonic()
            continued = continuations(
                logits[[row for index in part for row in draw_at[index]]],
                [row for index in part for row in rows_of[index]],
                [items[index].sequence.end_ids for index in part],
                self._end_ids,
            )
            each_s = (time.monotonic() - started) / len(part)
            candidates |= {index: (of_item, each_s) for index, of_item in zip(part, continued, strict=True)}
            self.on_progress()
        return candidates

    def _score_prompt(self, item: Scheduled, logits: Tensor, rows: list[int]) -> tuple[TokenLogprob, ...]:
        """Log probabilities of the prompt tokens that this step's rows predict."""
        sequence = item.sequence
        position = sequence.next_scored
        logprobs: list[TokenLogprob] = []
        if position == 0:
            logprobs.append(TokenLogprob(sequence.token_ids[0], None))
            position = 1
        for at in range(0, len(rows), _SCORED_AT_ONCE):
            part = rows[at : at + _SCORED_AT_ONCE]
            assert position is not None, "scored rows without a position to score"
            ids = sequence.token_ids[position + at : position + at + len(part)]
            logprobs += self._sampler.score(logits, part, ids, sequence.params.logprobs or 0)
            self.on_progress()
        return tuple(logprobs)


def _scored_rows(item: Scheduled) -> range:
    """Rows of an item that predict prompt tokens whose log probability is wanted."""
    sequence = item.sequence
    if sequence.next_scored is None:
        return range(0)
    start = sequence.num_computed_tokens
    first = max(sequence.next_scored, 1) - 1
    end = min(start + item.num_tokens, sequence.num_prompt_tokens - 1)
    return range(max(first - start, 0), max(end - start, 0))


def _sampled_rows(item: Scheduled) -> range:
    """Rows of an item that predict new tokens: the last known one and each draft."""
    return range(item.num_rows - item.num_drawn, item.num_rows)


def _split(scored: list[range], sampled: list[range]) -> tuple[list[list[int]], list[list[int]]]:
    """Indices of each item's scored and sampled rows among the wanted logits."""
    score_at: list[list[int]] = []
    draw_at: list[list[int]] = []
    at = 0
    for score, draw in zip(scored, sampled, strict=True):
        score_at.append(list(range(at, at + len(score))))
        draw_at.append(list(range(at + len(score), at + len(score) + len(draw))))
        at += len(score) + len(draw)
    return score_at, draw_at


def _sample_rows(item: Scheduled) -> list[SampleRow]:
    """What the sampler sees at the last known token and after each draft."""
    sequence, request = item.sequence, item.sequence.request
    prompt, drafts, memo = request.prompt_ids, item.draft_ids, sequence.draw_memo
    rows = []
    for count in range(len(drafts) + 1 - item.num_drawn, len(drafts) + 1):
        view = OutputView(sequence.token_ids, len(prompt), drafts[:count])
        rows.append(
            SampleRow(sequence.params, prompt, view, request.ordinal, count, memo, sequence.kind_of_draw)
        )
    return rows


def _verified(draft_ids: tuple[int, ...], drawn: list[int]) -> tuple[int, ...]:
    """The drawn ids up to and with the first that differs from its draft."""
    accepted = 0
    while accepted < len(draft_ids) and draft_ids[accepted] == drawn[accepted]:
        accepted += 1
    return tuple(drawn[: accepted + 1])


def _pad(tables: list[list[int]]) -> np.ndarray:
    """Block tables as one array, short rows filled with 0."""
    width = max(map(len, tables))
    blocks: list[int] = []
    for table in tables:
        blocks += table
        blocks += [0] * (width - len(table))
    return np.array(blocks, np.int32).reshape(len(tables), width)

"""Takes ids and log probabilities from rows of logits on the kernels' threads; the kernels are in
`native.draw_task`.

A sequence's rules and its text are laid out for the kernels once and grow with the text, so a token costs the
same however much stands before it. The torch reference is `sampler.TorchSampler`.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from service.engine.backends.cpu import kernels, records
from service.engine.backends.cpu.pool import pool
from service.engine.model.alternatives import Alternatives
from service.engine.model.logits_processors import SampleRow
from service.engine.model.sampler import Drawn, min_p_offsets, temperatures_of
from service.engine.sequence import TokenLogprob, TokenMask

_LINE = 64  # bytes: threads share no line of the cache
_BY_SEED = -1


class CpuSampler:
    """See `sampler.Sampler`."""

    def __init__(self) -> None:
        self._scratch = np.zeros(0, np.int64)  # all zero where `edits` expects marks, between calls
        self._shape = (0, 0, 0)

    def draw(
        self,
        logits: Tensor,
        indices: Sequence[int],
        rows: Sequence[SampleRow],
        end_ids: Sequence[int],
        units: Sequence[int] | None = None,
    ) -> list[Drawn]:
        """See `sampler.Sampler`.

        Args:
            units: numbers to draw by, in multiples of 2^-53, in place of those of seeds and positions.
        """
        began = time.monotonic()
        width, turns, longest, num_top = logits.shape[1], array("q"), 0, -1
        held: list[NDArray[Any]] = []  # what they allow, while the kernel reads it
        for at, (index, row) in enumerate(zip(indices, rows, strict=True)):
            rules = row.memo.kept
            if not isinstance(rules, _Rules):
                rules = row.memo.kept = _Rules(row, end_ids, width)
            length = len(row.prompt_ids) + len(row.output_ids)
            if rules.reads_text:
                rules.read(row)
                longest = max(longest, length)
            num_top = max(num_top, rules.num_top)
            given = _BY_SEED if units is None else units[at]
            allowed, where = row.ask(), (0, 0, 0)
            if allowed is not None:
                bits, where = _where(allowed, end_ids, width)
                held.append(bits)
            turns.extend((rules.address, index, length, given, *where))
        step = _Step(logits, turns, len(rows), max(num_top, 0), end_ids[0])
        step.run("draw_task", self._scratch_for(width, longest))
        return _timed(step, rows, began)

    def score(
        self, logits: Tensor, indices: Sequence[int], ids: Sequence[int], num_top: int
    ) -> list[TokenLogprob]:
        """See `sampler.Sampler`."""
        turns = array("q")
        for index, token_id in zip(indices, ids, strict=True):
            turns.extend((0, index, 0, token_id, 0, 0, 0))
        step = _Step(logits, turns, len(ids), num_top, 0)
        step.run("score_task", (self._scratch, [0] * 8))
        return step.logprobs(range(len(ids)), ids, [num_top] * len(ids))

    def _scratch_for(self, width: int, longest: int) -> tuple[NDArray[np.int64], list[int]]:
        """Memory of the threads, with room for a row and a text each, and what a kernel is told of it."""
        row, bits = _rounded(4 * width), _rounded(width // 8 + 1)
        offsets = [0, *accumulate((row, row, 4 * row, row, bits))]  # the fields from `D_COPY` on
        if self._shape[:2] != (pool().threads, width) or self._shape[2] < longest:
            self._shape = (pool().threads, width, 2 * longest)
            size_of_one = _rounded(offsets[-1] + 4 * (2 * longest + 1))
            self._scratch = np.zeros(pool().threads * size_of_one // 8, np.int64)
        scratch = self._scratch
        return scratch, [scratch.ctypes.data, scratch.nbytes // pool().threads, *offsets]


class _Rules:
    """What a sequence asks of all its draws, and its text, where kernels find them.

    Args:
        row: any row of it.
        end_ids: ids that end a text.
        width: of the vocabulary.

    Raises:
        IndexError: an id is none of the vocabulary.
    """

    __slots__ = ("_held", "_num_output", "_record", "_text", "address", "num_top", "reads_text")

    def __init__(self, row: SampleRow, end_ids: Sequence[int], width: int) -> None:
        params = row.params
        self.num_top = -1 if params.logprobs is None else min(params.logprobs, width)
        self.reads_text = bool(
            params.repetition_penalty != 1
            or params.frequency_penalty
            or params.presence_penalty
            or params.no_repeat_ngram_size
        )
        self._text = np.zeros(0, np.int64)
        self._num_output = 0
        banned = _ids([*end_ids, *params.stop_token_ids] if params.min_new_tokens else [], width)
        biased = _ids([token_id for token_id, _ in params.logit_bias], width)
        biases = np.array([bias for _, bias in params.logit_bias], np.float32)
        self._held = (banned, biased, biases)
        self._record = record = np.zeros(records.R_FIELDS, np.int64)
        self.address = int(record.ctypes.data)
        for field, value in (
            (records.R_IS_DRAWN, params.temperature > 0),
            (records.R_TOP_K, params.top_k if params.top_k < width else 0),
            (records.R_TOP_P, int(params.top_p * 2.0**records.UNIT_BITS)),
            (records.R_SEED, params.seed),
            (records.R_ORDINAL, row.ordinal),
            (records.R_NGRAM, params.no_repeat_ngram_size),
            (records.R_MIN_NEW_TOKENS, params.min_new_tokens),
            (records.R_NUM_TOP, self.num_top),
            (records.R_BANNED, banned.ctypes.data),
            (records.R_NUM_BANNED, len(banned)),
            (records.R_BIASED, biased.ctypes.data),
            (records.R_BIASES, biases.ctypes.data),
            (records.R_NUM_BIASED, len(biased)),
            (records.R_NUM_PROMPT, len(row.prompt_ids)),
        ):
            record[field // 8] = value
        floats = record.view(np.float32)
        with np.errstate(over="ignore", under="ignore"):
            for field, number in (
                (records.R_INVERSE, 1 / temperatures_of([params])[0]),
                (records.R_OFFSET, min_p_offsets([params])[0]),
                (records.R_REPETITION, params.repetition_penalty),
                (records.R_FREQUENCY, params.frequency_penalty),
                (records.R_PRESENCE, params.presence_penalty),
            ):
                floats[field // 4] = number
        if self.reads_text:
            _ids(row.prompt_ids, width)
            self._make_room(len(row.prompt_ids))
            self._text[: len(row.prompt_ids)] = row.prompt_ids

    def read(self, row: SampleRow) -> None:
        """Take in what the text has more than the last time, drafts included."""
        new_ids = row.output_ids[self._num_output :]
        start = len(row.prompt_ids) + self._num_output
        self._make_room(start + len(new_ids))
        self._text[start : start + len(new_ids)] = new_ids
        self._num_output += len(new_ids) - row.num_drafts

    def _make_room(self, length: int) -> None:
        if length > len(self._text):
            self._text = np.concatenate([self._text, np.zeros(length + 64, np.int64)])
            self._record[records.R_IDS // 8] = self._text.ctypes.data


class _Step:
    """One call of a kernel.

    Args:
        logits: (R, vocab) float32.
        turns: the `T_*` fields of each row.
        count: how many rows.
        num_top: alternatives that a row has room for.
        end: an id that ends a text.
    """

    def __init__(self, logits: Tensor, turns: array[int], count: int, num_top: int, end: int) -> None:
        self._logits, self._turns = logits.contiguous(), turns
        self._end, width = end, logits.shape[1]
        self._num_top = min(num_top, width)
        self._out = np.zeros((count, records.O_FIELDS), np.int64)
        self._top_ids = np.zeros((count, self._num_top), np.int32)
        self._top_logits = np.zeros((count, self._num_top), np.float32)
        self.ids: list[int] = []
        self.draw_ns: list[int] = []
        self.score_ns: list[int] = []

    def run(self, task: str, scratch: tuple[NDArray[np.int64], list[int]]) -> None:
        """Let the kernel fill the results in."""
        width = self._logits.shape[1]
        results = (self._out, self._top_ids, self._top_logits)
        out, top_ids, top_logits = (array.ctypes.data for array in results)
        args = [self._logits.data_ptr(), 4 * width, width, len(self._out), self._turns.buffer_info()[0]]
        args += [out, self._end, top_ids, top_logits, self._num_top, *scratch[1]]
        pool().run(kernels.address(task), np.array(args, np.int64))
        self.ids, self.draw_ns, self.score_ns = self._out[:, :3].T.tolist()

    def logprobs(
        self, indices: Sequence[int], ids: Sequence[int], nums_top: Sequence[int]
    ) -> list[TokenLogprob]:
        """Log probabilities of one id of some rows each, and so many alternatives."""
        out = self._out[indices]
        floats = out.view(np.float32)
        largest, chosen = floats[:, records.O_LARGEST // 4], floats[:, records.O_CHOSEN // 4]
        shift = largest + np.log(out.view(np.float64)[:, records.O_SUM // 8])
        of_ids = (chosen - shift).astype(np.float32).tolist()
        of_top = (self._top_logits[indices] - shift[:, None]).astype(np.float32).tolist()
        tops = zip(self._top_ids[indices].tolist(), of_top, nums_top, strict=True)
        alternatives = [Alternatives(top_ids[:num], logs[:num]) for top_ids, logs, num in tops]
        return [TokenLogprob(*parts) for parts in zip(ids, of_ids, alternatives, strict=True)]


def _timed(step: _Step, rows: Sequence[SampleRow], began: float) -> list[Drawn]:
    """Results of a step. Rows share the time of the whole call by what their own part of it took."""
    nums_top = {i: row.params.logprobs for i, row in enumerate(rows) if row.params.logprobs is not None}
    scored = [*nums_top]
    entries = step.logprobs(scored, [step.ids[i] for i in scored], [*nums_top.values()]) if scored else ()
    logprobs = dict(zip(scored, entries, strict=True))
    per_ns = (time.monotonic() - began) / max(sum(step.draw_ns) + sum(step.score_ns), 1)
    taken = zip(step.ids, step.draw_ns, step.score_ns, strict=True)
    return [
        Drawn(token_id, logprobs.get(i), draw_ns * per_ns, score_ns * per_ns)
        for i, (token_id, draw_ns, score_ns) in enumerate(taken)
    ]


def _where(
    allowed: Sequence[int] | TokenMask, end_ids: Sequence[int], width: int
) -> tuple[NDArray[Any], tuple[int, int, int]]:
    """What a constraint allows, as bits or as ids, and the fields that say where it is."""
    if isinstance(allowed, TokenMask):
        bits = np.ascontiguousarray(allowed.bits)
        return bits, (bits.ctypes.data, bits.nbytes, 0)
    ids = _ids(allowed or end_ids[:1], width)
    return ids, (ids.ctypes.data, 0, len(ids))


def _ids(ids: Sequence[int], width: int) -> NDArray[np.int64]:
    """Ids as kernels read them, which look at no bounds."""
    as_array = np.array(ids, np.int64)
    if len(as_array) and not 0 <= as_array.min() <= as_array.max() < width:
        raise IndexError(f"a token id is none of the {width} of the vocabulary")
    return as_array


def _rounded(num_bytes: int) -> int:
    return -(-num_bytes // _LINE) * _LINE

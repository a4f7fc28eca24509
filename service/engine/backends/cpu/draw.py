# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, misc"
"""Draws one id per row of logits, without writing probabilities anywhere.

What top-k, top-p and min-p leave is what is at least as large as one logit, which `cut` finds without
sorting. Then three walks over the row: its largest logit, the sum of the weights that are left, and the index
where their running sum passes the draw. Weights are made anew in each walk, which is cheaper than storing
them. A row is walked by one thread in one order, so its id depends on itself only. The torch reference is
`sampler.draw_rows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cfunc, njit
from torch import Tensor

from service.engine.backends.cpu import vectors as vec
from service.engine.backends.cpu.cache import CACHE
from service.engine.backends.cpu.cut import SCRATCH_BYTES, at_least, largest_of, lowest_kept
from service.engine.backends.cpu.pool import pool
from service.engine.backends.cpu.scalars import load_float, load_long, stack_bytes, store_long
from service.engine.backends.cpu.threads import TASK, claim, meet
from service.engine.model.sampler import min_p_offsets, temperatures_of
from service.engine.sequence import SamplingParams

_BLOCK = 64  # weights summed in float32 before they go into the float64 sum
_ROOM = 4 * _BLOCK
_LINE = 64  # bytes: threads share no line of the cache
_ZERO = np.float32(0)
_UNIT_BITS = 53  # numbers from 0 to 1 travel as multiples of 2^-53
_UNIT = 2.0**-_UNIT_BITS
D_LOGITS, D_ROW_BYTES, D_COUNT, D_WIDTH, D_ROWS, D_INVERSE, D_OFFSET, D_TOP_K, D_TOP_P = range(0, 72, 8)
D_DRAWS, D_IDS, D_SCRATCH, D_SCRATCH_BYTES = range(72, 104, 8)


@njit
def _weights(row, at, width, largest, inverse, lowest):
    """exp((x - largest) / temperature) of sixteen logits; 0 below the lowest and past the end."""
    mask, zero = vec.first_lanes(width - at), vec.floats(_ZERO)
    x = vec.load_floats_where(row + 4 * at, mask)
    weights = vec.exp((x - vec.floats(largest)) * vec.floats(inverse))
    return vec.where(mask, vec.where(at_least(x, vec.floats(lowest)), weights, zero), zero)


@njit
def _mass(row, at, width, largest, inverse, lowest):
    """The sum of a block's weights."""
    total = vec.floats(_ZERO)
    for start in range(at, min(at + _BLOCK, width), 16):
        total = total + _weights(row, start, width, largest, inverse, lowest)
    return np.float64(vec.sum_lanes(total))


@njit
def _index_in_block(row, at, width, largest, inverse, lowest, left):
    """Where the running sum of a block's weights passes `left`; its last weight above 0 if it never does."""
    room = stack_bytes(_ROOM)
    for start in range(0, _BLOCK, 16):
        vec.store_floats(room + 4 * start, _weights(row, at + start, width, largest, inverse, lowest))
    index = 0
    for i in range(_BLOCK):
        weight = np.float64(load_float(room + 4 * i))
        if weight > 0:
            index = i
        left -= weight
        if weight > 0 and left < 0:
            break
    return at + index


@njit
def _draw_row(row, width, inverse, offset, top_k, top_p, draw, scratch):
    largest = largest_of(row, width)
    lowest = largest + offset
    if top_k > 0 or top_p < 1:
        lowest = max(lowest, lowest_kept(row, width, largest, inverse, top_k, top_p, scratch))
    total = np.float64(0)
    for at in range(0, width, _BLOCK):
        total += _mass(row, at, width, largest, inverse, lowest)
    left, chosen, before = draw * total, 0, 0.0
    for at in range(0, width, _BLOCK):
        mass = _mass(row, at, width, largest, inverse, lowest)
        if mass > 0:
            chosen, before = at, left
        left -= mass
        if mass > 0 and left < 0:
            break
    return _index_in_block(row, chosen, width, largest, inverse, lowest, before)


@cfunc(TASK, cache=CACHE)
def draw_task(args, pool, thread):
    """`draw_rows`. Args: the `D_*` fields; arrays by address."""
    count, width = load_long(args + D_COUNT), load_long(args + D_WIDTH)
    scratch = load_long(args + D_SCRATCH) + thread * load_long(args + D_SCRATCH_BYTES)
    index = claim(pool, thread, count)
    while index < count:
        row_index = load_long(load_long(args + D_ROWS) + 8 * index)
        row = load_long(args + D_LOGITS) + row_index * load_long(args + D_ROW_BYTES)
        inverse = load_float(load_long(args + D_INVERSE) + 4 * index)
        offset = load_float(load_long(args + D_OFFSET) + 4 * index)
        top_k = load_long(load_long(args + D_TOP_K) + 8 * index)
        top_p = np.float64(load_long(load_long(args + D_TOP_P) + 8 * index)) * _UNIT
        draw = np.float64(load_long(load_long(args + D_DRAWS) + 8 * index)) * _UNIT
        chosen = _draw_row(row, width, inverse, offset, top_k, top_p, draw, scratch)
        store_long(load_long(args + D_IDS) + 8 * index, chosen)
        index = claim(pool, thread, count)
    meet(pool, thread)


def draw_rows(
    logits: Tensor,
    indices: Sequence[int],
    params: Sequence[SamplingParams],
    draws: np.ndarray[Any, np.dtype[np.float64]],
) -> list[int]:
    """As `sampler.draw_rows`, on all threads of the kernels.

    Args:
        logits: (R, vocab) float32 on the CPU, contiguous.
        indices: the rows to draw for.
        params, draws: of each of them.
    """
    width = logits.shape[1]
    rows, ids = np.asarray(indices, np.int64), np.zeros(len(indices), np.int64)
    inverse, offsets = (1 / temperatures_of(params)).astype(np.float32), min_p_offsets(params)
    top_k = np.array([row.top_k if row.top_k < width else 0 for row in params], np.int64)
    top_p = _as_units([row.top_p for row in params])
    scaled = _as_units(draws)
    scratch_bytes = -(-(SCRATCH_BYTES + 12 * width) // _LINE) * _LINE
    scratch = np.empty(pool().threads * scratch_bytes // 8, np.int64)
    logits = logits.contiguous()
    args = np.array(
        [logits.data_ptr(), 4 * width, len(rows), width]
        + [array.ctypes.data for array in (rows, inverse, offsets, top_k, top_p, scaled, ids, scratch)]
        + [scratch_bytes],
        np.int64,
    )
    pool().run(draw_task.address, args)
    return [int(token_id) for token_id in ids]


def _as_units(shares: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Numbers from 0 to 1 as whole multiples of 2^-53."""
    units: np.ndarray[Any, np.dtype[np.int64]] = (np.asarray(shares, np.float64) * 2.0**_UNIT_BITS).astype(
        np.int64
    )
    return units

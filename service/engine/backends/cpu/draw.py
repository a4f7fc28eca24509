# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, misc"
"""Draws one id per row from the whole vocabulary, without writing probabilities anywhere.

Three walks over a row of logits: its largest, the sum of its weights, and the index where their running sum
passes the draw. Weights are made anew in each walk, which is cheaper than storing them. A row is walked by
one thread in one order, so its id depends on itself only. The torch reference is `sampler.draw_from_all`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import cfunc, njit
from torch import Tensor

from service.engine.backends.cpu import vectors as vec
from service.engine.backends.cpu.cache import CACHE
from service.engine.backends.cpu.pool import pool
from service.engine.backends.cpu.scalars import load_float, load_long, stack_bytes, store_long
from service.engine.backends.cpu.threads import TASK, claim, meet

_BLOCK = 64  # weights summed in float32 before they go into the float64 sum
_ROOM = 4 * _BLOCK
_ZERO, _LOWEST = np.float32(0), np.float32(-np.inf)
_DRAW_BITS = 53
_DRAW_UNIT = 2.0**-_DRAW_BITS
D_LOGITS, D_ROW_BYTES, D_COUNT, D_WIDTH, D_ROWS, D_INVERSE, D_FLOOR, D_DRAWS, D_IDS = range(0, 72, 8)


@vec.numba_intrinsic(vec.MASK, vec.FLOATS, vec.FLOATS)
def at_least(builder: Any, a: Any, b: Any) -> Any:
    """Lanes where a >= b; none where either is NaN."""
    return builder.fcmp_ordered(">=", a, b)


@njit
def _largest(row, width):
    largest = vec.floats(_LOWEST)
    for at in range(0, width, 16):
        mask = vec.first_lanes(width - at)
        x = vec.where(mask, vec.load_floats_where(row + 4 * at, mask), largest)
        largest = vec.larger(largest, x)
    return vec.max_lane(largest)


@njit
def _weights(row, at, width, largest, inverse, floor):
    """exp((x - largest) / temperature) of sixteen logits; 0 below the floor and past the end."""
    mask, zero = vec.first_lanes(width - at), vec.floats(_ZERO)
    x = vec.load_floats_where(row + 4 * at, mask)
    weights = vec.exp((x - vec.floats(largest)) * vec.floats(inverse))
    return vec.where(mask, vec.where(at_least(weights, vec.floats(floor)), weights, zero), zero)


@njit
def _mass(row, at, width, largest, inverse, floor):
    """The sum of a block's weights."""
    total = vec.floats(_ZERO)
    for start in range(at, min(at + _BLOCK, width), 16):
        total = total + _weights(row, start, width, largest, inverse, floor)
    return np.float64(vec.sum_lanes(total))


@njit
def _index_in_block(row, at, width, largest, inverse, floor, left):
    """Where the running sum of a block's weights passes `left`; its last weight above 0 if it never does."""
    room = stack_bytes(_ROOM)
    for start in range(0, _BLOCK, 16):
        vec.store_floats(room + 4 * start, _weights(row, at + start, width, largest, inverse, floor))
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
def _draw_row(row, width, inverse, floor, draw):
    largest = _largest(row, width)
    total = np.float64(0)
    for at in range(0, width, _BLOCK):
        total += _mass(row, at, width, largest, inverse, floor)
    left, chosen, before = draw * total, 0, 0.0
    for at in range(0, width, _BLOCK):
        mass = _mass(row, at, width, largest, inverse, floor)
        if mass > 0:
            chosen, before = at, left
        left -= mass
        if mass > 0 and left < 0:
            break
    return _index_in_block(row, chosen, width, largest, inverse, floor, before)


@cfunc(TASK, cache=CACHE)
def draw_task(args, pool, thread):
    """`draw_from_all`. Args: the `D_*` fields; arrays by address."""
    count, width = load_long(args + D_COUNT), load_long(args + D_WIDTH)
    index = claim(pool, thread, count)
    while index < count:
        row_index = load_long(load_long(args + D_ROWS) + 8 * index)
        row = load_long(args + D_LOGITS) + row_index * load_long(args + D_ROW_BYTES)
        inverse = load_float(load_long(args + D_INVERSE) + 4 * index)
        floor = load_float(load_long(args + D_FLOOR) + 4 * index)
        draw = np.float64(load_long(load_long(args + D_DRAWS) + 8 * index)) * _DRAW_UNIT
        chosen = _draw_row(row, width, inverse, floor, draw)
        store_long(load_long(args + D_IDS) + 8 * index, chosen)
        index = claim(pool, thread, count)
    meet(pool, thread)


def draw_from_all(
    logits: Tensor,
    indices: Sequence[int],
    temperatures: Sequence[float],
    min_p: Sequence[float],
    draws: np.ndarray[Any, np.dtype[np.float64]],
) -> list[int]:
    """As `sampler.draw_from_all`, on all threads of the kernels.

    Args:
        logits: (R, vocab) float32 on the CPU, contiguous.
        indices: the rows to draw for.
        temperatures, min_p, draws: of each of them.
    """
    rows = np.asarray(indices, np.int64)
    inverse = (1 / np.asarray(temperatures, np.float64)).astype(np.float32)
    floor, ids = np.asarray(min_p, np.float32), np.zeros(len(rows), np.int64)
    scaled = (np.asarray(draws, np.float64) * 2.0**_DRAW_BITS).astype(np.int64)
    logits = logits.contiguous()
    args = np.array(
        [logits.data_ptr(), 4 * logits.shape[1], len(rows), logits.shape[1]]
        + [array.ctypes.data for array in (rows, inverse, floor, scaled, ids)],
        np.int64,
    )
    pool().run(draw_task.address, args)
    return [int(token_id) for token_id in ids]

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, misc"
"""Draws one id per row of logits, without writing probabilities anywhere.

What top-k, top-p and min-p leave is what is at least as large as one logit, which `cut` finds without
sorting. Then three walks over the row: its largest logit, the sum of the weights that are left, and the index
where their running sum passes the draw. Weights are made anew in each walk, which is cheaper than storing
them. A row is walked by one thread in one order, so its id depends on itself only. The torch reference is
`sampler.draw_rows`.
"""

from __future__ import annotations

import numpy as np

from service.engine.backends.cpu.native import vectors as vec
from service.engine.backends.cpu.native.cut import at_least, largest_of, lowest_kept
from service.engine.backends.cpu.native.functions import kernel, native
from service.engine.backends.cpu.native.scalars import load_float, load_long, stack_bytes, store_long
from service.engine.backends.cpu.native.team import claim, meet
from service.engine.backends.cpu.records import (
    D_COUNT,
    D_DRAWS,
    D_IDS,
    D_INVERSE,
    D_LOGITS,
    D_OFFSET,
    D_ROW_BYTES,
    D_ROWS,
    D_SCRATCH,
    D_SCRATCH_BYTES,
    D_TOP_K,
    D_TOP_P,
    D_WIDTH,
    UNIT_BITS,
)

_BLOCK = 64  # weights summed in float32 before they go into the float64 sum
_ROOM = 4 * _BLOCK
_ZERO = np.float32(0)
_UNIT = 2.0**-UNIT_BITS


@native
def _weights(row, at, width, largest, inverse, lowest):
    """exp((x - largest) / temperature) of sixteen logits; 0 below the lowest and past the end."""
    mask, zero = vec.first_lanes(width - at), vec.floats(_ZERO)
    x = vec.load_floats_where(row + 4 * at, mask)
    weights = vec.exp((x - vec.floats(largest)) * vec.floats(inverse))
    return vec.where(mask, vec.where(at_least(x, vec.floats(lowest)), weights, zero), zero)


@native
def _mass(row, at, width, largest, inverse, lowest):
    """The sum of a block's weights."""
    total = vec.floats(_ZERO)
    for start in range(at, min(at + _BLOCK, width), 16):
        total = total + _weights(row, start, width, largest, inverse, lowest)
    return np.float64(vec.sum_lanes(total))


@native
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


@native
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


@kernel
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

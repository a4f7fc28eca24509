# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, misc"
"""Takes one id from each row of logits: the strongest, or one that is drawn, without writing probabilities
anywhere; and a row's log probabilities.

`edits` changes a copy of the row where a field asks for it. What top-k, top-p and min-p leave is what is at
least as large as one logit, which `cut` finds without sorting. Then two walks over the row: the sum of the
weights that are left, and the index where their running sum passes the draw. Weights are made anew in each
walk, which is cheaper than storing them. A row is walked by one thread in one order, so its id depends on
itself only; the thread writes down how long it took. The torch reference is `sampler.TorchSampler`.
"""

from __future__ import annotations

import time

import numpy as np
from numba.core import types

from service.engine.backends.cpu.native import vectors as vec
from service.engine.backends.cpu.native.counting import draw_units
from service.engine.backends.cpu.native.cut import largest_of, lowest_kept
from service.engine.backends.cpu.native.edits import edited, is_edited
from service.engine.backends.cpu.native.functions import kernel, native
from service.engine.backends.cpu.native.scalars import (
    load_float,
    load_long,
    stack_bytes,
    store_double,
    store_float,
    store_long,
)
from service.engine.backends.cpu.native.scores import strongest
from service.engine.backends.cpu.native.team import claim, meet
from service.engine.backends.cpu.records import (
    D_COUNT,
    D_LOGITS,
    D_NUM_TOP,
    D_OUT,
    D_ROW_BYTES,
    D_SCRATCH,
    D_SCRATCH_BYTES,
    D_TOP_IDS,
    D_TOP_LOGITS,
    D_TURNS,
    D_WIDTH,
    O_CHOSEN,
    O_DRAW_NS,
    O_FIELDS,
    O_ID,
    O_LARGEST,
    O_SCORE_NS,
    O_SUM,
    R_INVERSE,
    R_IS_DRAWN,
    R_NUM_PROMPT,
    R_NUM_TOP,
    R_OFFSET,
    R_ORDINAL,
    R_SEED,
    R_TOP_K,
    R_TOP_P,
    T_FIELDS,
    T_GIVEN,
    T_LENGTH,
    T_ROW,
    T_RULES,
    UNIT_BITS,
)

_BLOCK = 64  # weights summed in float32 before they go into the float64 sum
_ROOM = 4 * _BLOCK
_ZERO, _ONE, _LOWEST = np.float32(0), np.float32(1), np.float32(-np.inf)
_CLOCK = time.CLOCK_MONOTONIC
_clock = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.int64))
_UNIT = 2.0**-UNIT_BITS


@native
def _weights(row, at, width, largest, inverse, lowest):
    """exp((x - largest) / temperature) of sixteen logits; 0 below the lowest and past the end."""
    mask, zero = vec.first_lanes(width - at), vec.floats(_ZERO)
    x = vec.load_floats_where(row + 4 * at, mask)
    weights = vec.exp((x - vec.floats(largest)) * vec.floats(inverse))
    return vec.where(mask, vec.where(vec.at_least(x, vec.floats(lowest)), weights, zero), zero)


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
def _sum(row, width, largest, inverse, lowest):
    """The sum of all weights of a row."""
    total = np.float64(0)
    for at in range(0, width, _BLOCK):
        total += _mass(row, at, width, largest, inverse, lowest)
    return total


@native
def _drawn(row, width, largest, turn, scratch):
    """The id where the running sum of the weights that are left passes the draw."""
    rules = load_long(turn + T_RULES)
    inverse, lowest = load_float(rules + R_INVERSE), largest + load_float(rules + R_OFFSET)
    top_k, top_p = load_long(rules + R_TOP_K), np.float64(load_long(rules + R_TOP_P)) * _UNIT
    units = load_long(turn + T_GIVEN)
    if units < 0:
        position = load_long(turn + T_LENGTH) - load_long(rules + R_NUM_PROMPT)
        units = draw_units(load_long(rules + R_SEED), load_long(rules + R_ORDINAL), position)
    if top_k > 0 or top_p < 1:
        lowest = max(lowest, lowest_kept(row, width, largest, inverse, top_k, top_p, scratch))
    left, chosen, before = np.float64(units) * _UNIT * _sum(row, width, largest, inverse, lowest), 0, 0.0
    for at in range(0, width, _BLOCK):
        mass = _mass(row, at, width, largest, inverse, lowest)
        if mass > 0:
            chosen, before = at, left
        left -= mass
        if mass > 0 and left < 0:
            break
    return _index_in_block(row, chosen, width, largest, inverse, lowest, before)


@native
def _first_of(row, width, value):
    """The first index of a value; 0 if there is none."""
    for at in range(0, width, 16):
        mask = vec.first_lanes(width - at)
        x = vec.where(mask, vec.load_floats_where(row + 4 * at, mask), vec.floats(_LOWEST))
        if vec.any_lane(vec.at_least(x, vec.floats(value))):
            for i in range(at, min(at + 16, width)):
                if load_float(row + 4 * i) == value:
                    return i
    return 0


@native
def _score(args, index, row, largest, num_top, out):
    """What the log probabilities of a row are made from."""
    width = load_long(args + D_WIDTH)
    store_float(out + O_LARGEST, largest)
    store_double(out + O_SUM, _sum(row, width, largest, _ONE, _LOWEST))
    place = 4 * index * load_long(args + D_NUM_TOP)
    strongest(
        row, width, num_top, load_long(args + D_TOP_IDS) + place, load_long(args + D_TOP_LOGITS) + place
    )


@native
def _now(room):
    """Nanoseconds on a clock that only goes forward."""
    _clock(_CLOCK, room)  # type: ignore[call-overload]
    return load_long(room) * 1_000_000_000 + load_long(room + 8)


@native
def _take(args, index, row, turn, out, scratch):
    """Take one row's id, and what its log probabilities need."""
    clock = stack_bytes(16)
    began, width, rules = _now(clock), load_long(args + D_WIDTH), load_long(turn + T_RULES)
    largest, num_top = largest_of(row, width), load_long(rules + R_NUM_TOP)
    scored = began
    if num_top >= 0:
        _score(args, index, row, largest, num_top, out)
        scored = _now(clock)
    source = row
    if is_edited(turn):
        source, largest = edited(args, turn, row, scratch)
    if load_long(rules + R_IS_DRAWN) != 0:
        chosen = _drawn(source, width, largest, turn, scratch)
    else:
        chosen = _first_of(source, width, largest)
    store_long(out + O_ID, chosen)
    store_float(out + O_CHOSEN, load_float(row + 4 * chosen))
    store_long(out + O_SCORE_NS, scored - began)
    store_long(out + O_DRAW_NS, _now(clock) - scored)


@native
def _row_of(args, turn):
    return load_long(args + D_LOGITS) + load_long(turn + T_ROW) * load_long(args + D_ROW_BYTES)


@kernel
def draw_task(args, pool, thread):
    """`CpuSampler.draw`. Args: the `D_*` fields; arrays by address."""
    count = load_long(args + D_COUNT)
    scratch = load_long(args + D_SCRATCH) + thread * load_long(args + D_SCRATCH_BYTES)
    index = claim(pool, thread, count)
    while index < count:
        turn = load_long(args + D_TURNS) + 8 * T_FIELDS * index
        out = load_long(args + D_OUT) + 8 * O_FIELDS * index
        _take(args, index, _row_of(args, turn), turn, out, scratch)
        index = claim(pool, thread, count)
    meet(pool, thread)


@kernel
def score_task(args, pool, thread):
    """`CpuSampler.score`. Args: as of `draw_task`."""
    count, width = load_long(args + D_COUNT), load_long(args + D_WIDTH)
    index = claim(pool, thread, count)
    while index < count:
        turn = load_long(args + D_TURNS) + 8 * T_FIELDS * index
        out = load_long(args + D_OUT) + 8 * O_FIELDS * index
        row = _row_of(args, turn)
        _score(args, index, row, largest_of(row, width), load_long(args + D_NUM_TOP), out)
        store_float(out + O_CHOSEN, load_float(row + 4 * load_long(turn + T_GIVEN)))
        index = claim(pool, thread, count)
    meet(pool, thread)

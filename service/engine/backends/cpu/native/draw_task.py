# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, misc"
"""Takes one id from each row of logits: the strongest, or one that is drawn; and a row's log probabilities.

`edits` changes a copy of the row where a field asks for it. What top-k, top-p and min-p leave is what is at
least as large as one logit, which `cut` finds without sorting. Then two walks over the masses that it wrote
down: the sum of those that are left, and the index where their running sum passes the draw. A row is walked
by one thread in one order, so its id depends on itself only; the thread writes down how long it took. The
torch reference is `sampler.TorchSampler`.
"""

from __future__ import annotations

import time

import numpy as np
from numba.core import types

from service.engine.backends.cpu.native import vectors as vec
from service.engine.backends.cpu.native.counting import draw_units
from service.engine.backends.cpu.native.cut import largest_of, lowest_kept, standing, weigh
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
    D_COPY,
    D_COUNT,
    D_LOGITS,
    D_MASSES,
    D_NUM_TOP,
    D_OUT,
    D_ROOM,
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
    T_ALLOWED,
    T_FIELDS,
    T_GIVEN,
    T_LENGTH,
    T_NUM_ALLOWED,
    T_ROW,
    T_RULES,
    UNIT_BITS,
)

_BLOCK = 64  # weights summed in float32 before they go into the float64 sum
_WALKED = 512  # masses between two looks whether the draw is passed
_ZERO, _LOWEST = np.float32(0), np.float32(-np.inf)
_CLOCK = time.CLOCK_MONOTONIC
_clock = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.int64))
_UNIT = 2.0**-UNIT_BITS


@native
def _sum_of_weights(row, width, largest):
    """The sum of exp(x - largest) over a row."""
    total = np.float64(0)
    for start in range(0, width, _BLOCK):
        weights = vec.floats(_ZERO)
        for at in range(start, min(start + _BLOCK, width), 16):
            mask = vec.first_lanes(width - at)
            x = vec.load_floats_where(row + 4 * at, mask)
            weights = weights + vec.where(mask, vec.exp(x - vec.floats(largest)), vec.floats(_ZERO))
        total += np.float64(vec.sum_lanes(weights))
    return total


@native
def _units(turn, rules):
    """The number to draw by, in multiples of 2^-53."""
    units = load_long(turn + T_GIVEN)
    if units < 0:
        position = load_long(turn + T_LENGTH) - load_long(rules + R_NUM_PROMPT)
        units = draw_units(load_long(rules + R_SEED), load_long(rules + R_ORDINAL), position)
    return units


@native
def _drawn(args, row, largest, turn, scratch):
    """The id where the running sum of the masses that are left passes the draw."""
    width, rules = load_long(args + D_WIDTH), load_long(turn + T_RULES)
    values, masses = scratch + load_long(args + D_COPY), scratch + load_long(args + D_MASSES)
    inverse, lowest = load_float(rules + R_INVERSE), largest + load_float(rules + R_OFFSET)
    top_k, top_p = load_long(rules + R_TOP_K), np.float64(load_long(rules + R_TOP_P)) * _UNIT
    total = weigh(row, width, largest, inverse, values, masses)
    if top_k > 0 or top_p < 1:
        room = scratch + load_long(args + D_ROOM)
        kept = lowest_kept(values, masses, width, total, largest, inverse, top_k, top_p, room)
        lowest = max(lowest, kept)
    if lowest > _LOWEST:
        _, total = standing(values, masses, (width + 15) // 16 * 16, lowest)
    left = max(min(np.int64(np.float64(_units(turn, rules)) * _UNIT * total), total - 1), 0)
    for start in range(0, width, _WALKED):
        num = min(_WALKED, (width - start + 15) // 16 * 16)
        _, mass = standing(values + 4 * start, masses + 4 * start, num, lowest)
        if mass > left:
            return _index_from(values, masses, start, lowest, left)
        left -= mass
    return 0  # there is no mass: logits that are no numbers


@native
def _index_from(values, masses, start, lowest, left):
    """Where the running sum of masses from `start` on, which comes to more than `left`, passes it."""
    index = start - 1
    while left >= 0:
        index += 1
        if load_float(values + 4 * index) >= lowest:
            left -= np.int64(load_float(masses + 4 * index))
    return index


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
    store_double(out + O_SUM, _sum_of_weights(row, width, largest))
    offset = 4 * index * load_long(args + D_NUM_TOP)
    strongest(
        row, width, num_top, load_long(args + D_TOP_IDS) + offset, load_long(args + D_TOP_LOGITS) + offset
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
    if load_long(turn + T_NUM_ALLOWED) == 1:
        chosen = load_long(load_long(turn + T_ALLOWED))  # whatever its logit is
    else:
        source = row
        if is_edited(turn):
            source, largest = edited(args, turn, row, scratch)
        if load_long(rules + R_IS_DRAWN) != 0:
            chosen = _drawn(args, source, largest, turn, scratch)
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

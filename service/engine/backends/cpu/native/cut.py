# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, misc"
"""Finds what top-k and top-p keep of a row, without sorting the vocabulary: all that is at least as large as
one logit.

A row is copied, each logit with its mass beside it: its weight as a whole multiple of 2^-40 of the
likeliest's, so that sums are exact in any order. The bound is then found by halving the interval that it must
lie in, with a walk each time. Once few logits lie in the interval, only the vectors that hold one of them are
walked. The torch reference is `sampler.kept_weights`.
"""

from __future__ import annotations

import numpy as np

from service.engine.backends.cpu.native import vectors as vec
from service.engine.backends.cpu.native.functions import native
from service.engine.backends.cpu.native.scalars import load_int, stack_bytes, store_float

MASS_UNITS = np.float32(2.0**40)
_SPAN = np.float32(28)  # what is further below the largest, in units of the temperature, has no mass
_LOWEST, _ZERO, _ONE = np.float32(-np.inf), np.float32(0), np.float32(1)
_EXACT = 1 << 16  # masses that a vector of float64 adds up exactly
_SPARSE = 64  # entries walked for each logit that matters, at most
_LN_2 = 0.6931471805599453


@native
def largest_of(row, width):
    """The largest of a row's logits."""
    largest = vec.floats(_LOWEST)
    for at in range(0, width, 16):
        mask = vec.first_lanes(width - at)
        x = vec.where(mask, vec.load_floats_where(row + 4 * at, mask), largest)
        largest = vec.larger(largest, x)
    return vec.max_lane(largest)


@native
def weigh(row, width, largest, inverse, values, masses):
    """Copy a row and write down the mass of each logit; the mass of all.

    Args:
        row: address of float32 logits.
        width: how many.
        largest: of them.
        inverse: of the temperature.
        values, masses: addresses of whole vectors; `row` may be the first. What is behind the last logit gets
            minus infinity, and no mass.
    """
    total, zero, lowest = 0, vec.floats(_ZERO), vec.floats(_LOWEST)
    for start in range(0, width, _EXACT):
        sums = vec.no_doubles()
        for at in range(start, min(start + _EXACT, width), 16):
            mask = vec.first_lanes(width - at)
            x = vec.where(mask, vec.load_floats_where(row + 4 * at, mask), lowest)
            weights = vec.exp((x - vec.floats(largest)) * vec.floats(inverse))
            mass = vec.where(vec.above(x, lowest), vec.floor(weights * vec.floats(MASS_UNITS)), zero)
            vec.store_floats(values + 4 * at, x)
            vec.store_floats(masses + 4 * at, mass)
            sums = sums + vec.to_doubles(mass)
        total += np.int64(vec.sum_doubles(sums))
    return total


@native
def standing(values, masses, num, lowest):
    """How many of these values are at least `lowest`, and their mass; `num` is a multiple of 16."""
    count = total = 0
    for start in range(0, num, _EXACT):
        sums, counts = vec.no_doubles(), vec.floats(_ZERO)
        for at in range(start, min(start + _EXACT, num), 16):
            stands = vec.at_least(vec.load_floats(values + 4 * at), vec.floats(lowest))
            counts = counts + vec.where(stands, vec.floats(_ONE), vec.floats(_ZERO))
            mass = vec.where(stands, vec.load_floats(masses + 4 * at), vec.floats(_ZERO))
            sums = sums + vec.to_doubles(mass)
        count += np.int64(vec.sum_lanes(counts))
        total += np.int64(vec.sum_doubles(sums))
    return count, total


@native
def _gather(values, masses, num, low, high, kept_values, kept_masses):
    """Copy the vectors that hold a value from `low` to below `high`, nothing else left in them; how many
    entries that makes.
    """
    kept, lowest = 0, vec.floats(_LOWEST)
    for at in range(0, num, 16):
        x = vec.load_floats(values + 4 * at)
        x = vec.where(vec.at_least(x, vec.floats(low)), x, lowest)
        x = vec.where(vec.at_least(x, vec.floats(high)), lowest, x)
        vec.store_floats(kept_values + 4 * kept, x)
        vec.store_floats(kept_masses + 4 * kept, vec.load_floats(masses + 4 * at))
        kept += 16 * np.int64(vec.any_lane(vec.above(x, lowest)))
    return kept


@native
def _reach(values, masses, num, low, high, count, mass, kept_values, kept_masses):
    """A bound above which stand the fewest values that are at least so many and have at least so much mass.

    Args:
        values, masses, num: as of `standing`.
        low, high: at least so large are enough of them, or else all that have mass; and none.
        kept_values, kept_masses: addresses of as much room as all of them take.

    Returns:
        The bound, and the mass of the strongest `count`.
    """
    (count_low, mass_low), count_high, mass_high = standing(values, masses, num, low), 0, 0
    if count_low < count or mass_low < mass:
        return low, mass_low
    count_gone = mass_gone = 0  # of those above `high` that are walked no more
    while count_low - count_high > 1:
        if num > _SPARSE * (count_low - count_high):
            num = _gather(values, masses, num, low, high, kept_values, kept_masses)
            values, masses, count_gone, mass_gone = kept_values, kept_masses, count_high, mass_high
        middle = low + (high - low) * np.float32(0.5)
        if not low < middle < high:
            break
        count_middle, mass_middle = standing(values, masses, num, middle)
        count_middle += count_gone
        mass_middle += mass_gone
        if count_middle >= count and mass_middle >= mass:
            low, count_low, mass_low = middle, count_middle, mass_middle
        else:
            high, count_high, mass_high = middle, count_middle, mass_middle
    mass_of_each = (mass_low - mass_high) // max(count_low - count_high, 1)  # equals are left, or one
    return low, mass_high + mass_of_each * max(count - count_high, 0)


@native
def _low_for(values, masses, num, count, low, high, room):
    """A bound above which stand at least `count` values, and mostly not many more: of the largest of several
    groups, so many stand there. `low` where that is larger, or there are too few groups.
    """
    step = num // 16 // (count // 4 + 4) * 16
    if step == 0:
        return low
    num_groups = 0
    for start in range(0, num - step + 1, step):
        largest = vec.floats(_LOWEST)
        for at in range(start, start + step, 16):
            x = vec.load_floats(values + 4 * at)
            largest = vec.where(vec.above(x, largest), x, largest)
        vec.store_floats(room + 4 * num_groups, largest)
        num_groups += 16
    bound, _ = _reach(room, masses, num_groups, low, high, count, 0, room, room + 4 * num_groups)
    return bound


@native
def _logarithm_below(x):
    """At most 0.07 below the logarithm of a positive float32, whose bits are one of base 2 by chords."""
    room = stack_bytes(4)
    store_float(room, x)
    return np.float32((np.float64(load_int(room)) / (1 << 23) - 127) * _LN_2 - 0.01)


@native
def lowest_kept(values, masses, width, total, largest, inverse, top_k, top_p, room):
    """A bound above which stands what top-k (0 is off) and then top-p (1 is off) keep.

    Args:
        values, masses: what `weigh` wrote.
        width: how many.
        total: mass of them.
        largest: of the values.
        inverse: of the temperature.
        top_k: below `width`.
        top_p: above 0.
        room: address of twice as much again.
    """
    num = (width + 15) // 16 * 16
    row = 4 * num
    lowest = largest - _SPAN / inverse
    high = largest + max(abs(largest) * np.float32(2.0**-22), (largest - lowest) * np.float32(2.0**-10))
    if top_k > 0:
        lowest = _low_for(values, masses, num, top_k, lowest, high, room)
        num = _gather(values, masses, num, lowest, high, room, room + row)
        values, masses = room, room + row
        lowest, total = _reach(values, masses, num, lowest, high, top_k, 0, room + 2 * row, room + 3 * row)
    if top_p < 1:
        # what weighs less than this part of the mean is together less than what top-p leaves out
        weight = np.float32((1 - top_p) * np.float64(total) / width / MASS_UNITS)
        lowest = max(lowest, largest + _logarithm_below(max(weight, 1 / MASS_UNITS)) / inverse)
        wanted = max(np.int64(np.ceil(top_p * total)), 1)
        lowest, _ = _reach(values, masses, num, lowest, high, 1, wanted, room + 2 * row, room + 3 * row)
    return lowest

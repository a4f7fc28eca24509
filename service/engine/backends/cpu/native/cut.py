# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, misc"
"""Finds the smallest logit that top-k and top-p keep, without sorting the vocabulary.

One walk counts a row's logits and their weights in bins of falling strength; the bin where the wanted number
or mass is reached is then looked into with a selection that sorts only the part where the answer lies.
Weights are counted as whole multiples of 2^-40 of the likeliest's, so their sums are exact in any order. The
torch reference is `sampler.kept_weights`.
"""

from __future__ import annotations

import numpy as np

from service.engine.backends.cpu.native import vectors as vec
from service.engine.backends.cpu.native.functions import native
from service.engine.backends.cpu.native.scalars import (
    load_float,
    load_long,
    stack_bytes,
    store_float,
    store_long,
)
from service.engine.backends.cpu.records import CUT_BINS, CUT_BYTES

_MASSES = 8 * CUT_BINS
_MEMBERS = CUT_BYTES
_SPAN = np.float32(32)  # what is further below the largest, in units of the temperature, weighs under 2^-46
_MASS_UNITS = np.float32(2.0**40)
_LOWEST, _ZERO, _ONE = np.float32(-np.inf), np.float32(0), np.float32(1)
_ROOM = 64


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
def _bin_of(x, largest, scale):
    """The bin of a logit; banned ones and those that are no number are in the last."""
    below = (largest - x) * scale
    return np.int64(below) if below < np.float32(CUT_BINS - 1) else CUT_BINS - 1


@native
def _store_weights(row, at, width, largest, inverse, room):
    """The weights of sixteen logits, into `room`."""
    x = vec.load_floats_where(row + 4 * at, vec.first_lanes(width - at))
    vec.store_floats(room, vec.exp((x - vec.floats(largest)) * vec.floats(inverse)))


@native
def _fill_bins(row, width, largest, inverse, scale, scratch):
    """Count all logits of a row, and their masses, by bin; the mass of all."""
    room = stack_bytes(_ROOM)
    total = 0
    for i in range(2 * CUT_BINS):
        store_long(scratch + 8 * i, 0)
    for at in range(0, width, 16):
        _store_weights(row, at, width, largest, inverse, room)
        for i in range(min(16, width - at)):
            bin_at = scratch + 8 * _bin_of(load_float(row + 4 * (at + i)), largest, scale)
            mass = np.int64(load_float(room + 4 * i) * _MASS_UNITS)
            store_long(bin_at, load_long(bin_at) + 1)
            store_long(bin_at + _MASSES, load_long(bin_at + _MASSES) + mass)
            total += mass
    return total


@native
def _collect(row, width, largest, inverse, scale, wanted, scratch):
    """Copy the logits of one bin, and their masses, to the scratch; how many there are."""
    room = stack_bytes(_ROOM)
    masses, values = scratch + _MEMBERS, scratch + _MEMBERS + 8 * width
    # whole vectors are passed over by bounds a bin wider than the bin itself, on either side
    high = largest - np.float32(wanted - 1) / scale
    low = largest - np.float32(wanted + 2) / scale if wanted < CUT_BINS - 1 else _LOWEST
    count = 0
    for at in range(0, width, 16):
        mask = vec.first_lanes(width - at)
        x = vec.load_floats_where(row + 4 * at, mask)
        is_near = vec.where(vec.at_least(x, vec.floats(low)), vec.floats(_ONE), vec.floats(_ZERO))
        is_near = vec.where(vec.at_least(vec.floats(high), x), is_near, vec.floats(_ZERO))
        if vec.max_lane(is_near) == _ZERO:
            continue
        _store_weights(row, at, width, largest, inverse, room)
        for i in range(min(16, width - at)):
            value = load_float(row + 4 * (at + i))
            if _bin_of(value, largest, scale) == wanted:
                store_long(masses + 8 * count, np.int64(load_float(room + 4 * i) * _MASS_UNITS))
                store_float(values + 4 * count, value)
                count += 1
    return count


@native
def _swap(masses, values, i, j):
    mass, value = load_long(masses + 8 * i), load_float(values + 4 * i)
    store_long(masses + 8 * i, load_long(masses + 8 * j))
    store_float(values + 4 * i, load_float(values + 4 * j))
    store_long(masses + 8 * j, mass)
    store_float(values + 4 * j, value)


@native
def _select(masses, values, num, count, mass):
    """The smallest of the largest values that are at least so many and have at least so much mass; and the
    mass of these. What is equal counts one by one.
    """
    low, high = 0, num
    count_above = mass_above = 0
    while True:
        pivot = load_float(values + 4 * ((low + high) // 2))
        # larger ones in [low, greater), equal ones in [greater, lower), smaller ones behind
        i = greater = low
        lower = high
        mass_greater = mass_equal = 0
        while i < lower:
            value = load_float(values + 4 * i)
            if value > pivot:
                mass_greater += load_long(masses + 8 * i)
                _swap(masses, values, i, greater)
                greater += 1
                i += 1
            elif value < pivot:
                lower -= 1
                _swap(masses, values, i, lower)
            else:
                mass_equal += load_long(masses + 8 * i)
                i += 1
        if greater > low and count_above + greater - low >= count and mass_above + mass_greater >= mass:
            high = greater
            continue
        num_equal = lower - greater
        is_enough = count_above + lower - low >= count and mass_above + mass_greater + mass_equal >= mass
        if is_enough or lower == high:
            needed = max(min(count - count_above - (greater - low), num_equal), 0)
            return pivot, mass_above + mass_greater + mass_equal // num_equal * needed
        count_above += lower - low
        mass_above += mass_greater + mass_equal
        low = lower


@native
def _reach(row, width, largest, inverse, scale, count, mass, scratch):
    """The smallest of the strongest logits that are at least so many and have at least so much mass; and the
    mass of so many.
    """
    count_before = mass_before = index = 0
    while index < CUT_BINS - 1:
        num, mass_of_bin = load_long(scratch + 8 * index), load_long(scratch + 8 * index + _MASSES)
        if num > 0 and count_before + num >= count and mass_before + mass_of_bin >= mass:
            break
        count_before += num
        mass_before += mass_of_bin
        index += 1
    num = _collect(row, width, largest, inverse, scale, index, scratch)
    if num == 0:
        return _LOWEST, mass_before
    masses, values = scratch + _MEMBERS, scratch + _MEMBERS + 8 * width
    value, mass_of_these = _select(masses, values, num, count - count_before, mass - mass_before)
    return value, mass_before + mass_of_these


@native
def lowest_kept(row, width, largest, inverse, top_k, top_p, scratch):
    """The smallest logit that top-k (0 is off) and then top-p (1 is off) keep.

    Args:
        row: address of float32 logits.
        width: how many.
        largest: of them.
        inverse: of the temperature.
        top_k: below `width`.
        top_p: above 0.
        scratch: address of `SCRATCH_BYTES` + 12 bytes for each logit, for this thread alone.
    """
    scale = inverse * np.float32(CUT_BINS) / _SPAN
    total = _fill_bins(row, width, largest, inverse, scale, scratch)
    lowest = _LOWEST
    if top_k > 0:
        lowest, total = _reach(row, width, largest, inverse, scale, top_k, 0, scratch)
    if top_p < 1:
        wanted = max(np.int64(np.ceil(top_p * total)), 1)
        nucleus, _ = _reach(row, width, largest, inverse, scale, 1, wanted, scratch)
        lowest = max(lowest, nucleus)
    return lowest

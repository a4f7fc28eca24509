# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, misc"
"""What a request's fields change in a row of logits before a token is taken: penalties, bans, biases, a
constraint.

A row is changed in place, in a copy of the thread's own. Work is linear in the text before it and in the
vocabulary. The torch reference, in the same order and float32 arithmetic, is `logits_processors.process`.
"""

from __future__ import annotations

import numpy as np

from service.engine.backends.cpu.native import vectors as vec
from service.engine.backends.cpu.native.cut import largest_of
from service.engine.backends.cpu.native.functions import native
from service.engine.backends.cpu.native.scalars import (
    load_byte,
    load_float,
    load_int,
    load_long,
    store_byte,
    store_float,
    store_int,
)
from service.engine.backends.cpu.records import (
    D_BITS,
    D_COPY,
    D_END,
    D_MARKS,
    D_MATCHES,
    D_WIDTH,
    R_BANNED,
    R_BIASED,
    R_BIASES,
    R_FREQUENCY,
    R_IDS,
    R_MIN_NEW_TOKENS,
    R_NGRAM,
    R_NUM_BANNED,
    R_NUM_BIASED,
    R_NUM_PROMPT,
    R_PRESENCE,
    R_REPETITION,
    T_ALLOWED,
    T_ALLOWED_BYTES,
    T_LENGTH,
    T_NUM_ALLOWED,
    T_RULES,
)

_BANNED, _ZERO, _ONE = np.float32(-np.inf), np.float32(0), np.float32(1)
_LARGEST = np.float32(np.finfo(np.float32).max)
_STRONGEST = np.float32(1e30)  # stands for infinity, as `logits_processors` has it


@native
def is_edited(turn):
    """Whether a field of this row changes logits."""
    rules = load_long(turn + T_RULES)
    num_output = load_long(turn + T_LENGTH) - load_long(rules + R_NUM_PROMPT)
    return (
        load_float(rules + R_REPETITION) != _ONE
        or load_float(rules + R_FREQUENCY) != _ZERO
        or load_float(rules + R_PRESENCE) != _ZERO
        or load_long(rules + R_NGRAM) > 0
        or num_output < load_long(rules + R_MIN_NEW_TOKENS)
        or load_long(rules + R_NUM_BIASED) > 0
        or load_long(turn + T_ALLOWED) != 0
    )


@native
def edited(args, turn, source, scratch):
    """A changed copy of the row at `source`, and its largest logit."""
    width, rules, row = (
        load_long(args + D_WIDTH),
        load_long(turn + T_RULES),
        scratch + load_long(args + D_COPY),
    )
    length, num_prompt = load_long(turn + T_LENGTH), load_long(rules + R_NUM_PROMPT)
    ids, marks = load_long(rules + R_IDS), scratch + load_long(args + D_MARKS)
    for at in range(0, width, 16):
        mask = vec.first_lanes(width - at)
        vec.store_floats_where(row + 4 * at, vec.load_floats_where(source + 4 * at, mask), mask)
    if load_float(rules + R_REPETITION) != _ONE:
        _penalise_repetition(row, ids, length, load_float(rules + R_REPETITION), marks)
    frequency, presence = load_float(rules + R_FREQUENCY), load_float(rules + R_PRESENCE)
    if frequency != _ZERO or presence != _ZERO:
        _penalise_counts(row, ids + 8 * num_prompt, length - num_prompt, frequency, presence, marks)
    if load_long(rules + R_NGRAM) > 0:
        _forbid_repeats(row, ids, length, load_long(rules + R_NGRAM), scratch + load_long(args + D_MATCHES))
    if length - num_prompt < load_long(rules + R_MIN_NEW_TOKENS):
        for i in range(load_long(rules + R_NUM_BANNED)):
            store_float(row + 4 * load_long(load_long(rules + R_BANNED) + 8 * i), _BANNED)
    for i in range(load_long(rules + R_NUM_BIASED)):
        at = row + 4 * load_long(load_long(rules + R_BIASED) + 8 * i)
        store_float(at, load_float(at) + load_float(load_long(rules + R_BIASES) + 4 * i))
    if load_long(turn + T_ALLOWED) != 0:
        _allow_only(row, width, turn, scratch + load_long(args + D_BITS))
    return row, _repaired(row, width, load_long(args + D_END))


@native
def _penalise_repetition(row, ids, length, penalty, marks):
    """Each token of the text becomes less likely, once. Marks are 0 before and after."""
    for i in range(length):
        at = 4 * load_long(ids + 8 * i)
        if load_int(marks + at) == 0:
            store_int(marks + at, 1)
            x = load_float(row + at)
            store_float(row + at, x * penalty if x < _ZERO else x / penalty)
    for i in range(length):
        store_int(marks + 4 * load_long(ids + 8 * i), 0)


@native
def _penalise_counts(row, ids, length, frequency, presence, marks):
    """Tokens of the output become less likely by how often they stand there. Marks are 0 before and after."""
    for i in range(length):
        at = marks + 4 * load_long(ids + 8 * i)
        store_int(at, load_int(at) + 1)
    for i in range(length):
        at = 4 * load_long(ids + 8 * i)
        count = load_int(marks + at)
        if count > 0:
            store_float(row + at, load_float(row + at) - (np.float32(count) * frequency + presence))
            store_int(marks + at, 0)


@native
def _forbid_repeats(row, ids, length, size, matches):
    """Forbid what would complete an n-gram a second time.

    `matches` gets, for each position of the text read backwards, how far it goes on as the text does from its
    end (the Z algorithm: Gusfield, "Algorithms on strings, trees and sequences", 1997, section 1.4).
    """
    last = ids + 8 * (length - 1)
    start = end = 0  # the match that reaches furthest
    for i in range(1, length - size + 2):
        common = 0
        if i < end:
            common = min(end - i, np.int64(load_int(matches + 4 * (i - start))))
        while i + common < length and load_long(last - 8 * common) == load_long(last - 8 * (i + common)):
            common += 1
        store_int(matches + 4 * i, np.int32(common))
        if i + common > end:
            start, end = i, i + common
        if common >= size - 1:
            store_float(row + 4 * load_long(last - 8 * (i - 1)), _BANNED)


@native
def _bits_at(bits, num_bytes, at):
    """Sixteen bits from bit `at` on, a multiple of 16; 0 past the end."""
    byte = at // 8
    low = load_byte(bits + byte) if byte < num_bytes else 0
    return low + 256 * load_byte(bits + byte + 1) if byte + 1 < num_bytes else low


@native
def _allow_only(row, width, turn, room):
    """Keep what is allowed; if nothing of that is possible, all of it is."""
    bits, num_bytes = load_long(turn + T_ALLOWED), load_long(turn + T_ALLOWED_BYTES)
    if num_bytes == 0:
        ids, bits, num_bytes = bits, room, (width + 7) // 8
        for i in range(num_bytes):
            store_byte(bits + i, 0)
        for i in range(load_long(turn + T_NUM_ALLOWED)):
            token_id = load_long(ids + 8 * i)
            at = bits + token_id // 8
            store_byte(at, load_byte(at) | (1 << (token_id % 8)))
    banned, zero, is_possible = vec.floats(_BANNED), vec.floats(_ZERO), False
    for at in range(0, width, 16):
        mask = vec.first_lanes(width - at)
        x = vec.load_floats_where(row + 4 * at, mask)
        x = vec.where(vec.lanes_of_bits(_bits_at(bits, num_bytes, at)), x, banned)
        is_possible = is_possible or vec.any_lane(vec.above(vec.where(mask, x, banned), banned))
        vec.store_floats_where(row + 4 * at, x, mask)
    if not is_possible:
        for at in range(0, width, 16):
            x = vec.where(vec.lanes_of_bits(_bits_at(bits, num_bytes, at)), zero, banned)
            vec.store_floats_where(row + 4 * at, x, vec.first_lanes(width - at))


@native
def _repaired(row, width, end):
    """The largest logit of a row, once overflow is mended; if everything is forbidden the text ends."""
    largest = largest_of(row, width)
    if not largest <= _LARGEST:
        for i in range(width):
            x = load_float(row + 4 * i)
            if x != x:
                store_float(row + 4 * i, _ZERO)
            elif x > _LARGEST:
                store_float(row + 4 * i, _STRONGEST)
        largest = largest_of(row, width)
    if largest == _BANNED:
        store_float(row + 4 * end, _ZERO)
        return _ZERO
    return largest

"""Causal attention of a ragged batch through the paged cache: one (few rows of a sequence, head) per turn.

Every query row takes the keys of its context in order of position: scores, their largest, the exponentials and
their sum, then the weighted values; sums are float32 and each row's order depends on its own position only. The numba
side of `attention.cpu`; inner loops for heads of 64 are in `attend_ir`. Records hold int64 fields, named `A_*` for
the cache and `B_*` for the batch.
"""

from __future__ import annotations

import numpy as np
from numba import cfunc, njit

from service.engine.kernels import attend_ir as inner
from service.engine.kernels import vectors as vec
from service.engine.kernels.cache import CACHE
from service.engine.kernels.linear_task import OUT_BFLOAT16, OUT_FLOAT32
from service.engine.kernels.threads import TASK, claim, meet

A_HEADS, A_HEAD_DIM, A_BLOCK, A_IS_BF16, A_SCRATCH, A_SCRATCH_BYTES, A_LAYER_BYTES = 0, 8, 16, 24, 32, 40, 48
A_KEYS, A_VALUES, A_FIELDS = 56, 64, 10
B_TOKENS, B_SEQUENCES, B_STARTS, B_LENGTHS, B_TABLES, B_TABLE_BYTES, B_SLOTS = 0, 8, 16, 24, 32, 40, 48
B_FIELDS = 16
HEADS = 6  # heads of a decoding row that one thread takes together: their keys in a block are one run of memory
SCRATCH_ROWS = 16  # rows of scores and of sums that a thread has room for; at least HEADS and QUERIES
_ZERO, _ONE, _LOWEST = np.float32(0), np.float32(1), np.float32(-np.inf)


@njit
def element_bytes(cache):  # type: ignore[no-untyped-def]
    """Bytes of one cached number."""
    return 4 - 2 * vec.load_long(cache + A_IS_BF16)


@njit
def write_kv(cache, batch, qkv, layer, pool):  # type: ignore[no-untyped-def]
    """Keys and values of the batch's tokens into the cache; all threads together, no meeting at the end."""
    heads, head_dim, block = vec.load_long(cache), vec.load_long(cache + A_HEAD_DIM), vec.load_long(cache + A_BLOCK)
    width, base = heads * head_dim, layer * vec.load_long(cache + A_LAYER_BYTES)
    slots, tokens = vec.load_long(batch + B_SLOTS), vec.load_long(batch + B_TOKENS)
    token = claim(pool)
    while token < tokens:
        slot = vec.load_long(slots + 8 * token)
        first = (slot // block * heads * block + slot % block) * head_dim
        row = qkv + token * 12 * width
        for head in range(heads):
            place = base + (first + head * block * head_dim) * element_bytes(cache)
            _store_row(cache, row + 4 * (width + head * head_dim), vec.load_long(cache + A_KEYS) + place)
            _store_row(cache, row + 4 * (2 * width + head * head_dim), vec.load_long(cache + A_VALUES) + place)
        token = claim(pool)


@njit
def _store_row(cache, source, place):  # type: ignore[no-untyped-def]
    length = vec.load_long(cache + A_HEAD_DIM)
    for i in range(0, length, 16):
        mask = vec.first_lanes(length - i)
        x = vec.load_floats_where(source + 4 * i, mask)
        if vec.load_long(cache + A_IS_BF16) != 0:
            vec.store_bf16_where(place + 2 * i, x, mask)
        else:
            vec.store_floats_where(place + 4 * i, x, mask)


@njit
def attend(cache, batch, qkv, layer, scale, out, out_bytes, out_kind, pool, thread):  # type: ignore[no-untyped-def]
    """Every query row of the batch; threads take (rows, heads) in turn, no meeting at the end.

    Args:
        cache, batch: addresses of the records.
        qkv: float32 rows of 3 * width.
        layer: index into the cache.
        scale: float32 factor on the scores.
        out, out_bytes, out_kind: first row, distance to the next, OUT_FLOAT32 or OUT_BFLOAT16.
    """
    heads, sequences = vec.load_long(cache), vec.load_long(batch + B_SEQUENCES)
    starts, lengths = vec.load_long(batch + B_STARTS), vec.load_long(batch + B_LENGTHS)
    sequence, before, turns = -1, 0, 0  # turns of `sequence` come after `before` turns of earlier ones
    start, queries, together, groups = 0, 0, 1, 1
    turn = claim(pool)
    while True:
        while turn >= before + turns:
            sequence, before = sequence + 1, before + turns
            if sequence == sequences:
                return
            start = np.int64(vec.load_int(starts + 4 * sequence))
            queries = np.int64(vec.load_int(starts + 4 * sequence + 4)) - start
            together = min(heads, HEADS) if queries < inner.QUERIES else 1
            groups = (queries + inner.QUERIES - 1) // inner.QUERIES
            turns = groups * ((heads + together - 1) // together)
        head, first = (turn - before) // groups * together, (turn - before) % groups * inner.QUERIES
        position = np.int64(vec.load_int(lengths + 4 * sequence)) - queries + first
        _attend_rows(
            cache, batch, sequence, head, min(together, heads - head), position,
            min(inner.QUERIES, queries - first), qkv, start + first, layer, scale, out, out_bytes, out_kind, thread,
        )  # fmt: skip
        turn = claim(pool)


@njit
def _attend_rows(
    cache, batch, sequence, head, heads, position, count, qkv, token, layer, scale, out, out_bytes, out_kind, thread
):  # type: ignore[no-untyped-def]
    """`count` rows of one sequence from `position` on, `heads` heads: all rows together if four, else one by one."""
    width, head_dim = vec.load_long(cache) * vec.load_long(cache + A_HEAD_DIM), vec.load_long(cache + A_HEAD_DIM)
    table = vec.load_long(batch + B_TABLES) + sequence * vec.load_long(batch + B_TABLE_BYTES)
    scratch = vec.load_long(cache + A_SCRATCH) + thread * vec.load_long(cache + A_SCRATCH_BYTES)
    step = inner.QUERIES if count == inner.QUERIES else 1
    for row in range(0, count, step):
        q = qkv + (token + row) * 12 * width + 4 * head * head_dim
        place = out + (token + row) * out_bytes + head * head_dim * (2 if out_kind == OUT_BFLOAT16 else 4)
        context = position + row + 1
        score_bytes = (context + step + 15) // 16 * 64
        factors = scratch + heads * step * score_bytes
        sums = factors + 4 * SCRATCH_ROWS
        offset = layer * vec.load_long(cache + A_LAYER_BYTES)
        _scores(cache, table, head, heads, offset, context + step - 1, q, 12 * width, step, scratch, score_bytes)
        for i in range(heads * step):
            total = _softmax(scratch + i * score_bytes, context + i % step, score_bytes // 4, scale)
            vec.store_float(factors + 4 * i, _ONE / total)
        _weigh(cache, table, head, heads, offset, context + step - 1, step, scratch, score_bytes, sums)
        for i in range(heads * step):
            inverse = vec.floats(vec.load_float(factors + 4 * i))
            target = place + i % step * out_bytes + i // step * head_dim * (2 if out_kind == OUT_BFLOAT16 else 4)
            _emit(sums + i * _padded(head_dim), inverse, head_dim, target, out_kind)


@njit
def _padded(head_dim):  # type: ignore[no-untyped-def]
    return (head_dim + 15) // 16 * 64


@njit
def _emit(sums, inverse, length, place, out_kind):  # type: ignore[no-untyped-def]
    for i in range(0, length, 16):
        mask = vec.first_lanes(length - i)
        x = vec.load_floats(sums + 4 * i) * inverse
        if out_kind == OUT_BFLOAT16:
            vec.store_bf16_where(place + 2 * i, x, mask)
        else:
            vec.store_floats_where(place + 4 * i, x, mask)


@njit
def _softmax(scores, context, padded, scale):  # type: ignore[no-untyped-def]
    """exp(scale * score - largest) in place, 0 from `context` on; returns the sum."""
    nothing, factor = vec.floats(_LOWEST), vec.floats(scale)
    most = nothing
    for i in range(0, padded, 16):
        x = vec.load_floats(scores + 4 * i) * factor
        x = vec.where(vec.first_lanes(context - i), x, nothing)
        vec.store_floats(scores + 4 * i, x)
        most = vec.larger(most, x)
    largest = vec.floats(vec.max_lane(most))
    total = vec.floats(_ZERO)
    for i in range(0, padded, 16):
        x = vec.exp(vec.load_floats(scores + 4 * i) - largest)
        vec.store_floats(scores + 4 * i, x)
        total = total + x
    return vec.sum_lanes(total)


@njit
def _place(cache, table, index):  # type: ignore[no-untyped-def]
    """Byte offset, within a layer, of the sequence's block `index`."""
    return np.int64(vec.load_int(table + 4 * index)) * vec.load_long(cache) * _head_bytes(cache)


@njit
def _head_bytes(cache):  # type: ignore[no-untyped-def]
    """Bytes of one head in a block."""
    return vec.load_long(cache + A_BLOCK) * vec.load_long(cache + A_HEAD_DIM) * element_bytes(cache)


@njit
def _is_fast(cache):  # type: ignore[no-untyped-def]
    return vec.load_long(cache + A_HEAD_DIM) == inner.HEAD_DIM and vec.load_long(cache + A_BLOCK) == 16


@njit
def _scores(cache, table, head, heads, offset, context, q, q_bytes, rows, scores, score_bytes):  # type: ignore[no-untyped-def]
    """Dot products of `rows` queries of each head with its first `context` keys; a block's heads are neighbours."""
    keys, each = vec.load_long(cache + A_KEYS) + offset, _head_bytes(cache)
    blocks, is_bf16 = (context + 15) // 16, vec.load_long(cache + A_IS_BF16) != 0
    if not _is_fast(cache):
        for i in range(heads * rows):
            source = q + i % rows * q_bytes + i // rows * 4 * vec.load_long(cache + A_HEAD_DIM)
            _scores_any(cache, table, keys + (head + i // rows) * each, context, source, scores + i * score_bytes)
        return
    for index in range(blocks):
        here = keys + _place(cache, table, index) + head * each
        later = keys + _place(cache, table, min(index + 1, blocks - 1)) + head * each
        for h in range(heads):
            target = scores + h * rows * score_bytes + 64 * index
            source, block, ahead = q + 4 * inner.HEAD_DIM * h, here + h * each, later + h * each
            if is_bf16 and rows == 1:
                inner.scores_one_bf16(source, q_bytes, block, target, score_bytes, ahead)
            elif is_bf16:
                inner.scores_four_bf16(source, q_bytes, block, target, score_bytes, ahead)
            elif rows == 1:
                inner.scores_one_f32(source, q_bytes, block, target, score_bytes, ahead)
            else:
                inner.scores_four_f32(source, q_bytes, block, target, score_bytes, ahead)


@njit
def _weigh(cache, table, head, heads, offset, context, rows, weights, weight_bytes, sums):  # type: ignore[no-untyped-def]
    """Sums of each head's first `context` values, weighted; (heads, rows, padded head dim) float32 at `sums`."""
    values, each, padded = vec.load_long(cache + A_VALUES) + offset, _head_bytes(cache), vec.load_long(cache + A_HEAD_DIM)
    blocks, is_bf16, padded = (context + 15) // 16, vec.load_long(cache + A_IS_BF16) != 0, _padded(padded)
    for i in range(0, heads * rows * padded, 64):
        vec.store_floats(sums + i, vec.floats(_ZERO))
    if not _is_fast(cache):
        for i in range(heads * rows):
            source = values + (head + i // rows) * each
            _weigh_any(cache, table, source, context, weights + i * weight_bytes, sums + i * padded)
        return
    for index in range(blocks):
        here = values + _place(cache, table, index) + head * each
        later = values + _place(cache, table, min(index + 1, blocks - 1)) + head * each
        count = min(16, context - 16 * index)
        for h in range(heads):
            source, total = weights + h * rows * weight_bytes + 64 * index, sums + h * rows * padded
            block, ahead = here + h * each, later + h * each
            if is_bf16 and rows == 1:
                inner.values_one_bf16(source, weight_bytes, block, count, total, ahead)
            elif is_bf16:
                inner.values_four_bf16(source, weight_bytes, block, count, total, ahead)
            elif rows == 1:
                inner.values_one_f32(source, weight_bytes, block, count, total, ahead)
            else:
                inner.values_four_f32(source, weight_bytes, block, count, total, ahead)


@njit
def _load_where(cache, address, mask):  # type: ignore[no-untyped-def]
    if vec.load_long(cache + A_IS_BF16) != 0:
        return vec.load_bf16_where(address, mask)
    return vec.load_floats_where(address, mask)


@njit
def _cached_row(cache, table, position):  # type: ignore[no-untyped-def]
    block, length = vec.load_long(cache + A_BLOCK), vec.load_long(cache + A_HEAD_DIM)
    return _place(cache, table, position // block) + position % block * length * element_bytes(cache)


@njit
def _scores_any(cache, table, keys, context, q, scores):  # type: ignore[no-untyped-def]
    """`_scores` of one row for any head size."""
    length, each = vec.load_long(cache + A_HEAD_DIM), element_bytes(cache)
    for position in range(context):
        key, total = keys + _cached_row(cache, table, position), vec.floats(_ZERO)
        for i in range(0, length, 16):
            mask = vec.first_lanes(length - i)
            x = _load_where(cache, key + each * i, mask)
            total = vec.multiply_add(vec.load_floats_where(q + 4 * i, mask), x, total)
        vec.store_float(scores + 4 * position, vec.sum_lanes(total))


@njit
def _weigh_any(cache, table, values, context, weights, sums):  # type: ignore[no-untyped-def]
    """`_weigh` of one row for any head size."""
    length, each = vec.load_long(cache + A_HEAD_DIM), element_bytes(cache)
    for position in range(context):
        value = values + _cached_row(cache, table, position)
        weight = vec.floats(vec.load_float(weights + 4 * position))
        for i in range(0, length, 16):
            x = _load_where(cache, value + each * i, vec.first_lanes(length - i))
            vec.store_floats(sums + 4 * i, vec.multiply_add(weight, x, vec.load_floats(sums + 4 * i)))


@cfunc(TASK, cache=CACHE)
def attention_task(args, pool, thread):  # type: ignore[no-untyped-def]
    """`CpuAttention.__call__`. Args: cache, batch, qkv, layer, scale (float32 bits), out, out row bytes."""
    cache, batch, qkv = vec.load_long(args), vec.load_long(args + 8), vec.load_long(args + 16)
    layer, scale = vec.load_long(args + 24), vec.load_float(args + 32)
    write_kv(cache, batch, qkv, layer, pool)
    meet(pool)
    out, out_bytes = vec.load_long(args + 40), vec.load_long(args + 48)
    attend(cache, batch, qkv, layer, scale, out, out_bytes, OUT_FLOAT32, pool, thread)

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
    """Every query row of the batch; threads take (rows, head) in turn, no meeting at the end.

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
    start, queries = 0, 0
    turn = claim(pool)
    while True:
        while turn >= before + turns:
            sequence, before = sequence + 1, before + turns
            if sequence == sequences:
                return
            start = np.int64(vec.load_int(starts + 4 * sequence))
            queries = np.int64(vec.load_int(starts + 4 * sequence + 4)) - start
            turns = (queries + inner.QUERIES - 1) // inner.QUERIES * heads
        group, head = (turn - before) // heads, (turn - before) % heads
        first = group * inner.QUERIES
        position = np.int64(vec.load_int(lengths + 4 * sequence)) - queries + first
        count = min(inner.QUERIES, queries - first)
        _attend_rows(
            cache, batch, sequence, head, position, count, qkv, start + first, layer, scale,
            out, out_bytes, out_kind, thread,
        )  # fmt: skip
        turn = claim(pool)


@njit
def _attend_rows(
    cache, batch, sequence, head, position, count, qkv, token, layer, scale, out, out_bytes, out_kind, thread
):  # type: ignore[no-untyped-def]
    """Rows `position` .. `position + count - 1` of one sequence, of one head: together if four, else one by one."""
    heads, head_dim = vec.load_long(cache), vec.load_long(cache + A_HEAD_DIM)
    table = vec.load_long(batch + B_TABLES) + sequence * vec.load_long(batch + B_TABLE_BYTES)
    scratch = vec.load_long(cache + A_SCRATCH) + thread * vec.load_long(cache + A_SCRATCH_BYTES)
    q_bytes = 12 * heads * head_dim
    step = inner.QUERIES if count == inner.QUERIES else 1
    for row in range(0, count, step):
        q = qkv + (token + row) * q_bytes + 4 * head * head_dim
        place = out + (token + row) * out_bytes + head * head_dim * (2 if out_kind == OUT_BFLOAT16 else 4)
        context = position + row + 1
        score_bytes = (context + step + 15) // 16 * 64
        sums = scratch + inner.QUERIES * score_bytes + 64  # before them, one factor per row
        offset = layer * vec.load_long(cache + A_LAYER_BYTES)
        _scores(cache, table, head, offset, context + step - 1, q, q_bytes, step, scratch, score_bytes)
        for i in range(step):
            total = _softmax(scratch + i * score_bytes, context + i, score_bytes // 4, scale)
            vec.store_float(sums - 64 + 4 * i, _ONE / total)
        _weigh(cache, table, head, offset, context + step - 1, step, scratch, score_bytes, sums)
        for i in range(step):
            inverse = vec.floats(vec.load_float(sums - 64 + 4 * i))
            _emit(sums + i * _padded(head_dim), inverse, head_dim, place + i * out_bytes, out_kind)


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
def _place(cache, table, head, index):  # type: ignore[no-untyped-def]
    """Byte offset, within a layer, of one head of the sequence's block `index`."""
    block = np.int64(vec.load_int(table + 4 * index))
    each = vec.load_long(cache + A_BLOCK) * vec.load_long(cache + A_HEAD_DIM) * element_bytes(cache)
    return (block * vec.load_long(cache) + head) * each


@njit
def _is_fast(cache):  # type: ignore[no-untyped-def]
    return vec.load_long(cache + A_HEAD_DIM) == inner.HEAD_DIM and vec.load_long(cache + A_BLOCK) == 16


@njit
def _scores(cache, table, head, offset, context, q, q_bytes, rows, scores, score_bytes):  # type: ignore[no-untyped-def]
    """Dot products of `rows` queries with the first `context` keys."""
    keys = vec.load_long(cache + A_KEYS) + offset
    if not _is_fast(cache):
        for i in range(rows):
            _scores_any(cache, table, head, keys, context, q + i * q_bytes, scores + i * score_bytes)
        return
    is_bf16 = vec.load_long(cache + A_IS_BF16) != 0
    blocks = (context + 15) // 16
    here = keys + _place(cache, table, head, 0)
    for index in range(blocks):
        if index + 1 < blocks:
            ahead = keys + _place(cache, table, head, index + 1)
        else:
            ahead = vec.load_long(cache + A_VALUES) + offset + _place(cache, table, head, 0)
        target = scores + 64 * index
        if is_bf16 and rows == 1:
            inner.scores_one_bf16(q, q_bytes, here, target, score_bytes, ahead)
        elif is_bf16:
            inner.scores_four_bf16(q, q_bytes, here, target, score_bytes, ahead)
        elif rows == 1:
            inner.scores_one_f32(q, q_bytes, here, target, score_bytes, ahead)
        else:
            inner.scores_four_f32(q, q_bytes, here, target, score_bytes, ahead)
        here = ahead


@njit
def _weigh(cache, table, head, offset, context, rows, weights, weight_bytes, sums):  # type: ignore[no-untyped-def]
    """Sums of the first `context` values, weighted; (rows, padded head dim) float32 at `sums`."""
    for i in range(0, rows * _padded(vec.load_long(cache + A_HEAD_DIM)), 64):
        vec.store_floats(sums + i, vec.floats(_ZERO))
    values = vec.load_long(cache + A_VALUES) + offset
    if not _is_fast(cache):
        for i in range(rows):
            place = sums + i * _padded(vec.load_long(cache + A_HEAD_DIM))
            _weigh_any(cache, table, head, values, context, weights + i * weight_bytes, place)
        return
    is_bf16 = vec.load_long(cache + A_IS_BF16) != 0
    here = values + _place(cache, table, head, 0)
    for key in range(0, context, 16):
        ahead = here if key + 16 >= context else values + _place(cache, table, head, key // 16 + 1)
        source, count = weights + 4 * key, min(16, context - key)
        if is_bf16 and rows == 1:
            inner.values_one_bf16(source, weight_bytes, here, count, sums, ahead)
        elif is_bf16:
            inner.values_four_bf16(source, weight_bytes, here, count, sums, ahead)
        elif rows == 1:
            inner.values_one_f32(source, weight_bytes, here, count, sums, ahead)
        else:
            inner.values_four_f32(source, weight_bytes, here, count, sums, ahead)
        here = ahead


@njit
def _load_where(cache, address, mask):  # type: ignore[no-untyped-def]
    if vec.load_long(cache + A_IS_BF16) != 0:
        return vec.load_bf16_where(address, mask)
    return vec.load_floats_where(address, mask)


@njit
def _cached_row(cache, table, head, position):  # type: ignore[no-untyped-def]
    block, length = vec.load_long(cache + A_BLOCK), vec.load_long(cache + A_HEAD_DIM)
    return _place(cache, table, head, position // block) + position % block * length * element_bytes(cache)


@njit
def _scores_any(cache, table, head, keys, context, q, scores):  # type: ignore[no-untyped-def]
    """`_scores` of one row for any head size."""
    length, each = vec.load_long(cache + A_HEAD_DIM), element_bytes(cache)
    for position in range(context):
        key, total = keys + _cached_row(cache, table, head, position), vec.floats(_ZERO)
        for i in range(0, length, 16):
            mask = vec.first_lanes(length - i)
            x = _load_where(cache, key + each * i, mask)
            total = vec.multiply_add(vec.load_floats_where(q + 4 * i, mask), x, total)
        vec.store_float(scores + 4 * position, vec.sum_lanes(total))


@njit
def _weigh_any(cache, table, head, values, context, weights, sums):  # type: ignore[no-untyped-def]
    """`_weigh` of one row for any head size."""
    length, each = vec.load_long(cache + A_HEAD_DIM), element_bytes(cache)
    for position in range(context):
        value = values + _cached_row(cache, table, head, position)
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

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, misc"
"""Attention of a few query rows of one sequence: scores, softmax, weighted values, through the block table.

Each row takes the keys of its context in order of position, in float32, so its bits depend on its own
position only. `attend` calls these; the inner loops for heads of whole vectors are in `attend_ir`, other
sizes run here. Records hold int64 fields, named `A_*` for the cache and `B_*` for the batch.
"""

from __future__ import annotations

import numpy as np

from service.engine.backends.cpu.native import attend_ir as inner
from service.engine.backends.cpu.native import vectors as vec
from service.engine.backends.cpu.native.functions import native
from service.engine.backends.cpu.native.scalars import load_float, load_int, load_long, store_float
from service.engine.backends.cpu.records import A_BLOCK, A_HEAD_DIM, A_IS_BF16, A_KEYS, A_VALUES, OUT_BFLOAT16

_ZERO, _LOWEST = np.float32(0), np.float32(-np.inf)


@native
def element_bytes(cache):
    """Bytes of one cached number."""
    return 4 - 2 * load_long(cache + A_IS_BF16)


@native
def padded_bytes(head_dim):
    """Bytes of one head's float32 sums, whole vectors."""
    return (head_dim + 15) // 16 * 64


@native
def emit_row(sums, inverse, length, target, out_kind):
    """Write a head's sums times `inverse` to `target`, as float32 or bfloat16."""
    for i in range(0, length, 16):
        mask = vec.first_lanes(length - i)
        x = vec.load_floats(sums + 4 * i) * inverse
        if out_kind == OUT_BFLOAT16:
            vec.store_bf16_where(target + 2 * i, x, mask)
        else:
            vec.store_floats_where(target + 4 * i, x, mask)


@native
def softmax(scores, stride, context, blocks, scale):
    """exp(scale * score - largest) in place, 0 from `context` on; returns the sum.

    Args:
        scores: address of the row's sixteen scores of the first block.
        stride: bytes to those of the next block.
        context: keys that the row attends to.
        blocks: how many there are scores of.
        scale: float32.
    """
    nothing, factor = vec.floats(_LOWEST), vec.floats(scale)
    maxima = nothing
    for block in range(blocks):
        x = vec.load_floats(scores + stride * block) * factor
        x = vec.where(vec.first_lanes(context - 16 * block), x, nothing)
        vec.store_floats(scores + stride * block, x)
        maxima = vec.larger(maxima, x)
    largest = vec.floats(vec.max_lane(maxima))
    total = vec.floats(_ZERO)
    for block in range(blocks):
        x = vec.exp(vec.load_floats(scores + stride * block) - largest)
        vec.store_floats(scores + stride * block, x)
        total = total + x
    return vec.sum_lanes(total)


@native
def _block_offset(cache, table, index):
    """Byte offset, within a layer, of the sequence's block `index`."""
    return np.int64(load_int(table + 4 * index)) * load_long(cache) * _head_bytes(cache)


@native
def _head_bytes(cache):
    """Bytes of one head in a block."""
    return load_long(cache + A_BLOCK) * load_long(cache + A_HEAD_DIM) * element_bytes(cache)


@native
def is_fast(cache):
    """Whether blocks are laid out for the inner loops, see `attention.arranged`."""
    return load_long(cache + A_HEAD_DIM) % 16 == 0 and load_long(cache + A_BLOCK) == 16


@native
def turned(q, q_bytes, length, rows, panel):
    """Queries as (head dim, rows) at `panel`, for `scores_of`."""
    for row in range(rows):
        for i in range(length):
            store_float(panel + 4 * (i * rows + row), load_float(q + row * q_bytes + 4 * i))


@native
def scores_of(cache, table, head, heads, offset, context, q, q_bytes, rows, scores, score_bytes):
    """Dot products of `rows` queries of each head with its first `context` keys.

    Args:
        q, q_bytes: the first row and the distance to the next, or one head's rows `turned`.
        rows: 1, `SOME` or `MANY`; with more than one, one head.
        scores, score_bytes: (heads, blocks, rows, 16) and bytes from one head to the next.
    """
    keys, each = load_long(cache + A_KEYS) + offset, _head_bytes(cache)
    blocks, is_bf16 = (context + 15) // 16, load_long(cache + A_IS_BF16) != 0
    length = load_long(cache + A_HEAD_DIM)
    if not is_fast(cache):
        for i in range(heads * rows):
            source = q + i % rows * q_bytes + i // rows * 4 * length
            target = scores + i // rows * score_bytes + i % rows * 64
            _scores_any(cache, table, keys + (head + i // rows) * each, context, source, target, 64 * rows)
        return
    for index in range(blocks):
        here = keys + _block_offset(cache, table, index) + head * each
        later = keys + _block_offset(cache, table, min(index + 1, blocks - 1)) + head * each
        for h in range(heads):
            target = scores + h * score_bytes + 64 * rows * index
            source, block, ahead = q + 4 * length * h, here + h * each, later + h * each
            if is_bf16:
                if rows == inner.MANY:
                    inner.scores_many_bf16(source, block, length // 2, target, ahead)
                elif rows == inner.SOME:
                    inner.scores_some_bf16(source, block, length // 2, target, ahead)
                else:
                    inner.scores_one_bf16(source, block, length // 2, target, ahead)
            elif rows == inner.MANY:
                inner.scores_many_f32(source, block, length // 2, target, ahead)
            elif rows == inner.SOME:
                inner.scores_some_f32(source, block, length // 2, target, ahead)
            else:
                inner.scores_one_f32(source, block, length // 2, target, ahead)


@native
def weigh(cache, table, head, heads, offset, context, rows, weights, weight_bytes, sums):
    """Each head's first `context` values, weighted and summed; weights are laid out as `scores_of` has left
    them, `sums` is (heads, rows, padded head dim).
    """
    values, each = load_long(cache + A_VALUES) + offset, _head_bytes(cache)
    blocks, is_bf16 = (context + 15) // 16, load_long(cache + A_IS_BF16) != 0
    padded = padded_bytes(load_long(cache + A_HEAD_DIM))
    for i in range(0, heads * rows * padded, 64):
        vec.store_floats(sums + i, vec.floats(_ZERO))
    if not is_fast(cache):
        for i in range(heads * rows):
            source, weight = values + (head + i // rows) * each, weights + i // rows * weight_bytes
            _weigh_any(cache, table, source, context, weight + i % rows * 64, 64 * rows, sums + i * padded)
        return
    parts = load_long(cache + A_HEAD_DIM) // 16
    for index in range(blocks):
        here = values + _block_offset(cache, table, index) + head * each
        later = values + _block_offset(cache, table, min(index + 1, blocks - 1)) + head * each
        count = min(16, context - 16 * index)
        for h in range(heads):
            source, total = weights + h * weight_bytes + 64 * rows * index, sums + h * rows * padded
            block, ahead = here + h * each, later + h * each
            if is_bf16:
                if rows == inner.MANY:
                    inner.values_many_bf16(source, block, parts, count, total, ahead)
                elif rows == inner.SOME:
                    inner.values_some_bf16(source, block, parts, count, total, ahead)
                else:
                    inner.values_one_bf16(source, block, parts, count, total, ahead)
            elif rows == inner.MANY:
                inner.values_many_f32(source, block, parts, count, total, ahead)
            elif rows == inner.SOME:
                inner.values_some_f32(source, block, parts, count, total, ahead)
            else:
                inner.values_one_f32(source, block, parts, count, total, ahead)


@native
def _load_where(cache, address, mask):
    if load_long(cache + A_IS_BF16) != 0:
        return vec.load_bf16_where(address, mask)
    return vec.load_floats_where(address, mask)


@native
def _cached_row(cache, table, position):
    block, length = load_long(cache + A_BLOCK), load_long(cache + A_HEAD_DIM)
    return _block_offset(cache, table, position // block) + position % block * length * element_bytes(cache)


@native
def _scores_any(cache, table, keys, context, q, scores, stride):
    """`scores_of` one row for any head size; `stride` as in `softmax`."""
    length, each = load_long(cache + A_HEAD_DIM), element_bytes(cache)
    for position in range(context):
        key, total = keys + _cached_row(cache, table, position), vec.floats(_ZERO)
        for i in range(0, length, 16):
            mask = vec.first_lanes(length - i)
            x = _load_where(cache, key + each * i, mask)
            total = vec.multiply_add(vec.load_floats_where(q + 4 * i, mask), x, total)
        store_float(scores + position // 16 * stride + position % 16 * 4, vec.sum_lanes(total))


@native
def _weigh_any(cache, table, values, context, weights, stride, sums):
    """`weigh` for one row and any head size; `stride` as in `softmax`."""
    length, each = load_long(cache + A_HEAD_DIM), element_bytes(cache)
    for position in range(context):
        value = values + _cached_row(cache, table, position)
        weight = vec.floats(load_float(weights + position // 16 * stride + position % 16 * 4))
        for i in range(0, length, 16):
            x = _load_where(cache, value + each * i, vec.first_lanes(length - i))
            vec.store_floats(sums + 4 * i, vec.multiply_add(weight, x, vec.load_floats(sums + 4 * i)))

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, misc"
"""Causal attention of a ragged batch through the paged cache: one (few rows of a sequence, head) per turn.

Every query row takes the keys of its context in order of position: scores, their largest, the exponentials
and their sum, then the weighted values; sums are float32 and each row's order depends on its own position
only. The numba side of `attention`; inner loops are in `attend_ir`. Records hold int64
fields, named `A_*` for the cache and `B_*` for the batch.
"""

from __future__ import annotations

import numpy as np

from service.engine.backends.cpu.native import attend_ir as inner
from service.engine.backends.cpu.native import vectors as vec
from service.engine.backends.cpu.native.attend_rows import (
    emit_row,
    is_fast,
    padded_bytes,
    scores_of,
    softmax,
    turned,
    weigh,
)
from service.engine.backends.cpu.native.functions import kernel, native
from service.engine.backends.cpu.native.scalars import invoker, load_float, load_int, load_long, store_float
from service.engine.backends.cpu.native.team import claim, meet
from service.engine.backends.cpu.native.write_kv import write_kv
from service.engine.backends.cpu.records import (
    A_FUNCTION,
    A_HEAD_DIM,
    A_LAYER_BYTES,
    A_SCRATCH,
    A_SCRATCH_BYTES,
    B_LENGTHS,
    B_SEQUENCES,
    B_STARTS,
    B_TABLE_BYTES,
    B_TABLES,
    OUT_BFLOAT16,
    OUT_FLOAT32,
    SCRATCH_ROWS,
)

HEADS = 6  # heads of a decoding row that one thread takes at once: neighbours in a block, so memory streams
_ONE = np.float32(1)
_ARGS = 15
_attend_rows = invoker(_ARGS)


@native
def attend(cache, batch, qkv, layer, scale, out, out_bytes, out_kind, pool, thread):
    """Every query row of the batch; threads take (rows, heads) in turn, one phase.

    Args:
        cache, batch: addresses of the records.
        qkv: float32 rows of 3 * width.
        layer: index into the cache.
        scale: address of the float32 factor on the scores.
        out, out_bytes, out_kind: first row, distance to the next, OUT_FLOAT32 or OUT_BFLOAT16.
    """
    heads, total = load_long(cache), _all_turns(cache, batch)
    turn = claim(pool, thread, total)
    while turn < total:
        sequence, within = _find_turn(cache, batch, turn)
        start, queries = _rows_of(batch, sequence)
        together, groups = _shares(heads, queries)
        head, first = within // groups * together, within % groups * inner.MANY
        lengths = load_long(batch + B_LENGTHS)
        position = np.int64(load_int(lengths + 4 * sequence)) - queries + first
        _attend_rows(
            load_long(cache + A_FUNCTION),
            cache, batch, sequence, head, min(together, heads - head), position,
            min(inner.MANY, queries - first), qkv, start + first, layer, scale,
            out, out_bytes, out_kind, thread,
        )  # fmt: skip
        turn = claim(pool, thread, total)
    meet(pool, thread)


@native
def _rows_of(batch, sequence):
    """The sequence's first row and how many it has."""
    starts = load_long(batch + B_STARTS) + 4 * sequence
    start = np.int64(load_int(starts))
    return start, np.int64(load_int(starts + 4)) - start


@native
def _shares(heads, queries):
    """Heads that one turn takes together, and groups of rows in turn."""
    together = min(heads, HEADS) if queries < inner.SOME else 1
    return together, (queries + inner.MANY - 1) // inner.MANY


@native
def _turns(heads, queries):
    together, groups = _shares(heads, queries)
    return groups * ((heads + together - 1) // together)


@native
def _all_turns(cache, batch):
    total = 0
    for sequence in range(load_long(batch + B_SEQUENCES)):
        total += _turns(load_long(cache), _rows_of(batch, sequence)[1])
    return total


@native
def _find_turn(cache, batch, turn):
    """The sequence that a turn belongs to, and its number within that."""
    sequence = 0
    while True:
        turns = _turns(load_long(cache), _rows_of(batch, sequence)[1])
        if turn < turns:
            return sequence, turn
        sequence, turn = sequence + 1, turn - turns


@kernel
def attend_rows(
    cache,
    batch,
    sequence,
    head,
    heads,
    position,
    count,
    qkv,
    token,
    layer,
    scale,
    out,
    out_bytes,
    out_kind,
    thread,
):
    """`count` rows of a sequence from `position` on, `heads` heads; as many rows together as can be."""
    width, head_dim = (
        load_long(cache) * load_long(cache + A_HEAD_DIM),
        load_long(cache + A_HEAD_DIM),
    )
    table = load_long(batch + B_TABLES) + sequence * load_long(batch + B_TABLE_BYTES)
    scratch = load_long(cache + A_SCRATCH) + thread * load_long(cache + A_SCRATCH_BYTES)
    factor, out_size = load_float(scale), 2 if out_kind == OUT_BFLOAT16 else 4
    offset = layer * load_long(cache + A_LAYER_BYTES)
    padded = padded_bytes(head_dim)
    row = 0
    while row < count:
        left = count - row
        step = inner.MANY if left >= inner.MANY else inner.SOME if left >= inner.SOME else 1
        q = qkv + (token + row) * 12 * width + 4 * head * head_dim
        base = out + (token + row) * out_bytes + head * head_dim * out_size
        context = position + row + 1
        blocks = (context + step + 14) // 16
        score_bytes = 64 * step * blocks
        factors = scratch + heads * score_bytes
        sums = factors + 4 * SCRATCH_ROWS
        if step > 1 and is_fast(cache):
            panel = sums + SCRATCH_ROWS * padded
            turned(q, 12 * width, head_dim, step, panel)
            q = panel
        scores_of(
            cache, table, head, heads, offset, context + step - 1, q, 12 * width, step, scratch, score_bytes
        )
        for i in range(heads * step):
            scores = scratch + i // step * score_bytes + i % step * 64
            total = softmax(scores, 64 * step, context + i % step, blocks, factor)
            store_float(factors + 4 * i, _ONE / total)
        weigh(cache, table, head, heads, offset, context + step - 1, step, scratch, score_bytes, sums)
        for i in range(heads * step):
            inverse = vec.floats(load_float(factors + 4 * i))
            target = base + i % step * out_bytes + i // step * head_dim * out_size
            emit_row(sums + i * padded, inverse, head_dim, target, out_kind)
        row += step


@kernel
def attention_task(args, pool, thread):
    """`CpuAttention.__call__`. Args: cache, batch, qkv, layer, scale (float32 bits), out, out row bytes."""
    cache, batch, qkv = load_long(args), load_long(args + 8), load_long(args + 16)
    layer, scale = load_long(args + 24), args + 32
    write_kv(cache, batch, qkv, layer, pool, thread)
    out, out_bytes = load_long(args + 40), load_long(args + 48)
    attend(cache, batch, qkv, layer, scale, out, out_bytes, OUT_FLOAT32, pool, thread)

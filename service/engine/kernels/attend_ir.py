# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, misc"
"""Sixteen keys against a few queries, and weights against values: the inner loops for heads of 64.

Keys and values are float32 or bfloat16 bits; sums are float32. **Each query row goes through the same
operations in the same order whatever number of rows shares the loads**, so a row's bits do not depend on
its companions. `attend` decides which rows and blocks meet, and handles other head sizes more slowly.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from service.engine.kernels.emit import (
    F32,
    I16,
    I64,
    LANES,
    VF,
    emit_prefetch,
    fma,
    halve,
    load,
    splat,
    store,
    widen_bf16,
)

HEAD_DIM = 64
QUERIES = 4  # rows that share the loads of keys and values where a sequence brings that many
_PARTS = HEAD_DIM // LANES


def _row_of_head(builder: Any, address: Any, is_bf16: bool) -> list[Any]:
    """One key or value as float vectors."""
    if not is_bf16:
        return [load(builder, builder.add(address, I64(64 * i)), VF) for i in range(_PARTS)]
    halves = ir.VectorType(I16, LANES)
    parts = [load(builder, builder.add(address, I64(32 * i)), halves, 2) for i in range(_PARTS)]
    return [widen_bf16(builder, part) for part in parts]


def _prefetch_row(builder: Any, ahead: Any, key: Any, bytes_each: int) -> None:
    for line in range(0, bytes_each, 64):
        address = builder.add(builder.mul(key, I64(bytes_each)), I64(line))
        emit_prefetch(builder, builder.add(ahead, address))


def _scores(rows: int, is_bf16: bool) -> Any:
    key_bytes = HEAD_DIM * (2 if is_bf16 else 4)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        q, q_bytes, keys, scores, score_bytes, ahead = args
        starts = [builder.add(q, builder.mul(q_bytes, I64(r))) for r in range(rows)]
        queries = [
            [load(builder, builder.add(start, I64(64 * i)), VF) for i in range(_PARTS)] for start in starts
        ]
        dots: list[list[Any]] = [[] for _ in range(rows)]  # per row, one vector of partial sums per key
        for key in range(LANES):
            _prefetch_row(builder, ahead, I64(key), key_bytes)
            parts = _row_of_head(builder, builder.add(keys, I64(key * key_bytes)), is_bf16)
            for r in range(rows):
                total = builder.fmul(queries[r][0], parts[0])
                for i in range(1, _PARTS):
                    total = fma(builder, queries[r][i], parts[i], total)
                dots[r].append(total)
                _merge(builder, dots[r], key)
        for r in range(rows):
            store(builder, dots[r][0], builder.add(scores, builder.mul(score_bytes, I64(r))))
        return context.get_dummy_value()

    return codegen


def _merge(builder: Any, stack: list[Any], key: int) -> None:
    """Halve equal subtrees as soon as both are there, so that few vectors are alive at once."""
    for level in range(4):
        if (key + 1) % (2 << level):
            return
        right, left = stack.pop(), stack.pop()
        stack.append(halve(builder, left, right, 1 if level < 2 else 4))


def _values(rows: int, is_bf16: bool) -> Any:
    value_bytes = HEAD_DIM * (2 if is_bf16 else 4)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        weights, weight_bytes, values, count, sums, ahead = args
        starts = [builder.add(weights, builder.mul(weight_bytes, I64(r))) for r in range(rows)]
        places = [builder.add(sums, I64(64 * i)) for i in range(rows * _PARTS)]
        firsts = [load(builder, place, VF) for place in places]
        entry, loop = builder.block, builder.append_basic_block("key")
        done = builder.append_basic_block("done")
        builder.branch(loop)
        builder.position_at_end(loop)
        key = builder.phi(I64)
        totals = [builder.phi(VF) for _ in places]
        _prefetch_row(builder, ahead, key, value_bytes)
        parts = _row_of_head(builder, builder.add(values, builder.mul(key, I64(value_bytes))), is_bf16)
        new = []
        for r in range(rows):
            weight = splat(builder, load(builder, builder.add(starts[r], builder.shl(key, I64(2))), F32))
            new += [fma(builder, weight, parts[i], totals[r * _PARTS + i]) for i in range(_PARTS)]
        following = builder.add(key, I64(1))
        for phi, first, later in zip([key, *totals], [I64(0), *firsts], [following, *new], strict=True):
            phi.add_incoming(first, entry)
            phi.add_incoming(later, loop)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, done)
        builder.position_at_end(done)
        for total, place in zip(new, places, strict=True):
            store(builder, total, place)
        return context.get_dummy_value()

    return codegen


def _named(name: str, codegen: Any, doc: str) -> Any:
    def made(typingctx, a, b, c, d, e, f):
        return types.void(*[types.int64] * 6), codegen

    made.__name__, made.__doc__ = name, doc
    return intrinsic(made)


_SCORES = (
    "Args: q, bytes between q rows, 16 keys, scores, bytes between score rows, where to prefetch 16 keys."
)
_VALUES = (
    "Args: weights, bytes between their rows, values, how many (>= 1), sums (rows, 64), where to prefetch."
)
scores_one_f32 = _named("scores_one_f32", _scores(1, False), _SCORES)
scores_one_bf16 = _named("scores_one_bf16", _scores(1, True), _SCORES)
scores_four_f32 = _named("scores_four_f32", _scores(QUERIES, False), _SCORES)
scores_four_bf16 = _named("scores_four_bf16", _scores(QUERIES, True), _SCORES)
values_one_f32 = _named("values_one_f32", _values(1, False), _VALUES)
values_one_bf16 = _named("values_one_bf16", _values(1, True), _VALUES)
values_four_f32 = _named("values_four_f32", _values(QUERIES, False), _VALUES)
values_four_bf16 = _named("values_four_bf16", _values(QUERIES, True), _VALUES)

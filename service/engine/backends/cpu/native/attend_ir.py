# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, misc"
"""Sixteen keys against some queries, and weights against values: the inner loops of attention.

For heads of any multiple of sixteen. A block's keys lie in lanes, its values in parts of one vector; numbers
are float32, or bfloat16 in pairs (`attention.arranged`), and sums are float32. **Each query row goes through
the same operations in the same order whatever number of rows shares the loads**, so a row's bits do not
depend on its companions. `attend` decides which rows and blocks meet; it has a slower way for other sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from service.engine.backends.cpu.native.emit import (
    F32,
    I64,
    VF,
    VI,
    constant,
    emit_prefetch,
    fma,
    load,
    splat,
    store,
)
from service.engine.backends.cpu.processor import ROWS_SHARING

_LINE = 64


def _load_pair(builder: Any, address: Any, distance: Any, is_bf16: bool) -> tuple[Any, Any]:
    """Two neighbours for sixteen lanes as float vectors; float32 ones lie `distance` bytes apart."""
    if not is_bf16:
        return load(builder, address, VF), load(builder, builder.add(address, distance), VF)
    both = load(builder, address, VI)
    low, high = builder.shl(both, constant(VI, 16)), builder.and_(both, constant(VI, 0xFFFF0000))
    return builder.bitcast(low, VF), builder.bitcast(high, VF)


def _loop(builder: Any, count: Any, firsts: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> Any:
    """Emit `for i in range(count): values = body(i, values)`; gives the last values."""
    entry, test = builder.block, builder.append_basic_block("test")
    loop, done = builder.append_basic_block("loop"), builder.append_basic_block("done")
    builder.branch(test)
    builder.position_at_end(test)
    index, values = builder.phi(I64), [builder.phi(first.type) for first in firsts]
    builder.cbranch(builder.icmp_signed("<", index, count), loop, done)
    builder.position_at_end(loop)
    new = body(index, values)
    following = builder.add(index, I64(1))
    for phi, first, later in zip([index, *values], [I64(0), *firsts], [following, *new], strict=True):
        phi.add_incoming(first, entry)
        phi.add_incoming(later, builder.block)
    builder.branch(test)
    builder.position_at_end(done)
    return values


def _times_added(
    builder: Any, rows: int, factors: Any, stride: int, vector: Any, totals: list[Any]
) -> list[Any]:
    """Each row's total plus the vector times the row's factor; factors are `stride` bytes apart."""
    return [
        fma(
            builder,
            splat(builder, load(builder, builder.add(factors, I64(stride * r)), F32)),
            vector,
            totals[r],
        )
        for r in range(rows)
    ]


def _scores(rows: int, is_bf16: bool) -> Any:
    """Dots of `rows` queries with sixteen keys: a chain over a head's even elements, one over the odd."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        q, keys, pairs, scores, ahead = args
        pair_bytes = _LINE if is_bf16 else 2 * _LINE

        def body(pair: Any, sums: list[Any]) -> list[Any]:
            inside = builder.mul(pair, I64(pair_bytes))
            for line in range(0, pair_bytes, _LINE):
                emit_prefetch(builder, builder.add(builder.add(ahead, inside), I64(line)))
            even, odd = _load_pair(builder, builder.add(keys, inside), I64(_LINE), is_bf16)
            here = builder.add(q, builder.mul(pair, I64(8 * rows)))
            there = builder.add(here, I64(4 * rows))
            return [
                *_times_added(builder, rows, here, 4, even, sums[:rows]),
                *_times_added(builder, rows, there, 4, odd, sums[rows:]),
            ]

        sums = _loop(builder, pairs, [constant(VF, 0.0)] * (2 * rows), body)
        for r in range(rows):
            total = builder.fadd(sums[r], sums[rows + r])
            store(builder, total, builder.add(scores, I64(_LINE * r)))
        return context.get_dummy_value()

    return codegen


def _values(rows: int, is_bf16: bool) -> Any:
    """One part after another: its sums stay in registers while the keys go by, two at a time."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        weights, values, parts, count, sums, ahead = args
        line = builder.mul(parts, I64(_LINE))  # bytes of one value in float32, of two in bfloat16
        pair_bytes = line if is_bf16 else builder.mul(line, I64(2))
        pairs = builder.lshr(count, I64(1))
        is_odd = builder.trunc(count, ir.IntType(1))

        def one_part(part: Any, _: list[Any]) -> list[Any]:
            first = builder.mul(part, I64(_LINE))
            addresses = [
                builder.add(builder.add(sums, builder.mul(line, I64(r))), first) for r in range(rows)
            ]

            def both_of(pair: Any, totals: list[Any], is_whole: bool = True) -> list[Any]:
                inside = builder.add(first, builder.mul(pair, pair_bytes))
                even, odd = _load_pair(builder, builder.add(values, inside), line, is_bf16)
                factors = builder.add(weights, builder.mul(pair, I64(8)))
                totals = _times_added(builder, rows, factors, _LINE, even, totals)
                if not is_whole:
                    return totals
                emit_prefetch(builder, builder.add(ahead, inside))
                if not is_bf16:
                    emit_prefetch(builder, builder.add(builder.add(ahead, inside), line))
                return _times_added(builder, rows, builder.add(factors, I64(4)), _LINE, odd, totals)

            totals = _loop(builder, pairs, [load(builder, address, VF) for address in addresses], both_of)
            for total, address in zip(totals, addresses, strict=True):
                store(builder, total, address)
            with builder.if_then(is_odd):
                for total, address in zip(both_of(pairs, totals, False), addresses, strict=True):
                    store(builder, total, address)
            return []

        _loop(builder, parts, [], one_part)
        return context.get_dummy_value()

    return codegen


def _named(name: str, count: int, codegen: Any, doc: str) -> Any:
    def five(typingctx, a, b, c, d, e):
        return types.void(*[types.int64] * 5), codegen

    def six(typingctx, a, b, c, d, e, f):
        return types.void(*[types.int64] * 6), codegen

    made = five if count == 5 else six
    made.__name__, made.__doc__ = name, doc
    return intrinsic(made)


def _scores_intrinsic(rows: int, is_bf16: bool) -> Any:
    """Args: queries as (head dim, rows), 16 keys, pairs of elements in a head, scores as (rows, 16), where to
    prefetch 16 keys.
    """
    name = f"scores_{rows}_{'bf16' if is_bf16 else 'f32'}"
    return _named(name, 5, _scores(rows, is_bf16), "")


def _values_intrinsic(rows: int, is_bf16: bool) -> Any:
    """Args: weights as (rows, 16), 16 values, vectors in a head, how many values, sums as (rows, head dim),
    where to prefetch.
    """
    name = f"values_{rows}_{'bf16' if is_bf16 else 'f32'}"
    return _named(name, 6, _values(rows, is_bf16), "")


# rows that share the loads of keys and values: as many as a sequence brings, of these
MANY, SOME = ROWS_SHARING
scores_one_f32, scores_one_bf16 = _scores_intrinsic(1, False), _scores_intrinsic(1, True)
scores_some_f32, scores_some_bf16 = _scores_intrinsic(SOME, False), _scores_intrinsic(SOME, True)
scores_many_f32, scores_many_bf16 = _scores_intrinsic(MANY, False), _scores_intrinsic(MANY, True)
values_one_f32, values_one_bf16 = _values_intrinsic(1, False), _values_intrinsic(1, True)
values_some_f32, values_some_bf16 = _values_intrinsic(SOME, False), _values_intrinsic(SOME, True)
values_many_f32, values_many_bf16 = _values_intrinsic(MANY, False), _values_intrinsic(MANY, True)

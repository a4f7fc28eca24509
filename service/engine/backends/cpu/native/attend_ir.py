# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, misc"
"""Sixteen keys against a few queries, and weights against values: the inner loops of attention.

For heads of any multiple of sixteen: a head is walked in parts of one vector. Keys and values are float32 or
bfloat16 bits; sums are float32. **Each query row goes through the same operations in the same order whatever
number of rows shares the loads**, so a row's bits do not depend on its companions. `attend` decides which
rows and blocks meet, and handles other head sizes more slowly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from service.engine.backends.cpu.native.emit import (
    F32,
    I16,
    I64,
    VF,
    constant,
    emit_prefetch,
    fma,
    halve,
    load,
    splat,
    store,
    widen_bf16,
)
from service.engine.backends.cpu.processor import LANES

QUERIES = 4  # rows that share the loads of keys and values where a sequence brings that many
_SUMS = 16  # sums that a loop keeps in registers


def _load_part(builder: Any, address: Any, is_bf16: bool) -> Any:
    """Sixteen numbers of a key or value as a float vector."""
    if not is_bf16:
        return load(builder, address, VF)
    return widen_bf16(builder, load(builder, address, ir.VectorType(I16, LANES), 2))


def _loop(builder: Any, count: Any, firsts: list[Any], body: Callable[[Any, list[Any]], list[Any]]) -> Any:
    """Emit `for i in range(count): values = body(i, values)`, count >= 1; gives the last values."""
    entry, loop = builder.block, builder.append_basic_block("loop")
    done = builder.append_basic_block("done")
    builder.branch(loop)
    builder.position_at_end(loop)
    index, values = builder.phi(I64), [builder.phi(first.type) for first in firsts]
    new = body(index, values)
    following = builder.add(index, I64(1))
    for phi, first, later in zip([index, *values], [I64(0), *firsts], [following, *new], strict=True):
        phi.add_incoming(first, entry)
        phi.add_incoming(later, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, done)
    builder.position_at_end(done)
    return new


def _at(builder: Any, base: Any, index: Any, size: int) -> Any:
    return builder.add(base, builder.mul(index, I64(size)))


def _scores(rows: int, is_bf16: bool) -> Any:
    """Dots of `rows` queries with sixteen keys, as many keys at once as there are registers for."""
    part_bytes, together = (32 if is_bf16 else 64), _SUMS // rows

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        q, q_bytes, keys, parts, scores, score_bytes, ahead = args
        key_bytes = builder.mul(parts, I64(part_bytes))
        starts = [builder.add(q, builder.mul(q_bytes, I64(r))) for r in range(rows)]
        stacks: list[list[Any]] = [[] for _ in range(rows)]  # per row, vectors of partial sums
        for first in range(0, LANES, together):
            offsets = [builder.mul(key_bytes, I64(first + i)) for i in range(together)]

            def body(part: Any, sums: list[Any], offsets: list[Any] = offsets) -> list[Any]:
                queries = [load(builder, _at(builder, start, part, 64), VF) for start in starts]
                inside = builder.mul(part, I64(part_bytes))
                new = []
                for i, offset in enumerate(offsets):
                    offset_of_key = builder.add(offset, inside)
                    emit_prefetch(builder, builder.add(ahead, offset_of_key))
                    key = _load_part(builder, builder.add(keys, offset_of_key), is_bf16)
                    new += [fma(builder, queries[r], key, sums[i * rows + r]) for r in range(rows)]
                return new

            sums = _loop(builder, parts, [constant(VF, 0.0)] * (together * rows), body)
            for i in range(together):
                for r in range(rows):
                    stacks[r].append(sums[i * rows + r])
                    _merge(builder, stacks[r], first + i)
        for r in range(rows):
            store(builder, stacks[r][0], builder.add(scores, builder.mul(score_bytes, I64(r))))
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
    """One part after another: its sums stay in registers while the keys go by."""
    part_bytes = 32 if is_bf16 else 64

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        weights, weight_bytes, values, parts, count, sums, ahead = args
        value_bytes, sum_bytes = builder.mul(parts, I64(part_bytes)), builder.mul(parts, I64(64))
        starts = [builder.add(weights, builder.mul(weight_bytes, I64(r))) for r in range(rows)]

        def one_part(part: Any, _: list[Any]) -> list[Any]:
            first = builder.mul(part, I64(part_bytes))
            addresses = [
                builder.add(builder.add(sums, builder.mul(sum_bytes, I64(r))), builder.mul(part, I64(64)))
                for r in range(rows)
            ]

            def one_key(key: Any, totals: list[Any]) -> list[Any]:
                offset_of_key = builder.add(first, builder.mul(key, value_bytes))
                emit_prefetch(builder, builder.add(ahead, offset_of_key))
                value = _load_part(builder, builder.add(values, offset_of_key), is_bf16)
                factors = [load(builder, _at(builder, start, key, 4), F32) for start in starts]
                return [
                    fma(builder, splat(builder, factor), value, total)
                    for factor, total in zip(factors, totals, strict=True)
                ]

            totals = _loop(builder, count, [load(builder, address, VF) for address in addresses], one_key)
            for total, address in zip(totals, addresses, strict=True):
                store(builder, total, address)
            return []

        _loop(builder, parts, [], one_part)
        return context.get_dummy_value()

    return codegen


def _named(name: str, codegen: Any, doc: str) -> Any:
    def made(typingctx, a, b, c, d, e, f, g):
        return types.void(*[types.int64] * 7), codegen

    made.__name__, made.__doc__ = name, doc
    return intrinsic(made)


_SCORES = """Args: q, bytes between q rows, 16 keys, vectors in a head, scores, bytes between score rows,
where to prefetch 16 keys."""
_VALUES = """Args: weights, bytes between their rows, values, vectors in a head, how many values (>= 1),
sums (rows, head), where to prefetch."""
scores_one_f32 = _named("scores_one_f32", _scores(1, False), _SCORES)
scores_one_bf16 = _named("scores_one_bf16", _scores(1, True), _SCORES)
scores_four_f32 = _named("scores_four_f32", _scores(QUERIES, False), _SCORES)
scores_four_bf16 = _named("scores_four_bf16", _scores(QUERIES, True), _SCORES)
values_one_f32 = _named("values_one_f32", _values(1, False), _VALUES)
values_one_bf16 = _named("values_one_bf16", _values(1, True), _VALUES)
values_four_f32 = _named("values_four_f32", _values(QUERIES, False), _VALUES)
values_four_bf16 = _named("values_four_bf16", _values(QUERIES, True), _VALUES)

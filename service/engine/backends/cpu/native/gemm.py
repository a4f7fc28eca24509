# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, misc"
"""The hand-made register tile: some rows of activations times one packed tile of weights.

Every precision walks K in steps of four bytes of weights: one float32, two bfloat16 or four int8. A step
broadcasts what a row of activations has for it and combines that with one vector of weights per sixteen
columns. bfloat16 weights meet rows of bfloat16 where an instruction multiplies them, else of float32.
**Each output is one chain of such steps in the order of K, whatever the number of rows, so a row's bits
never depend on its neighbours.** This module knows registers and prefetching; `linear_task` gives it tiles,
scales and biases.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from service.engine.backends.cpu.native.emit import (
    I8,
    I16,
    I32,
    I64,
    VF,
    VI,
    call,
    constant,
    emit_prefetch,
    fma,
    load,
    splat,
    store,
)
from service.engine.backends.cpu.processor import (
    HAS_AVX2,
    HAS_BF16,
    HAS_VNNI,
    LANES,
    ROWS,
    STEP_BYTES,
    VECTORS,
)
from service.engine.backends.cpu.records import BFLOAT16, FLOAT32, INT8

Dot = Callable[[Any, Any, Any, Any], Any]  # (builder, sum, activation <16 x i32>, weights <16 x i32>) -> sum
Half = Callable[[Any, Any], Any]  # (builder, weights <16 x i32>) -> what of them the dot multiplies


class _BFloat(ir.types._BaseFloatType):  # llvmlite has no name for it
    null = "0.0"
    intrinsic_name = "bf16"

    def __str__(self) -> str:
        return "bfloat"


_BFloat._create_instance()


def _dot_float32(builder: Any, total: Any, activation: Any, weights: Any) -> Any:
    return fma(builder, builder.bitcast(activation, VF), builder.bitcast(weights, VF), total)


def _dot_bfloat16(builder: Any, total: Any, activation: Any, weights: Any) -> Any:
    pairs = ir.VectorType(_BFloat(), 2 * LANES)
    a, w = builder.bitcast(activation, pairs), builder.bitcast(weights, pairs)
    return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", VF, total, a, w)


def _low_half(builder: Any, weights: Any) -> Any:
    """The first bfloat16 of each lane, as float32 bits."""
    return builder.shl(weights, constant(VI, 16))


def _high_half(builder: Any, weights: Any) -> Any:
    """The second one."""
    return builder.and_(weights, constant(VI, 0xFFFF0000))


def _all(builder: Any, weights: Any) -> Any:
    return weights


def _dot_int8(builder: Any, total: Any, activation: Any, weights: Any) -> Any:
    quads = ir.VectorType(I8, 4 * LANES)
    a, w = builder.bitcast(activation, quads), builder.bitcast(weights, quads)
    return call(builder, "llvm.x86.avx512.vpdpbusd.512", VI, total, a, w)


def _dot_int8_pairs(builder: Any, total: Any, activation: Any, weights: Any) -> Any:
    """With AVX2: even and odd bytes as 16-bit numbers, whose products are added in pairs, exactly."""
    half, pairs = ir.VectorType(I32, LANES // 2), ir.VectorType(I16, LANES)
    eight = ir.Constant(pairs, [8] * LANES)
    parts = []
    for first in (0, LANES // 2):
        order = ir.Constant(half, list(range(first, first + LANES // 2)))
        sums, a, w = (builder.shuffle_vector(x, x, order) for x in (total, activation, weights))
        a, w = builder.bitcast(a, pairs), builder.bitcast(w, pairs)
        even = builder.and_(a, ir.Constant(pairs, [255] * LANES)), builder.ashr(builder.shl(w, eight), eight)
        odd = builder.lshr(a, eight), builder.ashr(w, eight)
        for left, right in (even, odd):
            sums = builder.add(sums, call(builder, "llvm.x86.avx2.pmadd.wd", half, left, right))
        parts.append(sums)
    return builder.shuffle_vector(*parts, ir.Constant(VI, list(range(LANES))))


def _dot_int8_shifted(builder: Any, total: Any, activation: Any, weights: Any) -> Any:
    """For any processor: one byte of each lane at a time."""
    for byte in range(4):
        a = builder.and_(builder.lshr(activation, constant(VI, 8 * byte)), constant(VI, 255))
        w = builder.ashr(builder.shl(weights, constant(VI, 24 - 8 * byte)), constant(VI, 24))
        total = builder.add(total, builder.mul(a, w))
    return total


def _emit_loop(
    builder: Any, rows: int, lines: int, dot: Dot, halves: tuple[Half, ...], sums: Any, args: Any
) -> None:
    """The loop over K for a fixed number of rows; leaves rows * TILE sums at `scratch`.

    Args:
        lines: cache lines to prefetch per step.
        halves: parts of a step's weights, each for four bytes of a row.
        sums: LLVM vector type of the sums.
        args: addresses and counts, as in `multiply_tile`.
    """
    a, row_bytes, b, steps, scratch, ahead = args
    entry, loop, done = builder.block, builder.append_basic_block("k"), builder.append_basic_block("done")
    starts = [builder.add(a, builder.mul(row_bytes, I64(r))) for r in range(rows)]
    builder.branch(loop)
    builder.position_at_end(loop)
    k = builder.phi(I64)
    totals = [builder.phi(sums) for _ in range(rows * VECTORS)]
    here = builder.add(b, builder.mul(k, I64(STEP_BYTES)))
    weights = [load(builder, builder.add(here, I64(64 * j)), VI, 64) for j in range(VECTORS)]
    for line in range(lines):
        offset = builder.mul(k, I64(64 * lines))
        emit_prefetch(builder, builder.add(builder.add(ahead, offset), I64(64 * line)))
    new: list[Any] = list(totals)
    for half, of in enumerate(halves):
        parts = [of(builder, each) for each in weights]
        offset = builder.add(builder.mul(k, I64(4 * len(halves))), I64(4 * half))
        for r in range(rows):
            quad = splat(builder, load(builder, builder.add(starts[r], offset), I32))
            for j in range(VECTORS):
                new[r * VECTORS + j] = dot(builder, new[r * VECTORS + j], quad, parts[j])
    following = builder.add(k, I64(1))
    for phi, first, later in zip(
        [k, *totals], [I64(0)] + [constant(sums, 0)] * len(new), [following, *new], strict=True
    ):
        phi.add_incoming(first, entry)
        phi.add_incoming(later, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, steps), loop, done)
    builder.position_at_end(done)
    for i, total in enumerate(new):
        store(builder, total, builder.add(scratch, I64(64 * i)), 64)


def _tile_intrinsic(name: str, kind: int, dot: Dot, sums: Any, halves: tuple[Half, ...] = (_all,)) -> Any:
    """An intrinsic with one loop per number of rows; its docstring is below."""
    max_rows = ROWS[kind]
    variants = [(rows, 4) for rows in range(1, max_rows + 1)]
    variants += [(rows, lines) for rows in range(max_rows // 2, max_rows + 1) for lines in (1, 2)]

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        end = builder.append_basic_block("end")
        key = builder.add(builder.mul(args[7], I64(16)), args[6])
        switch = builder.switch(key, end)
        for rows, lines in variants:
            block = builder.append_basic_block(f"rows{rows}_lines{lines}")
            switch.add_case(I64(16 * lines + rows), block)
            builder.position_at_end(block)
            _emit_loop(builder, rows, lines * VECTORS // 4, dot, halves, sums, args[:6])
            builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    def multiply(typingctx, a, row_bytes, b, steps, scratch, ahead, rows, lines):
        return types.void(*[types.int64] * 8), codegen

    multiply.__name__ = name
    multiply.__doc__ = """Sums of `rows` rows against one tile of weights.

    Args (all int64; addresses are of bytes):
        a: first row of activations, rows `row_bytes` apart, readable for 4 or 8 * steps bytes each.
        b: the packed tile, 64-byte aligned: steps * STEP_BYTES bytes.
        steps: four-byte steps along K, at least 1.
        scratch: rows * TILE sums, 64-byte aligned.
        ahead: where to prefetch from while at it; need not be mapped.
        rows: 1 .. ROWS[kind].
        lines: quarters of a tile to prefetch: 4, or 1 or 2 (ROWS[kind] // 2 rows and more only).
    """
    return intrinsic(multiply)


multiply_float32 = _tile_intrinsic("multiply_float32", FLOAT32, _dot_float32, VF)
multiply_bfloat16 = (
    _tile_intrinsic("multiply_bfloat16", BFLOAT16, _dot_bfloat16, VF)
    if HAS_BF16
    else _tile_intrinsic("multiply_bfloat16", BFLOAT16, _dot_float32, VF, (_low_half, _high_half))
)
multiply_int8 = _tile_intrinsic(
    "multiply_int8", INT8, _dot_int8 if HAS_VNNI else _dot_int8_pairs if HAS_AVX2 else _dot_int8_shifted, VI
)

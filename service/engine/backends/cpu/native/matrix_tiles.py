# mypy: disable-error-code="no-untyped-def, no-untyped-call"
"""The register tile on processors with AMX: sixteen rows at a time by the processor's own matrix registers.

The same operands in the same layout as `gemm`: a packed tile of weights is already what AMX wants, sixteen
steps of K at a time. Eight registers: four of sums, one of activations, three of weights in turn. A row's
sums are made of its own values only, in the order of K, whatever the other rows hold. int8 sums are exact,
hence equal to `gemm`'s; bfloat16 ones differ from them in rounding, so a layer uses one or the other for all
its rows.

Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, TDPBF16PS and LDTILECFG.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from service.engine.backends.cpu.native.emit import I8, I64, call, emit_prefetch, pointer

# cache lines of the next tile that may be prefetched for each instruction: with 16, all of it in one pass
LINES = (1, 2, 3, 4, 6, 8, 16)
STEPS = 16  # four-byte steps of K in one tile; K must be a multiple
_VECTORS = 4  # sums of sixteen columns each, as in `gemm` with AVX-512
_LINE = 64
_STEP_BYTES = _VECTORS * _LINE
_LEAD = 32  # steps, 8 KB: weights read once are fetched so far ahead, into the first-level cache
_SUMS, _ACTIVATIONS, _WEIGHTS = (0, 1, 2, 3), 4, (5, 6, 7)
_VOID = ir.VoidType()


@intrinsic
def configure(typingctx, rows):
    """Tell the registers their shapes: `rows` lines of sums and activations, 16 of weights, 64 bytes each."""

    def codegen(context, builder, sig, args):
        room = cgutils.alloca_once(builder, ir.ArrayType(I64, 8))
        asked = builder.mul(args[0], I64(0x0101010101))  # one byte for each of the first five registers
        lines = builder.or_(asked, I64(0x101010 << 40))
        for index, word in enumerate((1, 0, 0x0040004000400040, 0x0040004000400040, 0, 0, lines, 0)):
            value = I64(word) if isinstance(word, int) else word
            builder.store(value, builder.gep(room, [I64(0), I64(index)]))
        call(builder, "llvm.x86.ldtilecfg", _VOID, builder.bitcast(room, ir.PointerType(I8)))
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic
def release(typingctx):
    """Give the registers back."""

    def codegen(context, builder, sig, args):
        call(builder, "llvm.x86.tilerelease", _VOID)
        return context.get_dummy_value()

    return types.void(), codegen


def _load(builder: Any, register: int, address: Any, stride: Any) -> None:
    call(builder, "llvm.x86.tileloadd64", _VOID, I8(register), pointer(builder, address, I8), stride)


def _emit_following(builder: Any, lines: int, k: Any, args: Any) -> tuple[Any, int]:
    """What is prefetched at step k, and into which cache.

    As much as is read goes straight to the first level, a little before it is needed: a detour by the second
    occupies the same few fill buffers twice. Less than that is a part of the next tile.
    """
    _, _, b, steps, _, ahead = args
    if lines < STEPS:
        return builder.add(ahead, builder.mul(k, I64(lines * _VECTORS * _LINE // STEPS))), 2
    later = builder.add(k, I64(_LEAD))
    behind = builder.sub(later, steps)
    is_here = builder.icmp_signed("<", behind, I64(0))
    start, step = builder.select(is_here, b, ahead), builder.select(is_here, later, behind)
    return builder.add(start, builder.mul(step, I64(_STEP_BYTES))), 1


def _emit_loop(builder: Any, lines: int, dot: str, args: Any) -> None:
    """All of K for `rows` rows; `lines` cache lines of what comes next are prefetched per instruction."""
    a, row_bytes, b, steps = args[:4]
    entry, loop = builder.block, builder.append_basic_block("k")
    done = builder.append_basic_block("done")
    builder.branch(loop)
    builder.position_at_end(loop)
    k = builder.phi(I64)
    _load(builder, _ACTIVATIONS, builder.add(a, builder.mul(k, I64(4))), row_bytes)
    here = builder.add(b, builder.mul(k, I64(_STEP_BYTES)))
    there, level = _emit_following(builder, lines, k, args)
    for j in range(_VECTORS):
        weights = _WEIGHTS[j % len(_WEIGHTS)]
        _load(builder, weights, builder.add(here, I64(_LINE * j)), I64(_STEP_BYTES))
        for line in range(lines * j, lines * (j + 1)):
            emit_prefetch(builder, builder.add(there, I64(_LINE * line)), level)
        call(builder, dot, _VOID, I8(_SUMS[j]), I8(_ACTIVATIONS), I8(weights))
    following = builder.add(k, I64(STEPS))
    k.add_incoming(I64(0), entry)
    k.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, steps), loop, done)
    builder.position_at_end(done)


def _emit(builder: Any, dot: str, args: Any) -> None:
    sums, lines = args[4], args[6]
    for register in _SUMS:
        call(builder, "llvm.x86.tilezero", _VOID, I8(register))
    end = builder.append_basic_block("sums")
    switch = builder.switch(lines, end)
    for count in LINES:
        block = builder.append_basic_block(f"lines{count}")
        switch.add_case(I64(count), block)
        builder.position_at_end(block)
        _emit_loop(builder, count, dot, args[:6])
        builder.branch(end)
    builder.position_at_end(end)
    for j, register in enumerate(_SUMS):
        target = pointer(builder, builder.add(sums, I64(_LINE * j)), I8)
        call(builder, "llvm.x86.tilestored64", _VOID, I8(register), target, I64(_STEP_BYTES))


def tile_intrinsic(name: str, dot: str) -> Any:
    """A numba intrinsic with the arguments of `gemm.multiply_*`, but K in `STEPS`, as many rows as
    `configure` was told, up to `processor.MATRIX_ROWS`, and `lines` of `LINES`.

    Args:
        name: of the intrinsic.
        dot: LLVM's name of the instruction.
    """

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _emit(builder, dot, args)
        return context.get_dummy_value()

    def multiply(typingctx, a, row_bytes, b, steps, sums, ahead, lines):
        return types.void(*[types.int64] * 7), codegen

    multiply.__name__ = name
    return intrinsic(multiply)


multiply_bfloat16 = tile_intrinsic("multiply_bfloat16_tiles", "llvm.x86.tdpbf16ps")
multiply_int8 = tile_intrinsic("multiply_int8_tiles", "llvm.x86.tdpbusd")

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, misc"
"""SIMD values inside numba code: sixteen float32 or int32 lanes as one variable, with the usual operators.

Numba vectorises loops when it can prove it may; these types make it certain, and fix the order of every sum.
LLVM splits the vectors where the processor's registers are narrower. Memory is addressed by plain integers.
Nothing here knows about neural networks; `rows` does.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from service.engine.backends.cpu.native.emit import (
    I8,
    I16,
    I32,
    I64,
    VD,
    VF,
    VI,
    VM,
    call,
    constant,
    exponential,
    fma,
    fold,
    limited,
    load,
    maximum,
    minimum,
    narrow_bf16,
    pointer,
    splat,
    store,
    widen_bf16,
)
from service.engine.backends.cpu.native.vector_types import DOUBLES, FLOATS, INTS, MASK, numba_intrinsic
from service.engine.backends.cpu.processor import LANES


@numba_intrinsic(FLOATS, types.int64)
def load_floats(builder: Any, address: Any) -> Any:
    """Sixteen float32 at `address`."""
    return load(builder, address, VF)


@numba_intrinsic(types.void, types.int64, FLOATS)
def store_floats(builder: Any, address: Any, x: Any) -> None:
    """Sixteen float32 to `address`."""
    store(builder, x, address)


@numba_intrinsic(FLOATS, types.int64, MASK)
def load_floats_where(builder: Any, address: Any, mask: Any) -> Any:
    """The masked lanes from memory, 0 elsewhere; unmasked addresses are not touched."""
    source = pointer(builder, address, VF)
    return call(builder, "llvm.masked.load.v16f32.p0", VF, source, I32(4), mask, constant(VF, 0.0))


@numba_intrinsic(types.void, types.int64, FLOATS, MASK)
def store_floats_where(builder: Any, address: Any, x: Any, mask: Any) -> None:
    """Store the masked lanes only."""
    call(
        builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), x, pointer(builder, address, VF), I32(4), mask
    )


@numba_intrinsic(INTS, types.int64)
def load_ints(builder: Any, address: Any) -> Any:
    """Sixteen int32 at `address`."""
    return load(builder, address, VI)


@numba_intrinsic(types.void, types.int64, FLOATS)
def store_bf16(builder: Any, address: Any, x: Any) -> None:
    """Sixteen lanes rounded to bfloat16 bits."""
    store(builder, narrow_bf16(builder, x), address, 2)


@numba_intrinsic(types.void, types.int64, FLOATS, MASK)
def store_bf16_where(builder: Any, address: Any, x: Any, mask: Any) -> None:
    """The masked lanes rounded to bfloat16 bits."""
    halves = ir.VectorType(I16, LANES)
    target = pointer(builder, address, halves)
    call(builder, "llvm.masked.store.v16i16.p0", ir.VoidType(), narrow_bf16(builder, x), target, I32(2), mask)


@numba_intrinsic(FLOATS, types.int64, MASK)
def load_bf16_where(builder: Any, address: Any, mask: Any) -> Any:
    """The masked lanes as float lanes, 0 elsewhere."""
    halves = ir.VectorType(I16, LANES)
    nothing = ir.Constant(halves, [0] * LANES)
    source = pointer(builder, address, halves)
    return widen_bf16(
        builder, call(builder, "llvm.masked.load.v16i16.p0", halves, source, I32(2), mask, nothing)
    )


@numba_intrinsic(types.void, types.int64, INTS)
def store_bytes(builder: Any, address: Any, x: Any) -> None:
    """The low byte of each lane."""
    store(builder, builder.trunc(x, ir.VectorType(I8, LANES)), address, 1)


@numba_intrinsic(FLOATS, types.float32)
def floats(builder: Any, scalar: Any) -> Any:
    """The same float in all lanes."""
    return splat(builder, scalar)


@numba_intrinsic(INTS, types.int32)
def ints(builder: Any, scalar: Any) -> Any:
    """The same int in all lanes."""
    return splat(builder, scalar)


@numba_intrinsic(MASK, types.int64)
def first_lanes(builder: Any, count: Any) -> Any:
    """Lanes 0 .. count - 1 (none below 1, all above 15)."""
    lanes = ir.Constant(VI, list(range(LANES)))
    few = builder.trunc(call(builder, "llvm.smin.i64", I64, count, I64(LANES)), I32)
    return builder.icmp_signed("<", lanes, splat(builder, few))


@numba_intrinsic(MASK, types.int64)
def lanes_of_bits(builder: Any, bits: Any) -> Any:
    """Lanes whose bit is set, lane 0 by the lowest."""
    return builder.bitcast(builder.trunc(bits, I16), VM)


@numba_intrinsic(MASK, FLOATS, FLOATS)
def at_least(builder: Any, a: Any, b: Any) -> Any:
    """Lanes where a >= b; none where either is NaN."""
    return builder.fcmp_ordered(">=", a, b)


@numba_intrinsic(MASK, FLOATS, FLOATS)
def above(builder: Any, a: Any, b: Any) -> Any:
    """Lanes where a > b; none where either is NaN."""
    return builder.fcmp_ordered(">", a, b)


@numba_intrinsic(types.boolean, MASK)
def any_lane(builder: Any, mask: Any) -> Any:
    """Whether a lane is set."""
    return builder.icmp_unsigned("!=", builder.bitcast(mask, I16), ir.Constant(I16, 0))


@numba_intrinsic(FLOATS, MASK, FLOATS, FLOATS)
def where(builder: Any, mask: Any, a: Any, b: Any) -> Any:
    """a in the masked lanes, b elsewhere."""
    return builder.select(mask, a, b)


@numba_intrinsic(FLOATS, FLOATS, FLOATS, FLOATS)
def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""
    return fma(builder, a, b, c)


@numba_intrinsic(FLOATS, FLOATS, FLOATS)
def larger(builder: Any, a: Any, b: Any) -> Any:
    """Lane by lane maximum."""
    return maximum(builder, a, b)


@numba_intrinsic(FLOATS, FLOATS, FLOATS)
def smaller(builder: Any, a: Any, b: Any) -> Any:
    """Lane by lane minimum."""
    return minimum(builder, a, b)


@numba_intrinsic(types.float32, FLOATS)
def sum_lanes(builder: Any, x: Any) -> Any:
    """Sum of the lanes, in a fixed tree."""
    return fold(builder, x, builder.fadd)


@numba_intrinsic(types.float32, FLOATS)
def max_lane(builder: Any, x: Any) -> Any:
    """Largest lane."""
    return fold(builder, x, lambda a, b: maximum(builder, a, b))


@numba_intrinsic(types.float32, FLOATS)
def min_lane(builder: Any, x: Any) -> Any:
    """Smallest lane."""
    return fold(builder, x, lambda a, b: minimum(builder, a, b))


@numba_intrinsic(FLOATS, FLOATS)
def exp(builder: Any, x: Any) -> Any:
    """e**x."""
    return exponential(builder, x)


@numba_intrinsic(FLOATS, FLOATS)
def floor(builder: Any, x: Any) -> Any:
    """The next integer at or below each lane."""
    return call(builder, "llvm.floor.v16f32", VF, x)


@numba_intrinsic(DOUBLES)
def no_doubles(builder: Any) -> Any:
    """0 in all lanes."""
    return constant(VD, 0.0)


@numba_intrinsic(DOUBLES, FLOATS)
def to_doubles(builder: Any, x: Any) -> Any:
    """The same numbers in 64 bits."""
    return builder.fpext(x, VD)


@numba_intrinsic(types.float64, DOUBLES)
def sum_doubles(builder: Any, x: Any) -> Any:
    """Sum of the lanes, in a fixed tree."""
    return fold(builder, x, builder.fadd)


@numba_intrinsic(FLOATS, INTS)
def to_floats(builder: Any, x: Any) -> Any:
    """int32 lanes to the nearest float32."""
    return builder.sitofp(x, VF)


@numba_intrinsic(INTS, FLOATS)
def round_to_ints(builder: Any, x: Any) -> Any:
    """Nearest integers, halves to even; limited to 2**24 either way, the lower limit for NaN."""
    rounded = call(builder, "llvm.roundeven.v16f32", VF, limited(builder, x, -(2.0**24), 2.0**24))
    return builder.fptosi(rounded, VI)


@numba_intrinsic(INTS, INTS, types.int32, types.int32)
def clamp_ints(builder: Any, x: Any, low: Any, high: Any) -> Any:
    """Lanes limited to low .. high."""
    for name, bound in (("llvm.smax.v16i32", low), ("llvm.smin.v16i32", high)):
        x = call(builder, name, VI, x, splat(builder, bound))
    return x


@numba_intrinsic(types.int32, INTS)
def first_int(builder: Any, x: Any) -> Any:
    """Lane 0."""
    return builder.extract_element(x, I32(0))

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, misc"
"""Pieces of LLVM IR: vector types, loads and stores at integer addresses, and float functions made of them.

Python functions that emit instructions through an llvmlite builder; numba code calls none of them itself.
`vectors` wraps the small ones as numba intrinsics, `gemm` and `attend_ir` build inner loops from them.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from service.engine.backends.cpu.processor import LANES

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32, F64 = ir.FloatType(), ir.DoubleType()
VF, VI = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
VD, VM = ir.VectorType(F64, LANES), ir.VectorType(I1, LANES)


def call(builder: Any, name: str, result: Any, *args: Any) -> Any:
    """Call an LLVM intrinsic by name."""
    function_type = ir.FunctionType(result, [a.type for a in args])
    return builder.call(builder.module.declare_intrinsic(name, (), function_type), args)


def constant(vector: Any, value: float | int) -> Any:
    """The same constant in all lanes."""
    return ir.Constant(vector, [value] * LANES)


def splat(builder: Any, scalar: Any) -> Any:
    """The same run-time value in all lanes."""
    vector = ir.VectorType(scalar.type, LANES)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, I32(0))
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), ir.Constant(VI, [0] * LANES))


def pointer(builder: Any, address: Any, pointee: Any) -> Any:
    """An integer address as a pointer."""
    return builder.inttoptr(address, ir.PointerType(pointee))


def load(builder: Any, address: Any, kind: Any, align: int = 4) -> Any:
    """Load `kind` from an integer address that need not be aligned to the vector."""
    return builder.load(pointer(builder, address, kind), align=align)


def store(builder: Any, value: Any, address: Any, align: int = 4) -> None:
    """Store to an integer address."""
    builder.store(value, pointer(builder, address, value.type), align=align)


def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c with one rounding, on vectors."""
    return call(builder, "llvm.fma.v16f32", VF, a, b, c)


def widen_bf16(builder: Any, halves: Any) -> Any:
    """<16 x i16> bfloat16 bits -> float lanes."""
    return builder.bitcast(builder.shl(builder.zext(halves, VI), constant(VI, 16)), VF)


def narrow_bf16(builder: Any, x: Any) -> Any:
    """Float lanes -> <16 x i16> bfloat16 bits, to nearest even; NaN stays NaN."""
    bits = builder.bitcast(x, VI)
    odd = builder.and_(builder.lshr(bits, constant(VI, 16)), constant(VI, 1))
    rounded = builder.lshr(builder.add(builder.add(bits, constant(VI, 0x7FFF)), odd), constant(VI, 16))
    is_nan = builder.fcmp_unordered("uno", x, x)
    return builder.trunc(builder.select(is_nan, constant(VI, 0x7FC0), rounded), ir.VectorType(I16, LANES))


def exponential(builder: Any, x: Any) -> Any:
    """e**x in float lanes to about 2 ulp; 0 below -87.3, infinity above 88.7, NaN stays NaN.

    Splits x into n*ln2 + r with |r| <= ln2/2, a polynomial of degree 7 for e**r, and n added to the exponent
    in two halves so that neither end overflows early. Source: Cephes expf.
    """
    clamped = limited(builder, x, -104.0, 89.0)
    n = call(builder, "llvm.roundeven.v16f32", VF, builder.fmul(clamped, constant(VF, 1.4426950408889634)))
    r = fma(builder, n, constant(VF, -0.693359375), clamped)
    r = fma(builder, n, constant(VF, 2.12194440e-4), r)
    terms = (
        1.9875691500e-4,
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        0.5,
        1.0,
        1.0,
    )
    value = constant(VF, terms[0])
    for term in terms[1:]:
        value = fma(builder, value, r, constant(VF, term))
    whole = builder.fptosi(n, VI)
    half = builder.ashr(whole, constant(VI, 1))
    for power in (half, builder.sub(whole, half)):
        bits = builder.shl(builder.add(power, constant(VI, 127)), constant(VI, 23))
        value = builder.fmul(value, builder.bitcast(bits, VF))
    value = builder.select(builder.fcmp_ordered("<", x, constant(VF, -87.3)), constant(VF, 0.0), value)
    return builder.select(builder.fcmp_unordered("uno", x, x), x, value)


def limited(builder: Any, x: Any, low: float, high: float) -> Any:
    """Lanes kept within low .. high; NaN becomes low."""
    x = builder.select(builder.fcmp_ordered(">", x, constant(VF, low)), x, constant(VF, low))
    return builder.select(builder.fcmp_ordered("<", x, constant(VF, high)), x, constant(VF, high))


def fold(builder: Any, x: Any, combine: Any) -> Any:
    """Combine all lanes into one scalar in a fixed tree: lanes 8 apart, then 4, 2, 1."""
    for distance in (8, 4, 2, 1):
        order = ir.Constant(VI, [(i + distance) % LANES for i in range(LANES)])
        x = combine(x, builder.shuffle_vector(x, x, order))
    return builder.extract_element(x, I32(0))


def emit_prefetch(builder: Any, address: Any, level: int = 2) -> None:
    """Prefetch for reading into the first-level cache or the second."""
    target, locality = pointer(builder, address, I8), I32(4 - level)
    call(builder, "llvm.prefetch.p0", ir.VoidType(), target, I32(0), locality, I32(1))


def maximum(builder: Any, a: Any, b: Any) -> Any:
    """Lane by lane; a NaN on either side wins."""
    return call(builder, "llvm.maximum.v16f32", VF, a, b)


def minimum(builder: Any, a: Any, b: Any) -> Any:
    """Lane by lane; a NaN on either side wins."""
    return call(builder, "llvm.minimum.v16f32", VF, a, b)

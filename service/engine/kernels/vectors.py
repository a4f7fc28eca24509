"""SIMD values inside numba code: sixteen float32 or int32 lanes as one variable, with the usual operators.

Numba vectorises loops when it can prove it may; these types make it certain, and fix the order of every sum. LLVM
splits the vectors where the processor's registers are narrower. Memory is addressed by plain integers. Nothing here
knows about neural networks; `rows` does.
"""

from __future__ import annotations

import operator
import platform
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.errors import TypingError
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

LANES = 16
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32 = ir.FloatType()
VF, VI = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES)
VM = ir.VectorType(I1, LANES)


class VectorType(types.Type):
    """Sixteen lanes of one kind: 'f32', 'i32' or 'mask'."""

    def __init__(self, lane: str) -> None:
        self.lane = lane
        super().__init__(name=f"vector16_{lane}")


FLOATS, INTS, MASK = VectorType("f32"), VectorType("i32"), VectorType("mask")
_LLVM = {"f32": VF, "i32": VI, "mask": VM}


@register_model(VectorType)
class VectorModel(models.PrimitiveModel):
    """A vector lives in one register (or several narrow ones)."""

    def __init__(self, dmm: Any, fe_type: VectorType) -> None:
        super().__init__(dmm, fe_type, _LLVM[fe_type.lane])


class _SameType(AbstractTemplate):
    def generic(self, args: Any, kws: Any) -> Any:
        if len(args) == 2 and args[0] == args[1] and args[0] in (FLOATS, INTS):
            return signature(args[0], *args)
        return None


def _operator(function: Any, **emit: str) -> None:
    """Let `a <function> b` on vectors emit the named llvmlite builder method."""
    infer_global(function)(type(f"_Infer_{function.__name__}", (_SameType,), {"key": function}))
    for lane, method in emit.items():
        vector = FLOATS if lane == "f32" else INTS

        def lower(context: Any, builder: Any, sig: Any, args: Any, method: str = method) -> Any:
            return getattr(builder, method)(*args)

        lower_builtin(function, vector, vector)(lower)


_operator(operator.add, f32="fadd", i32="add")
_operator(operator.sub, f32="fsub", i32="sub")
_operator(operator.mul, f32="fmul", i32="mul")
_operator(operator.truediv, f32="fdiv")


# ---- pieces of LLVM IR, shared by the intrinsics here and the larger ones in `gemm` and `attend` ----


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

    Splits x into n*ln2 + r with |r| <= ln2/2, a degree-6 polynomial for e**r, and n added to the exponent in two
    halves so that neither end overflows early. Source: Cephes expf.
    """
    clamped = _minmax(builder, x, -104.0, 89.0)
    n = call(builder, "llvm.roundeven.v16f32", VF, builder.fmul(clamped, constant(VF, 1.4426950408889634)))
    r = fma(builder, n, constant(VF, -0.693359375), clamped)
    r = fma(builder, n, constant(VF, 2.12194440e-4), r)
    terms = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5, 1.0, 1.0)
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


def _minmax(builder: Any, x: Any, low: float, high: float) -> Any:
    x = builder.select(builder.fcmp_ordered(">", x, constant(VF, low)), x, constant(VF, low))
    return builder.select(builder.fcmp_ordered("<", x, constant(VF, high)), x, constant(VF, high))


def halve(builder: Any, a: Any, b: Any, group: int) -> Any:
    """Sums of neighbouring lanes (group 1) or neighbouring quarters (group 4), from a and b alternately.

    Rounds of group 1, 1, 4, 4 over sixteen vectors, pairwise, leave the sum of vector i in lane i. Each shuffle stays
    within 128 bits or moves 128 bits whole, which is what processors do fast.
    """
    if group == 1:
        even = [lane + source for lane in (0, 4, 8, 12) for source in (0, 2, LANES, LANES + 2)]
    else:
        even = [lane + i for lane in (0, 8, LANES, LANES + 8) for i in range(4)]
    odd = [lane + group for lane in even]
    halves = [builder.shuffle_vector(a, b, ir.Constant(VI, order)) for order in (even, odd)]
    return builder.fadd(*halves)


def fold(builder: Any, x: Any, combine: Any) -> Any:
    """Combine all lanes into one scalar in a fixed tree: lanes 8 apart, then 4, 2, 1."""
    for distance in (8, 4, 2, 1):
        order = ir.Constant(VI, [(i + distance) % LANES for i in range(LANES)])
        x = combine(x, builder.shuffle_vector(x, x, order))
    return builder.extract_element(x, I32(0))


# ---- intrinsics: what numba code calls ----


def _intrinsic(result: Any, *parameters: Any) -> Any:
    """Make an intrinsic of fixed types from an emitter `(builder, *args) -> value or None`."""

    def wrap(emit: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            value = emit(builder, *args)
            return context.get_dummy_value() if value is None else value

        names = [f"a{i}" for i in range(len(parameters))]
        scope: dict[str, Any] = {"codegen": codegen, "sig": result(*parameters)}
        exec(f"def {emit.__name__}(typingctx, {', '.join(names)}):\n    return sig, codegen", scope)  # numba reads
        made = scope[emit.__name__]  # the parameter list of the function it is given
        made.__doc__ = emit.__doc__
        return intrinsic(made)

    return wrap


@_intrinsic(FLOATS, types.int64)
def load_floats(builder: Any, address: Any) -> Any:
    """Sixteen float32 at `address`."""
    return load(builder, address, VF)


@_intrinsic(types.void, types.int64, FLOATS)
def store_floats(builder: Any, address: Any, x: Any) -> None:
    """Sixteen float32 to `address`."""
    store(builder, x, address)


@_intrinsic(FLOATS, types.int64, MASK)
def load_floats_where(builder: Any, address: Any, mask: Any) -> Any:
    """The masked lanes from memory, 0 elsewhere; unmasked addresses are not touched."""
    source = pointer(builder, address, VF)
    return call(builder, "llvm.masked.load.v16f32.p0", VF, source, I32(4), mask, constant(VF, 0.0))


@_intrinsic(types.void, types.int64, FLOATS, MASK)
def store_floats_where(builder: Any, address: Any, x: Any, mask: Any) -> None:
    """Store the masked lanes only."""
    call(builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), x, pointer(builder, address, VF), I32(4), mask)


@_intrinsic(INTS, types.int64)
def load_ints(builder: Any, address: Any) -> Any:
    """Sixteen int32 at `address`."""
    return load(builder, address, VI)


@_intrinsic(types.void, types.int64, FLOATS)
def store_bf16(builder: Any, address: Any, x: Any) -> None:
    """Sixteen lanes rounded to bfloat16 bits."""
    store(builder, narrow_bf16(builder, x), address, 2)


@_intrinsic(types.void, types.int64, FLOATS, MASK)
def store_bf16_where(builder: Any, address: Any, x: Any, mask: Any) -> None:
    """The masked lanes rounded to bfloat16 bits."""
    halves = ir.VectorType(I16, LANES)
    target = pointer(builder, address, halves)
    call(builder, "llvm.masked.store.v16i16.p0", ir.VoidType(), narrow_bf16(builder, x), target, I32(2), mask)


@_intrinsic(FLOATS, types.int64)
def load_bf16(builder: Any, address: Any) -> Any:
    """Sixteen bfloat16 as float lanes."""
    return widen_bf16(builder, load(builder, address, ir.VectorType(I16, LANES), 2))


@_intrinsic(FLOATS, types.int64, MASK)
def load_bf16_where(builder: Any, address: Any, mask: Any) -> Any:
    """The masked lanes as float lanes, 0 elsewhere."""
    halves = ir.VectorType(I16, LANES)
    nothing = ir.Constant(halves, [0] * LANES)
    source = pointer(builder, address, halves)
    return widen_bf16(builder, call(builder, "llvm.masked.load.v16i16.p0", halves, source, I32(2), mask, nothing))


@_intrinsic(types.void, types.int64, INTS)
def store_bytes(builder: Any, address: Any, x: Any) -> None:
    """The low byte of each lane."""
    store(builder, builder.trunc(x, ir.VectorType(I8, LANES)), address, 1)


@_intrinsic(FLOATS, types.float32)
def floats(builder: Any, scalar: Any) -> Any:
    """The same float in all lanes."""
    return splat(builder, scalar)


@_intrinsic(INTS, types.int32)
def ints(builder: Any, scalar: Any) -> Any:
    """The same int in all lanes."""
    return splat(builder, scalar)


@_intrinsic(MASK, types.int64)
def first_lanes(builder: Any, count: Any) -> Any:
    """Lanes 0 .. count - 1 (none below 1, all above 15)."""
    lanes = ir.Constant(ir.VectorType(I64, LANES), list(range(LANES)))
    return builder.icmp_signed("<", lanes, splat(builder, count))


@_intrinsic(FLOATS, MASK, FLOATS, FLOATS)
def where(builder: Any, mask: Any, a: Any, b: Any) -> Any:
    """a in the masked lanes, b elsewhere."""
    return builder.select(mask, a, b)


@_intrinsic(FLOATS, FLOATS, FLOATS, FLOATS)
def multiply_add(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""
    return fma(builder, a, b, c)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return call(builder, "llvm.maximum.v16f32", VF, a, b)  # a NaN on either side wins


def _smaller(builder: Any, a: Any, b: Any) -> Any:
    return call(builder, "llvm.minimum.v16f32", VF, a, b)


@_intrinsic(FLOATS, FLOATS, FLOATS)
def larger(builder: Any, a: Any, b: Any) -> Any:
    """Lane by lane maximum."""
    return _larger(builder, a, b)


@_intrinsic(FLOATS, FLOATS, FLOATS)
def smaller(builder: Any, a: Any, b: Any) -> Any:
    """Lane by lane minimum."""
    return _smaller(builder, a, b)


@_intrinsic(types.float32, FLOATS)
def sum_lanes(builder: Any, x: Any) -> Any:
    """Sum of the lanes, in a fixed tree."""
    return fold(builder, x, builder.fadd)


@_intrinsic(types.float32, FLOATS)
def max_lane(builder: Any, x: Any) -> Any:
    """Largest lane."""
    return fold(builder, x, lambda a, b: _larger(builder, a, b))


@_intrinsic(types.float32, FLOATS)
def min_lane(builder: Any, x: Any) -> Any:
    """Smallest lane."""
    return fold(builder, x, lambda a, b: _smaller(builder, a, b))


@_intrinsic(FLOATS, FLOATS)
def exp(builder: Any, x: Any) -> Any:
    """e**x."""
    return exponential(builder, x)


@_intrinsic(FLOATS, INTS)
def to_floats(builder: Any, x: Any) -> Any:
    """int32 lanes to the nearest float32."""
    return builder.sitofp(x, VF)


@_intrinsic(INTS, FLOATS)
def round_to_ints(builder: Any, x: Any) -> Any:
    """Nearest integers, halves to even; NaN gives 0."""
    rounded = call(builder, "llvm.roundeven.v16f32", VF, x)
    return call(builder, "llvm.fptosi.sat.v16i32.v16f32", VI, rounded)


@_intrinsic(INTS, INTS, types.int32, types.int32)
def clamp_ints(builder: Any, x: Any, low: Any, high: Any) -> Any:
    """Lanes limited to low .. high."""
    for name, bound in (("llvm.smax.v16i32", low), ("llvm.smin.v16i32", high)):
        x = call(builder, name, VI, x, splat(builder, bound))
    return x


@_intrinsic(types.int32, INTS)
def first_int(builder: Any, x: Any) -> Any:
    """Lane 0."""
    return builder.extract_element(x, I32(0))


@_intrinsic(types.float32, types.int64)
def load_float(builder: Any, address: Any) -> Any:
    """One float32."""
    return load(builder, address, F32)


@_intrinsic(types.void, types.int64, types.float32)
def store_float(builder: Any, address: Any, x: Any) -> None:
    """One float32."""
    store(builder, x, address)


@_intrinsic(types.int32, types.int64)
def load_int(builder: Any, address: Any) -> Any:
    """One int32."""
    return load(builder, address, I32)


@_intrinsic(types.void, types.int64, types.int32)
def store_int(builder: Any, address: Any, x: Any) -> None:
    """One int32."""
    store(builder, x, address)


@_intrinsic(types.int64, types.int64)
def load_long(builder: Any, address: Any) -> Any:
    """One int64."""
    return load(builder, address, I64, 8)


@_intrinsic(types.void, types.int64, types.int64)
def store_long(builder: Any, address: Any, x: Any) -> None:
    """One int64."""
    store(builder, x, address, 8)


@intrinsic
def stack_bytes(typingctx: Any, size: Any) -> Any:
    """Address of `size` (a constant) bytes on this function's stack, 64-byte aligned."""
    if not isinstance(size, types.IntegerLiteral):
        raise TypingError("stack_bytes needs a constant")

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        with builder.goto_entry_block():
            room = builder.alloca(ir.ArrayType(I8, size.literal_value))
            room.align = 64
        return builder.ptrtoint(room, I64)

    return types.int64(size), codegen


@_intrinsic(types.void, types.int64)
def prefetch(builder: Any, address: Any) -> None:
    """Ask for the cache line at `address`; never faults."""
    emit_prefetch(builder, address)


def emit_prefetch(builder: Any, address: Any) -> None:
    """Prefetch for reading into the second-level cache."""
    call(builder, "llvm.prefetch.p0", ir.VoidType(), pointer(builder, address, I8), I32(0), I32(2), I32(1))

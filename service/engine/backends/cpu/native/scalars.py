# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, misc"
"""What numba code has no word for beside vectors: single values by address, bytes on the stack, calls by
address. `vectors` has the rest.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.errors import TypingError
from numba.extending import intrinsic

from service.engine.backends.cpu.native.emit import F32, I8, I32, I64, load, store
from service.engine.backends.cpu.native.vector_types import numba_intrinsic


@numba_intrinsic(types.float32, types.int64)
def load_float(builder: Any, address: Any) -> Any:
    """One float32."""
    return load(builder, address, F32)


@numba_intrinsic(types.void, types.int64, types.float32)
def store_float(builder: Any, address: Any, x: Any) -> None:
    """One float32."""
    store(builder, x, address)


@numba_intrinsic(types.int32, types.int64)
def load_int(builder: Any, address: Any) -> Any:
    """One int32."""
    return load(builder, address, I32)


@numba_intrinsic(types.void, types.int64, types.int32)
def store_int(builder: Any, address: Any, x: Any) -> None:
    """One int32."""
    store(builder, x, address)


@numba_intrinsic(types.int64, types.int64)
def load_long(builder: Any, address: Any) -> Any:
    """One int64."""
    return load(builder, address, I64, 8)


@numba_intrinsic(types.void, types.int64, types.int64)
def store_long(builder: Any, address: Any, x: Any) -> None:
    """One int64."""
    store(builder, x, address, 8)


@numba_intrinsic(types.void, types.int64, types.float64)
def store_double(builder: Any, address: Any, x: Any) -> None:
    """One float64."""
    store(builder, x, address, 8)


@numba_intrinsic(types.int64, types.int64)
def load_byte(builder: Any, address: Any) -> Any:
    """One byte, from 0 to 255."""
    return builder.zext(load(builder, address, I8, 1), I64)


@numba_intrinsic(types.void, types.int64, types.int64)
def store_byte(builder: Any, address: Any, x: Any) -> None:
    """The low byte of a number."""
    store(builder, builder.trunc(x, I8), address, 1)


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


def invoker(count: int) -> Any:
    """An intrinsic `(function, *args)` that calls a compiled function of `count` int64 by its address.

    What is called so is compiled once, not again inside each caller.
    """

    def invoke(builder: Any, function: Any, *args: Any) -> None:
        kind = ir.FunctionType(ir.VoidType(), [I64] * count)
        builder.call(builder.inttoptr(function, ir.PointerType(kind)), args)

    return numba_intrinsic(types.void, *[types.int64] * (count + 1))(invoke)

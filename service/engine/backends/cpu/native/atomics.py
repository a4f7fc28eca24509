# mypy: disable-error-code="untyped-decorator"
"""What threads say to each other by: one int64 at a time, in one order that all of them see.

Numba intrinsics over integer addresses; `threads` makes a pool of them.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from service.engine.backends.cpu.native import emit
from service.engine.backends.cpu.native.vector_types import numba_intrinsic
from service.engine.backends.cpu.processor import IS_X86

_I = types.int64


@numba_intrinsic(_I, _I)
def atomic_load(builder: Any, address: Any) -> Any:
    """One int64, with everything written before it."""
    return builder.load_atomic(emit.pointer(builder, address, emit.I64), "seq_cst", 8)


@numba_intrinsic(types.void, _I, _I)
def atomic_store(builder: Any, address: Any, value: Any) -> None:
    """One int64, after everything written before it."""
    builder.store_atomic(value, emit.pointer(builder, address, emit.I64), "seq_cst", 8)


@numba_intrinsic(_I, _I, _I)
def atomic_add(builder: Any, address: Any, value: Any) -> Any:
    """Add and give the old value."""
    return builder.atomic_rmw("add", emit.pointer(builder, address, emit.I64), value, "seq_cst")


@numba_intrinsic(_I, _I, _I, _I)
def compare_swap(builder: Any, address: Any, expected: Any, value: Any) -> Any:
    """Write `value` if `expected` is there; what was there in either case."""
    target = emit.pointer(builder, address, emit.I64)
    return builder.extract_value(builder.cmpxchg(target, expected, value, "seq_cst"), 0)


@numba_intrinsic(types.void)
def pause(builder: Any) -> None:
    """Tell the processor that this is a waiting loop."""
    if IS_X86:
        emit.call(builder, "llvm.x86.sse2.pause", ir.VoidType())

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, misc"
"""New keys and values into the paged cache, laid out as `attention.arranged` says. `attend` reads them.

Several threads may write to one block, even to one word of it: each touches its own token's bytes only.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from service.engine.backends.cpu.native import vectors as vec
from service.engine.backends.cpu.native.attend_rows import element_bytes, is_fast
from service.engine.backends.cpu.native.emit import (
    I1,
    I16,
    I32,
    I64,
    VI,
    call,
    constant,
    narrow_bf16,
    pointer,
    store,
)
from service.engine.backends.cpu.native.functions import native
from service.engine.backends.cpu.native.scalars import load_long
from service.engine.backends.cpu.native.team import claim, meet
from service.engine.backends.cpu.native.vector_types import FLOATS, numba_intrinsic
from service.engine.backends.cpu.processor import LANES
from service.engine.backends.cpu.records import (
    A_BLOCK,
    A_HEAD_DIM,
    A_IS_BF16,
    A_KEYS,
    A_LAYER_BYTES,
    A_VALUES,
    B_SLOTS,
    B_TOKENS,
)


@numba_intrinsic(types.void, types.int64, FLOATS)
def _store_bf16_pairs(builder: Any, address: Any, x: Any) -> None:
    """Lanes 0 and 1 rounded to bfloat16 at `address`, 2 and 3 a cache line further, and so on."""
    pairs = builder.bitcast(narrow_bf16(builder, x), ir.VectorType(I32, LANES // 2))
    for i in range(LANES // 2):
        store(builder, builder.extract_element(pairs, I32(i)), builder.add(address, I64(64 * i)))


@numba_intrinsic(types.void, types.int64, FLOATS)
def _store_lanes(builder: Any, address: Any, x: Any) -> None:
    """Lane 0 at `address`, lane 1 a cache line further, and so on."""
    for i in range(LANES):
        store(builder, builder.extract_element(x, I32(i)), builder.add(address, I64(64 * i)))


def _store_halves(builder: Any, address: Any, x: Any, shift: int) -> None:
    """The other half of each lane's four bytes is not touched: it may be another thread's."""
    halves = ir.VectorType(I16, 2 * LANES)
    lanes = builder.shl(builder.zext(narrow_bf16(builder, x), VI), constant(VI, 16 * shift))
    mask = ir.Constant(ir.VectorType(I1, 2 * LANES), [i % 2 == shift for i in range(2 * LANES)])
    target = pointer(builder, address, halves)
    values = builder.bitcast(lanes, halves)
    call(builder, "llvm.masked.store.v32i16.p0", ir.VoidType(), values, target, I32(2), mask)


@numba_intrinsic(types.void, types.int64, FLOATS)
def _store_bf16_even(builder: Any, address: Any, x: Any) -> None:
    """Lanes rounded to bfloat16, as the first of two in each four bytes."""
    _store_halves(builder, address, x, 0)


@numba_intrinsic(types.void, types.int64, FLOATS)
def _store_bf16_odd(builder: Any, address: Any, x: Any) -> None:
    """Lanes rounded to bfloat16, as the second of two in each four bytes."""
    _store_halves(builder, address, x, 1)


@native
def write_kv(cache, batch, qkv, layer, pool, thread):
    """Keys and values of the batch's tokens into the cache; all threads together, one phase."""
    heads, head_dim, block = (
        load_long(cache),
        load_long(cache + A_HEAD_DIM),
        load_long(cache + A_BLOCK),
    )
    width, base = heads * head_dim, layer * load_long(cache + A_LAYER_BYTES)
    each = block * head_dim * element_bytes(cache)
    slots, tokens = load_long(batch + B_SLOTS), load_long(batch + B_TOKENS)
    token = claim(pool, thread, tokens)
    while token < tokens:
        slot = load_long(slots + 8 * token)
        row = qkv + token * 12 * width + 4 * width
        target = base + slot // block * heads * each
        for head in range(heads):
            key, value = row + 4 * head * head_dim, row + 4 * (width + head * head_dim)
            keys, values = load_long(cache + A_KEYS) + target, load_long(cache + A_VALUES) + target
            if is_fast(cache):
                _store_key(cache, key, keys, slot % 16)
                _store_value(cache, value, values, slot % 16)
            else:
                inside = slot % block * head_dim * element_bytes(cache)
                _store_row(cache, key, keys + inside)
                _store_row(cache, value, values + inside)
            target += each
        token = claim(pool, thread, tokens)
    meet(pool, thread)


@native
def _store_key(cache, source, keys, slot):
    """One key into a block that is laid out for the inner loops."""
    for i in range(0, load_long(cache + A_HEAD_DIM), 16):
        x = vec.load_floats(source + 4 * i)
        if load_long(cache + A_IS_BF16) != 0:
            _store_bf16_pairs(keys + 32 * i + 4 * slot, x)
        else:
            _store_lanes(keys + 64 * i + 4 * slot, x)


@native
def _store_value(cache, source, values, slot):
    """One value into a block that is laid out for the inner loops."""
    length = load_long(cache + A_HEAD_DIM)
    for i in range(0, length, 16):
        x = vec.load_floats(source + 4 * i)
        if load_long(cache + A_IS_BF16) == 0:
            vec.store_floats(values + 4 * (slot * length + i), x)
        elif slot & 1:
            _store_bf16_odd(values + 4 * (slot // 2 * length + i), x)
        else:
            _store_bf16_even(values + 4 * (slot // 2 * length + i), x)


@native
def _store_row(cache, source, target):
    length = load_long(cache + A_HEAD_DIM)
    for i in range(0, length, 16):
        mask = vec.first_lanes(length - i)
        x = vec.load_floats_where(source + 4 * i, mask)
        if load_long(cache + A_IS_BF16) != 0:
            vec.store_bf16_where(target + 2 * i, x, mask)
        else:
            vec.store_floats_where(target + 4 * i, x, mask)

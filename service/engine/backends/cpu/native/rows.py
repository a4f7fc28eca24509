# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, misc"
"""What happens to one row of activations between two matrix products: LayerNorm, packing to bytes, GELU.

All of it reads one row and writes one row, in one fixed order of sums, so neighbours cannot change a bit.
Addresses are integers and lengths are in elements; `gemm` says how packed rows are read, `linear_task`
calls these.
"""

from __future__ import annotations

import numpy as np

from service.engine.backends.cpu.native import vectors as vec
from service.engine.backends.cpu.native.functions import native
from service.engine.backends.cpu.native.scalars import store_float, store_int
from service.engine.backends.cpu.records import BFLOAT16, GELU_TANH, INT8, META, RELU

_ZERO, _ONE = np.float32(0), np.float32(1)
_GELU_LINEAR = np.float32(-2 * 0.7978845608028654)  # -2 * sqrt(2 / pi)
_GELU_CUBIC = np.float32(-2 * 0.7978845608028654 * 0.044715)
_CODES, _CODE_STEP, _TINY = np.float32(255), np.float32(1 / 255), np.float32(1e-30)


@native
def activate(x, activation):
    """The activation of sixteen values."""
    if activation == GELU_TANH:  # 0.5 x (1 + tanh u) = x / (1 + e**-2u)
        u = x * vec.multiply_add(x * x, vec.floats(_GELU_CUBIC), vec.floats(_GELU_LINEAR))
        return x / (vec.floats(_ONE) + vec.exp(u))
    if activation == RELU:
        return vec.larger(x, vec.floats(_ZERO))
    return x


@native
def norm_row(source, weight, bias, epsilon, length, out):
    """LayerNorm of one float32 row; `out` has room for whole vectors."""
    zero = vec.floats(_ZERO)
    total, squares = zero, zero
    for i in range(0, length, 16):
        total = total + vec.load_floats_where(source + 4 * i, vec.first_lanes(length - i))
    mean = vec.floats(vec.sum_lanes(total) / np.float32(length))
    for i in range(0, length, 16):
        mask = vec.first_lanes(length - i)
        off = vec.where(mask, vec.load_floats_where(source + 4 * i, mask) - mean, zero)
        squares = vec.multiply_add(off, off, squares)
    variance = vec.sum_lanes(squares) / np.float32(length)
    inverse = vec.floats(_ONE / np.float32(np.sqrt(variance + epsilon)))
    for i in range(0, length, 16):
        mask = vec.first_lanes(length - i)
        x = (vec.load_floats_where(source + 4 * i, mask) - mean) * inverse
        scaled = vec.multiply_add(
            x, vec.load_floats_where(weight + 4 * i, mask), vec.load_floats_where(bias + 4 * i, mask)
        )
        vec.store_floats(out + 4 * i, vec.where(mask, scaled, zero))


@native
def pack_row(kind, source, length, row, row_bytes):
    """Write one float32 row as a packed row of the given kind, padded with zeros to whole vectors."""
    if kind == INT8:
        _quantise_row(source, length, row, row + row_bytes - META)
        return
    for i in range(0, length, 16):
        x = vec.load_floats_where(source + 4 * i, vec.first_lanes(length - i))
        if kind == BFLOAT16:
            vec.store_bf16(row + 2 * i, x)
        else:
            vec.store_floats(row + 4 * i, x)


@native
def _quantise_row(source, length, row, meta):
    """uint8 codes with the row's own scale and zero point, as `linear.quantise_rows` says it in torch."""
    low = vec.floats(_ZERO)
    high = low
    for i in range(0, length, 16):
        x = vec.load_floats_where(source + 4 * i, vec.first_lanes(length - i))
        low, high = vec.smaller(low, x), vec.larger(high, x)
    lowest, highest = vec.min_lane(low), vec.max_lane(high)
    span = highest - lowest
    if span < _TINY:  # false for NaN, which then spoils this row's results and no other's
        span = _TINY
    inverse = _CODES / span
    zero = vec.round_to_ints(vec.floats(-lowest * inverse))
    for i in range(0, length, 16):
        x = vec.load_floats_where(source + 4 * i, vec.first_lanes(length - i))
        codes = vec.round_to_ints(x * vec.floats(inverse)) + zero
        vec.store_bytes(row + i, vec.clamp_ints(codes, 0, 255))
    store_float(meta, span * _CODE_STEP)
    store_int(meta + 4, vec.first_int(zero))


@native
def sum_row(a, b, length, out):
    """out = a + b for one float32 row."""
    for i in range(0, length, 16):
        mask = vec.first_lanes(length - i)
        total = vec.load_floats_where(a + 4 * i, mask) + vec.load_floats_where(b + 4 * i, mask)
        vec.store_floats_where(out + 4 * i, total, mask)

"""Weights packed for the register tile, and the linear layer that multiplies by them on the processor.

The Python side of `native.linear_task`. `native.step` uses the same packed weights without this call per
layer.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from service.engine.backends.cpu import kernels
from service.engine.backends.cpu.pool import pool
from service.engine.backends.cpu.processor import MAX_PASS_ROWS, STEP_BYTES, TILE, row_kind
from service.engine.backends.cpu.records import (
    BFLOAT16,
    FLOAT32,
    GELU_TANH,
    INT8,
    META,
    NO_ACTIVATION,
    RELU,
    W_FIELDS,
)
from service.engine.config import Precision
from service.engine.huge_pages import huge_array
from service.engine.model.linear import UnsupportedLinear, find_activation, quantise_weight

_KINDS: dict[Precision, int] = {"float32": FLOAT32, "bfloat16": BFLOAT16, "int8": INT8}
_BYTES_AT_ONCE = 1 << 20  # float32 weights that are packed at once: they stay in the second-level cache
_FUSED = {
    None: NO_ACTIVATION,
    "gelu_new": GELU_TANH,
    "gelu_pytorch_tanh": GELU_TANH,
    "relu": RELU,
}


def is_fused(activation: str | None) -> bool:
    """Whether the kernels apply this activation themselves."""
    return activation in _FUSED


class CpuLinear:
    """A linear layer in packed tiles; a row's result depends on that row only, bit for bit.

    Args:
        weight: (K, N) float32; not kept.
        bias: (N,) or None.
        precision: what the weights and activations are multiplied in.
        activation: a name of transformers' ACT2FN, or None; those the kernels do not know run in torch after.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, precision: Precision, activation: str | None = None
    ) -> None:
        if precision not in _KINDS:
            raise UnsupportedLinear(f"precision {precision!r} is not one of {', '.join(_KINDS)}")
        self.in_features, self.out_features = weight.shape
        self.kind = _KINDS[precision]
        self.after = None if is_fused(activation) else find_activation(activation)
        self._weights, scale, column_sum = _pack(weight, self.kind)
        self.weight_bytes = self._weights.nbytes
        tiles = -(-self.out_features // TILE)
        self._columns = np.zeros((3, tiles * TILE), np.float32)  # bias, scale, column sums (int32 bits)
        for row, values in zip(self._columns, (bias, scale, column_sum), strict=True):
            if values is not None:
                dtype = np.float32 if values.dtype.is_floating_point else np.int32
                row[: self.out_features] = values.detach().cpu().numpy().astype(dtype).view(np.float32)
        self.row_bytes = packed_row_bytes(self.kind, self.in_features)
        self.record = np.zeros(W_FIELDS, np.int64)
        self.record[:13] = (
            self.kind, self.in_features, self.out_features, self._weights.shape[1], tiles,
            self._weights.ctypes.data, *(row.ctypes.data for row in self._columns),
            _FUSED.get(activation, NO_ACTIVATION), self.row_bytes, kernels.address("multiply_one"),
            row_kind(self.kind),
        )  # fmt: skip
        self._args = np.zeros(8, np.int64)
        self._packed = np.empty(0, np.uint8)

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """As `linear.Linear`: (M, K) float32 -> (M, N) float32."""
        count = x.shape[0]
        out = torch.empty((count, self.out_features))
        if count == 0:
            return out
        fused = residual if self.after is None else None
        x = x.contiguous()
        self._args[:] = (
            self.record.ctypes.data, x.data_ptr(), 4 * self.in_features, count, self._room(count),
            out.data_ptr(), 4 * self.out_features, 0 if fused is None else fused.contiguous().data_ptr(),
        )  # fmt: skip
        pool().run(kernels.address("linear_task"), self._args)
        if self.after is None:
            return out
        out = self.after(out)
        return out if residual is None else out + residual

    def _room(self, count: int) -> int:
        """Address of room for `count` packed rows, and for those a block of rows reaches beyond them."""
        size = (count + MAX_PASS_ROWS) * self.row_bytes + 64
        if self._packed.size < size:
            self._packed = np.zeros(size, np.uint8)
        return int(self._packed.ctypes.data + 63) // 64 * 64


def packed_row_bytes(kind: int, length: int) -> int:
    """Bytes from one row packed for weights of this kind to the next: whole vectors, and an int8 row's scale
    and zero point.
    """
    return -(-_steps(row_kind(kind), length) * 4 // 64) * 64 + META


def _steps(kind: int, length: int) -> int:
    per_step = {FLOAT32: 1, BFLOAT16: 2, INT8: 4}[kind]
    return -(-length // per_step)


def _pack(weight: Tensor, kind: int) -> tuple[np.ndarray, Tensor | None, Tensor | None]:
    """The weights' bytes (tiles, steps, TILE, 4), and an int8 layer's scales and column sums.

    Columns are packed some tiles at a time: beside what is packed, little memory is taken.
    """
    length, width = weight.shape
    steps, tiles = _steps(kind, length), -(-width // TILE)
    room = huge_array(tiles * steps * STEP_BYTES).reshape(tiles, steps, STEP_BYTES)
    together = max(1, _BYTES_AT_ONCE // (4 * length * TILE))
    # made before the copies that packing takes, so that these leave no holes in the heap
    scale, column_sum = torch.empty(width), torch.empty(width, dtype=torch.int32)
    weight = weight.detach()
    for tile in range(0, tiles, together):
        columns = slice(tile * TILE, (tile + together) * TILE)
        values = weight[:, columns]
        if kind == INT8:
            values, scale[columns] = quantise_weight(values)
            column_sum[columns] = values.sum(0, dtype=torch.int32)
        _pack_tiles(values, kind, room[tile : tile + together])
    return (room, scale, column_sum) if kind == INT8 else (room, None, None)


def _pack_tiles(values: Tensor, kind: int, room: np.ndarray) -> None:
    """Write columns (K, N) as tiles (tiles, steps, STEP_BYTES)."""
    dtype = {FLOAT32: torch.float32, BFLOAT16: torch.bfloat16, INT8: torch.int8}[kind]
    (length, width), (tiles, steps) = values.shape, room.shape[:2]
    per_step = 4 // dtype.itemsize
    padded = torch.zeros((steps * per_step, tiles * TILE), dtype=dtype)
    padded[:length, :width] = values
    shaped = torch.from_numpy(room).view(dtype).view(tiles, steps, TILE, per_step)
    shaped.copy_(padded.view(steps, per_step, tiles, TILE).permute(2, 0, 3, 1))

"""The forward pass of a loaded GPT-2 in one native call per step.

Same weights, same cache, same result bits as calling the packed layers one by one; what goes away is
Python, torch and the waking of threads between them. `native.step` is the native side,
`gpt2.GPT2.forward` says what it computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from service.engine.backends.cpu import kernels, processor, records
from service.engine.backends.cpu.attention import CpuAttention, describe_batch
from service.engine.backends.cpu.linear import CpuLinear
from service.engine.backends.cpu.pool import pool
from service.engine.model.attention import Attention, ForwardBatch

if TYPE_CHECKING:
    from service.engine.model.gpt2 import GPT2, Block

_BYTES_PER_THREAD = 2 << 20  # weights streamed once, some 50 us: less work is not worth waking a thread for
_BUFFERS = ("x", "packed", "qkv", "attended", "attended_packed", "inner", "inner_packed", "normed")


def can_fuse(model: GPT2, attention: Attention) -> bool:
    """Whether every layer is packed for the CPU kernels, with an activation that they know."""
    layers = [linear for block in model.blocks for linear in _linears(block)] + [model.head]
    packed = all(isinstance(linear, CpuLinear) and linear.after is None for linear in layers)
    return packed and isinstance(attention, CpuAttention)


def _linears(block: Block) -> list[Any]:
    return [block.qkv, block.attn_out, block.mlp_in, block.mlp_out]


class FusedForward:
    """`model.forward(batch, attention)` in one call.

    Args:
        model: with `backend="cpu"`; `can_fuse` must hold.
        attention: the CPU attention, which owns the cache.
    """

    def __init__(self, model: GPT2, attention: CpuAttention) -> None:
        if not can_fuse(model, attention):
            raise ValueError("the model has layers the CPU kernels cannot run")
        self._keep: list[Any] = [model, attention]
        self._model, self._attention = model, attention
        self._width = model.token_embedding.shape[1]
        self._layers = np.array([self._layer(i) for i in range(len(model.blocks))], np.int64)
        self._record = self._describe()
        layers = [linear for block in model.blocks for linear in _linears(block)]
        self._weight_bytes = sum(linear.weight_bytes for linear in [*layers, model.head])
        self._room, self._threads = 0, 0  # tokens and threads that the buffers are wide enough for
        self._buffers: list[np.ndarray[Any, Any]] = []
        self._args = np.zeros(2, np.int64)

    def __call__(self, batch: ForwardBatch) -> Tensor:
        """Run one step: write keys and values, give logits.

        Args:
            batch: the step's tokens and layout, on the CPU.

        Returns:
            (R, vocab) float32, a row for each of `batch.logit_rows`.

        Raises:
            IndexError: a token id or position outside its embedding table.
        """
        _check_range("input_ids", batch.input_ids, self._model.token_embedding.shape[0])
        _check_range("positions", batch.positions, self._model.position_embedding.shape[0])
        self._attention.fit_threads()
        self._grow(batch.input_ids.shape[0])
        logits = torch.empty((batch.logit_rows.shape[0], self._model.head.out_features))  # type: ignore[attr-defined]
        described = describe_batch(batch)
        described[records.B_IDS // 8 : records.B_LOGITS // 8 + 1] = (
            batch.input_ids.data_ptr(), batch.positions.data_ptr(), batch.logit_rows.data_ptr(),
            batch.logit_rows.shape[0], logits.data_ptr(),
        )  # fmt: skip
        self._args[:] = self._record.ctypes.data, described.ctypes.data
        pool().run(kernels.address("forward_task"), self._args, self.threads_for(batch.input_ids.shape[0]))
        return logits

    def threads_for(self, tokens: int) -> int:
        """How many threads have enough to do in a step of so many tokens; no bit depends on it."""
        passes = -(-tokens // processor.MAX_PASS_ROWS)
        return max(1, passes * int(self._weight_bytes) // _BYTES_PER_THREAD)

    def _address(self, tensor: Tensor) -> int:
        kept = tensor.detach().float().contiguous()
        self._keep.append(kept)
        return int(kept.data_ptr())

    def _layer(self, index: int) -> list[int]:
        block = self._model.blocks[index]
        qkv, out, inner_in, inner_out = (linear.record.ctypes.data for linear in _linears(block))
        norm_1 = [self._address(block.ln_1.weight), self._address(block.ln_1.bias)]
        norm_2 = [self._address(block.ln_2.weight), self._address(block.ln_2.bias)]
        scale = _float_bits(float(self._attention.scales[index]))
        return [*norm_1, qkv, out, *norm_2, inner_in, inner_out, scale, 0]

    def _describe(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        model, head = self._model, self._model.head
        record = np.zeros(records.M_FIELDS, np.int64)
        record[:10] = (
            len(model.blocks), self._width, _float_bits(model.ln_f.epsilon),
            self._address(model.token_embedding), self._address(model.position_embedding),
            self._layers.ctypes.data, self._address(model.ln_f.weight), self._address(model.ln_f.bias),
            head.record.ctypes.data, self._attention.record.ctypes.data,  # type: ignore[attr-defined]
        )  # fmt: skip
        return record

    def _grow(self, tokens: int) -> None:
        """Make room for so many tokens; never shrinks, so that memory is flat after the widest step."""
        if tokens <= self._room and pool().threads <= self._threads:
            return
        self._room, self._threads = max(tokens, self._room), pool().threads
        qkv, out, inner_in, inner_out = _linears(self._model.blocks[0])
        packed = max(qkv.row_bytes, inner_in.row_bytes, self._model.head.row_bytes)  # type: ignore[attr-defined]
        inner = 4 * inner_in.out_features
        sizes = [
            4 * self._width,
            packed,
            12 * self._width,
            4 * self._width,
            out.row_bytes,
            inner,
            inner_out.row_bytes,
        ]
        counts = [size * (self._room + processor.MAX_PASS_ROWS) for size in sizes] + [
            (4 * self._width + 128) * pool().threads
        ]
        self._buffers = [np.zeros(count + 128, np.uint8) for count in counts]
        first = records.M_X // 8
        self._record[first : first + len(_BUFFERS)] = [(b.ctypes.data + 63) // 64 * 64 for b in self._buffers]


def _check_range(name: str, values: Tensor, end: int) -> None:
    """Native code would read whatever lies past a table's end."""
    lowest, highest = torch.aminmax(values)
    if int(lowest) < 0 or int(highest) >= end:
        raise IndexError(f"{name} must lie in 0 .. {end - 1}, not {int(lowest)} .. {int(highest)}")


def _float_bits(value: float) -> int:
    return int(np.float32(value).view(np.int32))

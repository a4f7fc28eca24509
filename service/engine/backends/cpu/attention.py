"""Attention on the processor: the compiled kernel over the paged cache, behind the protocol.

The kernel is `native.attend`; what it must compute is said in `backends.torch.attention`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from service.engine.backends.cpu import kernels, records
from service.engine.backends.cpu.pool import pool
from service.engine.model.attention import ForwardBatch, KVCache

_Record = np.ndarray[tuple[int], np.dtype[np.int64]]


class CpuAttention:
    """Causal attention through a cache in float32 or bfloat16; a row's bits depend on its own sequence only.

    Args:
        cache: keys and values of all layers, on the CPU.
        scales: factor on the scores, one per layer.
        max_context: longest context of a sequence, in tokens.
    """

    def __init__(self, cache: KVCache, scales: Sequence[float], *, max_context: int = 1024) -> None:
        if cache.k.dtype not in (torch.float32, torch.bfloat16):
            raise ValueError(f"the cache must be float32 or bfloat16, not {cache.k.dtype}")
        self.cache = cache
        self.scales = np.asarray(scales, np.float32)
        self._max_context = max_context
        self.record = np.zeros(records.A_FIELDS, np.int64)
        self._threads = 0
        self.fit_threads()
        self._args = np.zeros(8, np.int64)

    def fit_threads(self) -> None:
        """Make room for as many threads as there are now; a step calls it, for the number may have grown."""
        if self._threads < pool().threads:
            self._threads = pool().threads
            self._describe()

    def _describe(self) -> None:
        heads, block_size, head_dim = self.cache.k.shape[2:]
        layer_bytes = self.cache.k[0].numel() * self.cache.k.element_size()
        padded = -(-head_dim // 16) * 16
        room = 4 * records.SCRATCH_ROWS * (self._max_context + 64 + 2 * padded)
        self._scratch = np.zeros(self._threads * room + 64, np.uint8)
        self.record[:10] = (
            heads, head_dim, block_size, self.cache.k.dtype == torch.bfloat16,
            (self._scratch.ctypes.data + 63) // 64 * 64, room, layer_bytes,
            self.cache.k.data_ptr(), self.cache.v.data_ptr(), kernels.address("attend_rows"),
        )  # fmt: skip

    def __call__(self, qkv: Tensor, layer: int, batch: ForwardBatch) -> Tensor:
        """See `Attention`; qkv must be float32 and contiguous."""
        self.fit_threads()
        width = qkv.shape[1] // 3
        out = torch.empty((qkv.shape[0], width))
        described = describe_batch(batch)
        self._args[:7] = (
            self.record.ctypes.data, described.ctypes.data, qkv.data_ptr(), layer, 0,
            out.data_ptr(), 4 * width,
        )  # fmt: skip
        self._args[4:5].view(np.float32)[0] = self.scales[layer]
        pool().run(kernels.address("attention_task"), self._args)
        return out


def arranged(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """What the kernels' cache holds of these keys and values, each (…, block size, head dim), same shapes.

    Where a block has sixteen tokens and a head whole vectors, a key is a column of its block and a value a
    row. In bfloat16 two neighbours share four bytes: two elements of a key, two tokens of a value. Otherwise
    both are rows.
    """
    block, head_dim = keys.shape[-2:]
    if block != 16 or head_dim % 16:
        return keys.clone(), values.clone()
    if keys.dtype == torch.float32:
        return keys.mT.reshape(keys.shape), values.clone()
    rest = keys.shape[:-2]
    elements = keys.reshape(*rest, block, head_dim // 2, 2).transpose(-3, -2)
    tokens = values.reshape(*rest, block // 2, 2, head_dim).mT
    return elements.reshape(keys.shape), tokens.reshape(values.shape)


def describe_batch(batch: ForwardBatch) -> _Record:
    """The batch's `B_*` record; valid while the batch's tensors live."""
    record = np.zeros(records.B_FIELDS, np.int64)
    record[:7] = (
        batch.input_ids.shape[0], batch.context_lens.shape[0], batch.query_starts.data_ptr(),
        batch.context_lens.data_ptr(), batch.block_tables.data_ptr(), 4 * batch.block_tables.stride(0),
        batch.slots.data_ptr(),
    )  # fmt: skip
    return record

"""Attention on a GPU: launches the Triton kernels of `attend`.

A step of decodes alone is split over the context; any step with a longer stretch runs the ragged kernel.
`backends.torch.attention` says what both compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from service.engine.backends.cuda import attend
from service.engine.model.attention import ForwardBatch, KVCache


class CudaAttention:
    """Causal attention through the paged cache.

    Launches depend on shapes alone, so a step of decodes can be captured in a CUDA graph.

    Args:
        cache: keys and values of all layers.
        scales: factor on the scores, one per layer.
        max_context: the model's n_positions; longer contexts are never asked for.
    """

    def __init__(self, cache: KVCache, scales: Sequence[float], max_context: int) -> None:
        self.cache = cache
        self.scales = scales
        heads, head_dim = cache.k.shape[2], cache.k.shape[4]
        self._splits = -(-max_context // attend.SPLIT)
        self._shape: dict[str, int] = {"HEADS": heads, "HEAD_DIM": head_dim}
        self._wide = max(triton.next_power_of_2(head_dim), 16)  # a tile of a matrix product is at least that

    def __call__(self, qkv: Tensor, layer: int, batch: ForwardBatch) -> Tensor:
        """See `Attention`."""
        qkv = qkv.contiguous()
        self._write(qkv, layer, batch)
        width = self._shape["HEADS"] * self._shape["HEAD_DIM"]
        out = torch.empty(qkv.shape[0], width, dtype=qkv.dtype, device=qkv.device)
        run = self._decode if batch.max_query_len == 1 else self._ragged
        run(qkv, layer, batch, out)
        return out

    def _write(self, qkv: Tensor, layer: int, batch: ForwardBatch) -> None:
        wide = triton.next_power_of_2(self._shape["HEADS"] * self._shape["HEAD_DIM"])
        keys, values, block = self.cache.k[layer], self.cache.v[layer], self.cache.block_size
        attend.write_kv[(qkv.shape[0],)](
            qkv, keys, values, batch.slots, **self._shape, BLOCK=block, WIDE=wide
        )

    def _decode(self, qkv: Tensor, layer: int, batch: ForwardBatch, out: Tensor) -> None:
        sequences, heads = batch.context_lens.shape[0], self._shape["HEADS"]
        shape = (sequences, heads, self._splits)
        parts = torch.empty(*shape, self._shape["HEAD_DIM"], dtype=torch.float32, device=qkv.device)
        peaks, sums = (torch.empty(shape, dtype=torch.float32, device=qkv.device) for _ in range(2))
        split = {**self._shape, "WIDE": self._wide, "SPLIT": attend.SPLIT, "SPLITS": self._splits}
        attend.attend_split[(self._splits, heads, sequences)](
            *self._paged(qkv, layer, batch), batch.context_lens, parts, peaks, sums,
            self.scales[layer], batch.block_tables.shape[1], BLOCK=self.cache.block_size, **split,
        )  # fmt: skip
        wide = triton.next_power_of_2(self._splits)
        attend.combine[(heads, sequences)](
            parts, peaks, sums, batch.context_lens, out, **split, SPLITS_WIDE=wide
        )

    def _ragged(self, qkv: Tensor, layer: int, batch: ForwardBatch, out: Tensor) -> None:
        tiles = -(-batch.max_query_len // attend.QUERY_TILE)
        attend.attend_ragged[(tiles, self._shape["HEADS"], batch.context_lens.shape[0])](
            *self._paged(qkv, layer, batch), batch.query_starts, batch.context_lens, out,
            self.scales[layer], batch.block_tables.shape[1], **self._shape, WIDE=self._wide,
            BLOCK=self.cache.block_size, QUERY_TILE=attend.QUERY_TILE, KEY_TILE=attend.KEY_TILE,
            OPERANDS=attend.operands(self.cache.k.dtype),
        )  # fmt: skip

    def _paged(self, qkv: Tensor, layer: int, batch: ForwardBatch) -> tuple[Any, ...]:
        return qkv, self.cache.k[layer], self.cache.v[layer], batch.block_tables

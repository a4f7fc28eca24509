"""Attention in plain torch, on any device: what fast kernels are held to, and what runs where they do not.

Every query row is computed on its own over exactly its context, with shapes that depend on nothing but its
position, so its bits are the same in any batch and with any chunk borders. That is slow and exact; the other
wings are fast.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from service.engine.model.attention import ForwardBatch, KVCache


class ReferenceAttention:
    """Causal attention through the paged cache, row by row.

    Args:
        cache: keys and values of all layers.
        scales: factor on the scores, one per layer.
        is_exact: true computes each row alone, bit for bit the same in every batch; false lets torch compute
            a sequence's rows together, whose sums may then differ in the last bit between chunkings.
    """

    def __init__(self, cache: KVCache, scales: Sequence[float], *, is_exact: bool = True) -> None:
        self.cache = cache
        self.scales = scales
        self.is_exact = is_exact

    def __call__(self, qkv: Tensor, layer: int, batch: ForwardBatch) -> Tensor:
        """See `Attention`."""
        heads, head_dim = self.cache.k.shape[2], self.cache.k.shape[4]
        q, k, v = qkv.view(qkv.shape[0], 3, heads, head_dim).unbind(1)  # each (T, nh, hd)
        self._write(k, v, layer, batch.slots)
        out = torch.empty_like(q)  # (T, nh, hd)
        starts = batch.query_starts.tolist()
        lengths = batch.context_lens.tolist()
        for s, (start, end, length) in enumerate(zip(starts, starts[1:], lengths, strict=False)):
            keys, values = self._context(layer, batch.block_tables[s], length, q.dtype)
            out[start:end] = self._attend(q[start:end], keys, values, self.scales[layer])
        return out.reshape(qkv.shape[0], heads * head_dim)

    def _write(self, k: Tensor, v: Tensor, layer: int, slots: Tensor) -> None:
        block, index = slots // self.cache.block_size, slots % self.cache.block_size
        self.cache.k[layer, block, :, index] = k.to(self.cache.k.dtype)
        self.cache.v[layer, block, :, index] = v.to(self.cache.v.dtype)

    def _context(self, layer: int, table: Tensor, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of one sequence, each (nh, length, hd)."""
        blocks = table[: -(-length // self.cache.block_size)].long()

        def gather(cache: Tensor) -> Tensor:
            return cache[layer, blocks].transpose(0, 1).flatten(1, 2)[:, :length].to(dtype)

        return gather(self.cache.k), gather(self.cache.v)

    def _attend(self, q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """The last q.shape[0] positions of a context attend to it; (Q, nh, hd)."""
        first = keys.shape[1] - q.shape[0]
        if not self.is_exact:
            return _attend_together(q, keys, values, scale, first)
        rows = [
            _attend_one(q[i], keys[:, : first + i + 1], values[:, : first + i + 1], scale)
            for i in range(q.shape[0])
        ]
        return torch.stack(rows)


def _attend_one(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """One query row, (nh, hd), over keys and values (nh, L, hd)."""
    scores = (keys @ q.unsqueeze(-1)).squeeze(-1).float() * scale  # (nh, L)
    weights = scores.softmax(-1).to(values.dtype)
    return (weights.unsqueeze(1) @ values).squeeze(1)  # (nh, hd)


def _attend_together(q: Tensor, keys: Tensor, values: Tensor, scale: float, first: int) -> Tensor:
    rows, length = q.shape[0], keys.shape[1]
    positions = torch.arange(first, first + rows, device=q.device)
    mask = torch.arange(length, device=q.device) <= positions.unsqueeze(1)  # (Q, L)
    out = F.scaled_dot_product_attention(q.transpose(0, 1), keys, values, attn_mask=mask, scale=scale)
    return out.transpose(0, 1)  # (Q, nh, hd)

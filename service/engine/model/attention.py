"""The attention protocol: what a kernel gets and what it must do. Each of `backends` implements it.

This module holds the ragged batch and the paged KV cache that every implementation shares, and no arithmetic;
`backends.torch.attention` says in plain torch what the fast kernels compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from service.engine.config import Precision
from service.engine.devices import Device


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """One step's tokens, of all sequences, in one row. Built by the model runner, read by everybody else.

    With T tokens, S sequences, R sampled rows and B the widest block table. All tensors live on the model's
    device.
    """

    input_ids: Tensor  # (T,) int64
    positions: Tensor  # (T,) int64, each < n_positions
    # (T,) int64: block id * block size + index in the block, where a token's K and V are written
    slots: Tensor
    query_starts: Tensor  # (S + 1,) int32: sequence s owns tokens [query_starts[s], query_starts[s + 1])
    context_lens: Tensor  # (S,) int32: tokens of the sequence in the cache once this step's are written
    block_tables: Tensor  # (S, B) int32, padded with 0; entries past the context are never read
    logit_rows: Tensor  # (R,) int64: rows of T whose logits are wanted
    max_query_len: int  # longest stretch of one sequence in this batch; 1 means all decode


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of all layers: k and v are each (layers, blocks, heads, block size, head dim)."""

    k: Tensor
    v: Tensor

    @property
    def block_size(self) -> int:
        """Tokens in one block."""
        return int(self.k.shape[3])

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy the contents of blocks into others, each from the first to the second of a pair."""
        sources, targets = torch.tensor(pairs, device=self.k.device).unbind(1)
        for cached in (self.k, self.v):
            cached.index_copy_(1, targets, cached.index_select(1, sources))

    @classmethod
    def allocate(
        cls,
        layers: int,
        blocks: int,
        heads: int,
        block_size: int,
        head_dim: int,
        dtype: torch.dtype,
        device: Device,
    ) -> KVCache:
        """Zero-filled. A processor takes the memory of a block when it is first written."""
        shape = (layers, blocks, heads, block_size, head_dim)
        return cls(device.zeros(shape, dtype), device.zeros(shape, dtype))


def cache_dtype(precision: Precision) -> torch.dtype:
    """What keys and values are kept in: as precise as the weights, at least bfloat16."""
    return torch.float32 if precision == "float32" else torch.bfloat16


# the model's forward pass, cache included: a ragged batch -> (R, vocab) float32 logits
Forward = Callable[[ForwardBatch], Tensor]


class Attention(Protocol):
    """Causal attention through the paged cache."""

    def __call__(self, qkv: Tensor, layer: int, batch: ForwardBatch) -> Tensor:
        """Write K and V at `batch.slots`, then let every token attend to its sequence's context up to itself.

        Args:
            qkv: (T, 3 * n_embd), query, key and value side by side as GPT-2's c_attn gives them.
            layer: index of the layer, for the cache and the layer's scale.
            batch: the step's layout.

        Returns:
            (T, n_embd), same dtype as qkv. A row's result depends on its own sequence only.
        """
        ...

"""What differs by processor, as one protocol: how weights are packed, a forward pass runs and ids are drawn.

Each wing of `backends` implements it, `backends.choose` takes one of them, once, and nobody asks for its name
to decide anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from service.engine.config import Precision
from service.engine.model.attention import Attention, Forward, KVCache
from service.engine.model.gpt2 import GPT2
from service.engine.model.linear import Packer
from service.engine.model.sampler import Sampler


class Declined(Exception):
    """A backend does not serve this configuration; the message says what computes instead."""


class Backend(Packer, Protocol):
    """One processor's way to compute, at one precision."""

    name: str  # for people, in `/info` and the log
    precision: Precision
    layout: torch.device | None  # where a step's batch is laid out; None in the machine's memory
    sampler: Sampler
    speculates: bool  # whether a longer step with drafts in it can pay
    min_prefill_rows: int  # rows of prefill that every step has room for
    num_scratch_blocks: int  # blocks at the end of the cache that belong to no sequence
    num_torch_threads: int  # threads that torch's own operations may take, beside whatever computes here

    @property
    def num_threads(self) -> int:
        """Threads that compute on the processor."""
        ...

    def forward(self, model: GPT2, cache: KVCache, max_rows: int) -> Forward:
        """Make the forward pass of a model over a cache.

        Args:
            model: packed by this backend.
            cache: its last `num_scratch_blocks` blocks belong to no sequence.
            max_rows: sequences that decode together at most.
        """
        ...


class Reference(Packer, Protocol):
    """What fast kernels are compared with. It is handed in, so that no wing enters another."""

    sampler: Sampler

    def attention(self, cache: KVCache, scales: Sequence[float]) -> Attention:
        """Causal attention through the cache, one scale per layer."""
        ...


class FastBackend(Backend, Protocol):
    """A backend of kernels of our own, which must be shown to compute the right thing."""

    def self_check(self, reference: Reference) -> str:
        """Compare every kernel with the reference on this very machine.

        Returns:
            One line for the log.

        Raises:
            KernelMismatch: they disagree.
        """
        ...

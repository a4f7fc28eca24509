"""Which sequences may share blocks because they begin alike: match, claim, publish, forget.

A block's key is a hash of its ids, of its parent's key and of the job's salt. A sequence that starts claims
the blocks that hold its beginning and promises the ones it is about to compute; another sequence that needs a
promised block next waits for it instead of computing the same. Where the contents lie is `block_pool`'s
account.
"""

from __future__ import annotations

import collections.abc
import hashlib
from array import array
from collections.abc import Iterable

from service.engine.block_pool import BlockPool
from service.engine.sequence import Sequence


def block_keys(
    token_ids: collections.abc.Sequence[int],
    block_size: int,
    salt: str,
    known: collections.abc.Sequence[bytes] = (),
) -> list[bytes]:
    """Content keys of the full blocks of a sequence: sha256(parent key, ids), rooted in the salt.

    Args:
        token_ids: the sequence so far.
        block_size: tokens in a block.
        salt: keeps caches of different tenants apart.
        known: keys already computed for the first blocks.

    Returns:
        One 32-byte key per full block; two equal keys mean equal tokens at equal positions.
    """
    keys = list(known)
    parent = keys[-1] if keys else hashlib.sha256(salt.encode()).digest()
    for start in range(len(keys) * block_size, len(token_ids) - block_size + 1, block_size):
        ids = array("q", token_ids[start : start + block_size]).tobytes()
        parent = hashlib.sha256(parent + ids).digest()
        keys.append(parent)
    return keys


class PrefixCache:
    """Finds the blocks that a sequence need not compute.

    Args:
        pool: the KV blocks.
    """

    def __init__(self, pool: BlockPool) -> None:
        self.num_queries = 0  # ever: prompt blocks looked up at a first start
        self.num_hits = 0  # ever
        self._pool = pool
        self._promised: set[bytes] = set()  # the union of every sequence's `promised_keys`

    def match(self, sequence: Sequence) -> list[int] | None:
        """The cached blocks a sequence begins with; None while another computes the block behind them."""
        keys = self._usable_keys(sequence)
        blocks = self._pool.lookup(keys)
        is_awaited = len(blocks) < len(keys) and keys[len(blocks)] in self._promised
        return None if is_awaited else blocks

    def claim(self, sequence: Sequence, blocks: list[int]) -> None:
        """Start a sequence on the blocks of its match, and promise those that it will compute."""
        self._pool.acquire(blocks)
        sequence.block_table = list(blocks)
        sequence.num_computed_tokens = len(blocks) * self._pool.block_size
        sequence.num_registered_blocks = len(blocks)
        if sequence.started_at is None:  # not after a preemption
            sequence.num_cached_tokens = sequence.num_computed_tokens
            self.num_queries += len(self._usable_keys(sequence))
            self.num_hits += len(blocks)
        sequence.promised_keys = set(sequence.block_keys[len(blocks) :]) - self._promised
        self._promised |= sequence.promised_keys

    def publish(self, sequence: Sequence) -> None:
        """Let others find the blocks that became full."""
        num_full = sequence.num_computed_tokens // self._pool.block_size
        if num_full == sequence.num_registered_blocks:
            return
        self._extend_keys(sequence, num_full)
        for index in range(sequence.num_registered_blocks, num_full):
            key = sequence.block_keys[index]
            self._pool.register(sequence.block_table[index], key)
            if key in sequence.promised_keys:
                sequence.promised_keys.remove(key)
                self._promised.remove(key)
        sequence.num_registered_blocks = num_full

    def forget(self, sequence: Sequence) -> None:
        """A sequence stops: it gives its blocks back and keeps none of its promises."""
        self._promised -= sequence.promised_keys
        sequence.promised_keys = set()
        self._pool.release(sequence.block_table)
        sequence.block_table = []
        sequence.num_computed_tokens = sequence.num_registered_blocks = 0

    def _usable_keys(self, sequence: Sequence) -> list[bytes]:
        """Keys a match may use: the last token is always recomputed, and so is every scored row."""
        self._extend_keys(sequence, len(sequence.token_ids) // self._pool.block_size)
        num_usable, scored = len(sequence.token_ids) - 1, sequence.next_scored
        if scored is not None:
            num_usable = min(num_usable, max(scored - 1, 0))
        return sequence.block_keys[: num_usable // self._pool.block_size]

    def _extend_keys(self, sequence: Sequence, count: int) -> None:
        if len(sequence.block_keys) < count:
            size, salt = self._pool.block_size, sequence.job.salt
            sequence.block_keys = block_keys(sequence.token_ids, size, salt, sequence.block_keys)

    def check(self, running: Iterable[Sequence]) -> None:
        """Verify that each promise is one running sequence's.

        Raises:
            AssertionError: a bug of ours.
        """
        promised = [key for sequence in running for key in sequence.promised_keys]
        assert len(promised) == len(self._promised), "two sequences promise one block, or nobody does"
        assert set(promised) == self._promised, "a block is computed by nobody"

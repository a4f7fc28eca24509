"""KV blocks: who holds which, and which contents are still there.

Pure bookkeeping over block ids; the tensors live in the model runner. A block is free when nobody references
it; a free block keeps its contents, and its key, until it is handed out again (least recently used first).
"""

from __future__ import annotations

import collections.abc
from collections import Counter, OrderedDict
from collections.abc import Iterable


class BlockPool:
    """Hands out KV blocks by reference count.

    Args:
        num_blocks: blocks in the cache.
        block_size: tokens in a block.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._references = [0] * num_blocks
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be handed out, cached contents included."""
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that so many tokens fill, the last perhaps in part."""
        return -(-num_tokens // self.block_size)

    def lookup(self, keys: collections.abc.Sequence[bytes]) -> list[int]:
        """Blocks holding the longest run of `keys` from the first on. Takes no reference."""
        blocks: list[int] = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def count_unreferenced(self, blocks: Iterable[int]) -> int:
        """How many of these are free now, so that acquiring them shrinks the free list."""
        return sum(self._references[block] == 0 for block in blocks)

    def is_shared(self, block: int) -> bool:
        """Whether more than one sequence holds it."""
        return self._references[block] > 1

    def acquire(self, blocks: Iterable[int]) -> None:
        """Take a reference on blocks found by `lookup`, or in another sequence's table."""
        for block in blocks:
            if self._references[block] == 0:
                del self._free[block]
            self._references[block] += 1

    def allocate(self, count: int) -> list[int] | None:
        """Take `count` blocks with contents to be overwritten, or None when there are too few."""
        if count > len(self._free):
            return None
        blocks = [self._free.popitem(last=False)[0] for _ in range(count)]  # the oldest
        for block in blocks:
            key = self._key_of.pop(block, None)
            if key is not None:
                del self._block_of[key]
            self._references[block] = 1
        return blocks

    def release(self, blocks: collections.abc.Sequence[int]) -> None:
        """Give references back. The deepest block becomes the oldest, so prefixes outlive their tails; one
        whose contents nobody can find is used before any other.
        """
        for block in reversed(blocks):
            self._references[block] -= 1
            if self._references[block] == 0:
                self._free[block] = None
                self._free.move_to_end(block, last=block in self._key_of)

    def register(self, block: int, key: bytes) -> None:
        """Publish the contents of a full block. The first block with a key keeps it."""
        if key not in self._block_of and block not in self._key_of:
            self._block_of[key] = block
            self._key_of[block] = key

    def check(self, tables: Iterable[collections.abc.Sequence[int]]) -> None:
        """Compare the accounts with the block tables in use.

        Raises:
            AssertionError: a bug of ours; names the first disagreement.
        """
        held = Counter(block for table in tables for block in table)
        for block, references in enumerate(self._references):
            assert held[block] == references, f"block {block}: {references} references, {held[block]} holders"
            assert (references == 0) == (block in self._free), f"block {block}: free list disagrees"
        assert {self._block_of[key]: key for key in self._block_of} == self._key_of, "cache maps disagree"

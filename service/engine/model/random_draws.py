"""Counter-based random numbers: a draw depends on what it is for, never on when or beside whom it is made.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) keyed by the request's
seed, with the sequence's ordinal and the output position as the counter. `sampler` turns the draws into
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_ROUNDS = 10

Words = NDArray[np.uint64]  # 32-bit words, kept in 64 bits so that products fit


def philox(counter: Words, key: Words) -> Words:
    """Apply ten rounds of Philox4x32.

    Args:
        counter: (4, R) words below 2**32.
        key: (2, R) words below 2**32.

    Returns:
        (4, R) words below 2**32, uniform and independent between counters.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return np.stack([c0, c1, c2, c3])


def uniforms(seeds: Sequence[int], ordinals: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """One number in [0, 1) for each (seed, ordinal, position), with 53 random bits.

    Args:
        seeds: below 2**63.
        ordinals: index of the sequence in its job.
        positions: index of the token in the output.
    """
    seed = np.array(seeds, dtype=np.uint64)
    zeros = np.zeros_like(seed)
    counter = np.stack(
        [np.array(positions, dtype=np.uint64), np.array(ordinals, dtype=np.uint64), zeros, zeros]
    )
    words = philox(counter, np.stack([seed & _LOW, seed >> _HALF]))
    bits = (words[0] >> np.uint64(5)) * np.uint64(1 << 26) + (words[1] >> np.uint64(6))
    numbers: NDArray[np.float64] = bits.astype(np.float64) / float(1 << 53)
    return numbers

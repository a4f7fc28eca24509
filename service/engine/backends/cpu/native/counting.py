# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment, misc"
"""Counter-based random numbers inside kernels; the numpy reference is `random_draws.uniforms`."""

from __future__ import annotations

from service.engine.backends.cpu.native.functions import native

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


@native
def draw_units(seed, ordinal, position):
    """53 random bits: Philox4x32-10 keyed by the seed, at (position, ordinal)."""
    c0, c1, c2, c3 = position & _LOW, ordinal & _LOW, 0, 0
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # the low 64 bits, whatever their sign
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return (c0 >> 5) * (1 << 26) + (c1 >> 6)

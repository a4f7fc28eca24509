"""Philox4x32-10 against the published vectors, and the uniform numbers made of it."""

from __future__ import annotations

import numpy as np
import pytest

from service.engine.model.random_draws import philox, uniforms

# Random123, kat_vectors: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def _words(text: str) -> np.ndarray:
    return np.array([[int(word, 16)] for word in text.split()], dtype=np.uint64)


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(counter: str, key: str, result: str) -> None:
    assert philox(_words(counter), _words(key)).tolist() == _words(result).tolist()


def test_a_draw_does_not_depend_on_the_draws_beside_it() -> None:
    together = uniforms([5, 7, 2**63 - 1], [0, 3, 1], [9, 0, 1023])
    alone = [uniforms([s], [o], [p])[0] for s, o, p in ((5, 0, 9), (7, 3, 0), (2**63 - 1, 1, 1023))]
    assert together.tolist() == alone


@pytest.mark.parametrize("changed", [(6, 0, 0), (5 + 2**32, 0, 0), (5, 1, 0), (5, 0, 1)])
def test_seed_ordinal_and_position_all_change_the_draw(changed: tuple[int, int, int]) -> None:
    assert uniforms([5], [0], [0])[0] != uniforms(*([value] for value in changed))[0]


def test_numbers_lie_in_the_half_open_unit_interval() -> None:
    numbers = uniforms([1] * 4096, [0] * 4096, range(4096))
    assert (numbers >= 0).all() and (numbers < 1).all()


def test_numbers_fill_sixteen_bins_evenly() -> None:
    counts = np.histogram(uniforms([1] * 16384, [0] * 16384, range(16384)), bins=16, range=(0, 1))[0]
    assert ((counts - 1024) ** 2 / 1024).sum() < 37.7  # chi-square, 15 degrees of freedom, p = 0.001

"""Work on large texts, cut into steps: between two of them it can wait for others, or end for good.

A function of steps is a generator that yields where it may be interrupted and returns its result; it calls
another one with `yield from`. A step takes a few milliseconds. The service's `tasks.offload` takes turns
between such works; training does them at once.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TypeAlias, TypeVar

T = TypeVar("T")

Steps: TypeAlias = Generator[None, None, T]
"""Work under way that gives a `T` in the end."""


def listed(items: Iterable[T], per_step: int) -> Steps[list[T]]:
    """List what an iterator gives, so many items a step."""
    listing = []
    for item in items:
        listing.append(item)
        if len(listing) % per_step == 0:
            yield
    return listing


def finish(work: Steps[T]) -> T:
    """Do all steps at once and give the result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result

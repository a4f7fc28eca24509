"""The strongest tokens of a row with their log probabilities, kept small."""

from __future__ import annotations

import collections.abc
from array import array
from collections.abc import Iterable, Iterator
from typing import overload


class Alternatives(collections.abc.Sequence[tuple[int, float]]):
    """Tokens with their log probabilities, strongest first, in a fifth of the memory of tuples: a reader that
    does not read makes us keep them.

    Args:
        ids: token ids.
        logprobs: as many log probabilities.
    """

    __slots__ = ("_ids", "_logprobs")

    def __init__(self, ids: Iterable[int] = (), logprobs: Iterable[float] = ()) -> None:
        self._ids, self._logprobs = array("i", ids), array("d", logprobs)

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> tuple[int, float]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[int, float]]: ...

    def __getitem__(self, index: int | slice) -> tuple[int, float] | list[tuple[int, float]]:
        return [*self][index]

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return zip(self._ids, self._logprobs, strict=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Alternatives) and [*self] == [*other]

    def __hash__(self) -> int:
        return hash(tuple(self))

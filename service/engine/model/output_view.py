"""A sequence's output as the samplers read it, drafts behind it included, without a copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload


class OutputView(Sequence[int]):
    """A sequence's output and some drafts behind it, as they are now; copied only by those who read them.

    Args:
        token_ids: the sequence's prompt and output; may grow afterwards.
        start: where the output begins.
        drafts: what is taken for granted behind it.
    """

    __slots__ = ("_drafts", "_end", "_start", "_token_ids")

    def __init__(self, token_ids: list[int], start: int, drafts: tuple[int, ...]) -> None:
        self._token_ids, self._start, self._end, self._drafts = token_ids, start, len(token_ids), drafts

    def __len__(self) -> int:
        return self._end - self._start + len(self._drafts)

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> list[int]: ...

    def __getitem__(self, index: int | slice) -> int | list[int]:
        if not isinstance(index, slice) or index.step is not None:
            return [*self][index]
        start, stop, _ = index.indices(len(self))
        known = self._end - self._start
        ids = self._token_ids[self._start + min(start, known) : self._start + min(stop, known)]
        return ids + list(self._drafts[max(start - known, 0) : max(stop - known, 0)])

    def __iter__(self) -> Iterator[int]:
        return iter([*self._token_ids[self._start : self._end], *self._drafts])

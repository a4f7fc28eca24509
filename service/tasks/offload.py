"""One worker thread for texts that would hold up the event loop, and fair turns in front of it.

The thread does a few milliseconds of one caller's steps, then of another's: a short text waits for a turn of
each large one before it, not for its end. Work that nobody waits for any more, because its caller was
cancelled, gets no further turn. Read `run` for who uses it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from model_store.steps import Steps
from service.engine.quota import Quota
from service.tasks.calls import Origin
from service.tasks.turns import Turns, WeightedSemaphore

T = TypeVar("T")

LARGE_TEXT_BYTES = 4 * 1024  # twice that held the loop for 100 ms on a processor without AVX-512
HUGE_TEXT_BYTES = 64 * 1024  # work on it keeps tens of megabytes between its turns
TURN_S = 0.01
MAX_JOBS = 64
MAX_HUGE_BYTES = 12 * 2**20  # of one tenant's in hand at once: many of them half done would fill the memory


@dataclass(frozen=True, slots=True)
class _Finished(Generic[T]):
    """The end of some work."""

    result: T


class Offloader:
    """Does work on small texts at once, work on large texts in a thread of its own, in turns.

    Args:
        max_jobs: how many may wait and work at a time; one key may have three quarters of them.
        turn_s: seconds of steps in one turn, about; at least one step is done.
        max_huge_bytes: how large the huge texts of one tenant that are in hand at a time may be together; its
            others wait until they fit. A larger one is in hand alone.
    """

    def __init__(
        self, max_jobs: int = MAX_JOBS, turn_s: float = TURN_S, max_huge_bytes: int = MAX_HUGE_BYTES
    ) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenise")
        self._turns = Turns()
        self._turn_s, self._max_huge_bytes = turn_s, max_huge_bytes
        self._quota = Quota(
            max_jobs,
            "too many large texts wait to be read",
            "this key has too many large texts waiting",
        )
        self._huge: WeakValueDictionary[str, WeightedSemaphore] = WeakValueDictionary()  # by tenant

    async def run(self, size: int, work: Steps[T], origin: Origin, is_admitted: bool = False) -> T:
        """Do work where it does no harm.

        Args:
            size: how large the work is, as that of tokenising so many bytes; see `size_of`.
            work: steps without side effects: they may end before the last.
            origin: whose turn it takes.
            is_admitted: whether it belongs to a job under way, which is never refused.

        Returns:
            What `work` returned; what it raised is raised.

        Raises:
            QueueFull: too many wait.
        """
        if size <= LARGE_TEXT_BYTES:
            finished = _advance(work, math.inf)
            assert finished is not None, "it had all the time there is"
            return finished.result
        tenant = origin.tenant
        with self._place(tenant, is_admitted):
            async with self._in_hand(tenant, 0 if is_admitted else size):
                return await self._in_turns(work, tenant)

    def close(self) -> None:
        """Let the thread end after the turn it is at."""
        self._thread.shutdown(wait=False)

    async def _in_turns(self, work: Steps[T], tenant: str) -> T:
        loop = asyncio.get_running_loop()
        while True:
            async with self._turns.turn(tenant):
                finished = await loop.run_in_executor(self._thread, _advance, work, self._turn_s)
            if finished is not None:
                return finished.result

    @contextmanager
    def _place(self, tenant: str, is_admitted: bool) -> Iterator[None]:
        """One of the places, refused where there is none."""
        if not is_admitted:
            self._quota.check(tenant)
        self._quota.take(tenant)
        try:
            yield
        finally:
            self._quota.give(tenant)

    def _in_hand(self, tenant: str, size: int) -> AbstractAsyncContextManager[None]:
        """Let huge texts of one tenant wait for each other: see `MAX_HUGE_BYTES`."""
        if size <= HUGE_TEXT_BYTES:
            return nullcontext()
        return self._huge.setdefault(tenant, WeightedSemaphore(self._max_huge_bytes)).holding(size)


def _advance(work: Steps[T], turn_s: float) -> _Finished[T] | None:
    """Do steps until the turn is over; None when there are more."""
    until = time.monotonic() + turn_s
    while True:
        try:
            next(work)
        except StopIteration as end:
            return _Finished(end.value)
        if time.monotonic() >= until:
            return None


def size_of(texts: Iterable[str | Sequence[int]]) -> int:
    """UTF-8 length, cheaply: an upper bound where the exact one would cost a copy of a large text. A token id
    counts as one byte.
    """
    return sum(4 * len(text) if isinstance(text, str) and not text.isascii() else len(text) for text in texts)

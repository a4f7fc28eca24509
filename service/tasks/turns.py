"""A lock that tenants hold in turn (`service.engine.fair_queue` says whose it is), and a semaphore of which
each takes as much as it needs. Both live on the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from service.engine.fair_queue import FairQueue
from service.engine.sequence import Job


@dataclass(eq=False, slots=True)
class _Turn:
    """One who waits."""

    job: Job
    has_come: asyncio.Future[None]


class Turns:
    """A lock that tenants hold in turn; within a tenant, who came first."""

    def __init__(self) -> None:
        self._waiting: FairQueue[_Turn] = FairQueue()
        self._is_taken = False

    @asynccontextmanager
    async def turn(self, tenant: str) -> AsyncIterator[None]:
        """Wait for a turn and hold it. Who is cancelled while it waits leaves the line at once."""
        await self._take(tenant)
        try:
            yield
        finally:
            self._pass_on()

    async def _take(self, tenant: str) -> None:
        if not self._is_taken:
            self._is_taken = True
            return
        turn = _Turn(Job(tenant), asyncio.get_running_loop().create_future())
        self._waiting.push(turn)
        try:
            await turn.has_come
        except asyncio.CancelledError:
            if not turn.has_come.cancelled():  # its turn had come in the same moment
                self._pass_on()
            elif turn in self._waiting:  # else `_pass_on` met it first
                self._waiting.remove(turn)
            raise

    def _pass_on(self) -> None:
        for turn in self._waiting.in_turn():
            if not turn.has_come.done():  # else it was cancelled a moment ago, and its task has not run yet
                turn.has_come.set_result(None)
                return
        self._is_taken = False


class WeightedSemaphore:
    """Something of which only so much may be held at a time; who needs more than is left waits until it fits.

    Args:
        size: all there is; who needs more than that has it alone.
    """

    def __init__(self, size: int) -> None:
        self._size = self._left = size
        self._line: dict[asyncio.Future[None], int] = {}  # who waits, for how much, in the order they came

    @asynccontextmanager
    async def holding(self, count: int) -> AsyncIterator[None]:
        """Wait for so much and hold it. Who fits goes before who came first and does not."""
        count = min(count, self._size)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line[turn] = count
        self._let_in()
        try:
            await turn
            yield
        finally:
            if self._line.pop(turn, None) is None:  # it was let in
                self._left += count
                self._let_in()

    def _let_in(self) -> None:
        for turn, count in list(self._line.items()):
            if count <= self._left:
                self._left -= count
                del self._line[turn]
                if not turn.done():  # else it was cancelled a moment ago, and its task has not run yet
                    turn.set_result(None)

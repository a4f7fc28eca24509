"""Whose turn it is to use something that only one can use at a time: fair between tenants.

Lives on the event loop. A ring of tenants, in each a line of those that wait; a turn moves its tenant to the
end of the ring. Read `offload` for the use.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

_Turn = asyncio.Future[None]


class Turns:
    """A lock that tenants hold in turn; within a tenant, who came first."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[_Turn]] = OrderedDict()
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
        turn: _Turn = asyncio.get_running_loop().create_future()
        self._lines.setdefault(tenant, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(tenant, turn)
            else:  # its turn had come in the same moment
                self._pass_on()
            raise

    def _leave(self, tenant: str, turn: _Turn) -> None:
        """Take a cancelled turn out of its line, unless `_pass_on` met it first."""
        line = self._lines.get(tenant)
        if line is None or turn not in line:
            return
        line.remove(turn)
        if not line:
            del self._lines[tenant]

    def _pass_on(self) -> None:
        while self._lines:
            tenant, line = self._lines.popitem(last=False)
            turn = line.popleft()
            if line:
                self._lines[tenant] = line  # behind the other tenants
            if not turn.done():  # else it was cancelled a moment ago, and its task has not run yet
                turn.set_result(None)
                return
        self._is_taken = False

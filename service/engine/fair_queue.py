"""Whose turn it is: what waits, fair between tenants and between jobs.

A ring of tenants, in each a ring of jobs, in each a line of what waits, sequences for example. A turn takes
one of them and moves its tenant and its job to the end of their rings, so a question waits for at most one
chunk of each summary ahead of it, and a summary of 100 chunks gets its turn once a round however many
questions keep coming: with t tenants and j jobs of its own tenant waiting, a job's next is at most t * j
turns away.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from service.engine.sequence import Job


class OfJob(Protocol):
    """What can wait for a turn."""

    @property
    def job(self) -> Job:
        """Whose turn it takes."""
        ...


T = TypeVar("T", bound=OfJob)


class FairQueue(Generic[T]):
    """What waits, in the order of its turns."""

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, OrderedDict[Job, deque[T]]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        """How many wait."""
        return self._length

    def __iter__(self) -> Iterator[T]:
        """All that wait, in no promised order."""
        return (one for ring in self._tenants.values() for line in ring.values() for one in line)

    def push(self, one: T) -> None:
        """Add at the end of its job's line."""
        self._line(one).append(one)

    def push_front(self, one: T) -> None:
        """Put back what had its turn already: it is its job's next, and its job the next of all."""
        self._line(one).appendleft(one)
        tenant = one.job.tenant
        self._tenants[tenant].move_to_end(one.job, last=False)
        self._tenants.move_to_end(tenant, last=False)

    def _line(self, one: T) -> deque[T]:
        self._length += 1
        ring = self._tenants.setdefault(one.job.tenant, OrderedDict())
        return ring.setdefault(one.job, deque())

    def candidates(self) -> Iterator[T]:
        """The next of every job, in the order of turns: one of each tenant, then round again."""
        rings = [iter(ring.values()) for ring in self._tenants.values()]
        while rings:
            lines = [(ring, next(ring, None)) for ring in rings]
            yield from (line[0] for _, line in lines if line is not None)
            rings = [ring for ring, line in lines if line is not None]

    def in_turn(self) -> Iterator[T]:
        """Take one after the other, as long as more are wanted."""
        while self._tenants:
            one = next(self.candidates())
            self.take(one)
            yield one

    def take(self, one: T) -> None:
        """Remove one because its turn came: its tenant and job go to the end of their rings."""
        tenant = one.job.tenant
        self.remove(one)
        if tenant in self._tenants:
            self._tenants.move_to_end(tenant)
            if one.job in self._tenants[tenant]:
                self._tenants[tenant].move_to_end(one.job)

    def remove(self, one: T) -> None:
        """Remove one wherever it stands."""
        tenant, job = one.job.tenant, one.job
        ring = self._tenants[tenant]
        ring[job].remove(one)
        self._length -= 1
        if not ring[job]:
            del ring[job]
        if not ring:
            del self._tenants[tenant]

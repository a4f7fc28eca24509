"""Whose turn it is: waiting sequences, fair between API keys and between jobs.

A ring of tenants, in each a ring of jobs, in each a line of sequences. A turn takes one sequence and moves
its tenant and its job to the end of their rings, so a question waits for at most one chunk of each summary
ahead of it, and a summary of 100 chunks gets its turn once a round however many questions keep coming: with t
tenants and j jobs of its own tenant waiting, a job's next sequence is at most t * j turns away.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

from service.engine.sequence import Job, Sequence

Ring = OrderedDict[Job, deque[Sequence]]


class FairQueue:
    """Waiting sequences in the order of their turns."""

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, Ring] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        """Waiting sequences."""
        return self._length

    def __iter__(self) -> Iterator[Sequence]:
        """All waiting sequences, in no promised order."""
        return (s for ring in self._tenants.values() for line in ring.values() for s in line)

    def push(self, sequence: Sequence) -> None:
        """Add at the end of its job's line."""
        self._line(sequence).append(sequence)

    def push_front(self, sequence: Sequence) -> None:
        """Put a preempted sequence back: it is its job's next, and its job the next of all."""
        self._line(sequence).appendleft(sequence)
        tenant = sequence.job.tenant
        self._tenants[tenant].move_to_end(sequence.job, last=False)
        self._tenants.move_to_end(tenant, last=False)

    def _line(self, sequence: Sequence) -> deque[Sequence]:
        self._length += 1
        ring = self._tenants.setdefault(sequence.job.tenant, OrderedDict())
        return ring.setdefault(sequence.job, deque())

    def candidates(self) -> Iterator[Sequence]:
        """The next sequence of every job, in the order of turns: one of each tenant, then round again."""
        rings = [iter(ring.values()) for ring in self._tenants.values()]
        while rings:
            lines = [(ring, next(ring, None)) for ring in rings]
            yield from (line[0] for _, line in lines if line is not None)
            rings = [ring for ring, line in lines if line is not None]

    def take(self, sequence: Sequence) -> None:
        """Remove the sequence because its turn came: its tenant and job go to the end of their rings."""
        tenant = sequence.job.tenant
        self.remove(sequence)
        if tenant in self._tenants:
            self._tenants.move_to_end(tenant)
            if sequence.job in self._tenants[tenant]:
                self._tenants[tenant].move_to_end(sequence.job)

    def remove(self, sequence: Sequence) -> None:
        """Remove a sequence wherever it stands."""
        tenant, job = sequence.job.tenant, sequence.job
        ring = self._tenants[tenant]
        ring[job].remove(sequence)
        self._length -= 1
        if not ring[job]:
            del ring[job]
        if not ring:
            del self._tenants[tenant]

"""Who comes first where rows compete for seconds: the tenant, then its job, that was given least of them.

Start-time fair queuing (Goyal, Vin, Cheng, SIGCOMM 1996): each one's level is the seconds it was given.
Nobody's is below that of those that had to wait, and a newcomer starts level with the least. So having been
away earns no credit, and a newcomer and one who has been at it for long share evenly from now on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from service.engine.sequence import Job, Sequence

Who = TypeVar("Who", bound=Hashable)


class _Levels(Generic[Who]):
    """Seconds given to each of those that compete."""

    def __init__(self) -> None:
        self.given_s: dict[Who, float] = {}
        self._floor_s = 0.0

    def __getitem__(self, who: Who) -> float:
        return max(self.given_s.get(who, 0.0), self._floor_s)

    def enter(self, who: Who) -> None:
        if who not in self.given_s:
            self.given_s[who] = max(min(self.given_s.values(), default=0.0), self._floor_s)

    def charge(self, who: Who, seconds: float) -> None:
        self.given_s[who] = self[who] + seconds

    def wait(self, those: Iterable[Who]) -> None:
        self._floor_s = min(map(self.__getitem__, those))


class TimeShare:
    """An account of seconds, by tenant and by job."""

    def __init__(self) -> None:
        self._num_turns = 0
        self._tenants: _Levels[str] = _Levels()
        self._jobs: defaultdict[str, _Levels[Job]] = defaultdict(_Levels)  # by tenant

    def enter(self, job: Job) -> None:
        """A job has something running from now on."""
        self._tenants.enter(job.tenant)
        self._jobs[job.tenant].enter(job)

    def leave(self, job: Job) -> None:
        """A job has nothing running any more; a tenant without such jobs is forgotten, too."""
        levels = self._jobs[job.tenant]
        del levels.given_s[job]
        if not levels.given_s:
            del self._jobs[job.tenant], self._tenants.given_s[job.tenant]

    def order(self, sequences: Iterable[Sequence]) -> list[Sequence]:
        """Those first whose tenant, and then whose job, was given least; of one job, who waits longest."""

        def level(sequence: Sequence) -> tuple[float, float, int]:
            job = sequence.job
            return self._tenants[job.tenant], self._jobs[job.tenant][job], sequence.last_turn

        return sorted(sequences, key=level)

    def note_turns(self, served: Iterable[Sequence], waiting: Iterable[Sequence]) -> None:
        """Note whose turn it was, in this order, and who had to wait, one or more."""
        for sequence in served:
            self._num_turns += 1
            sequence.last_turn = self._num_turns
        waiting_jobs: defaultdict[str, set[Job]] = defaultdict(set)
        for sequence in waiting:
            waiting_jobs[sequence.job.tenant].add(sequence.job)
        self._tenants.wait(waiting_jobs)
        for tenant, jobs in waiting_jobs.items():
            self._jobs[tenant].wait(jobs)

    def charge(self, job: Job, seconds: float) -> None:
        """Note what a job, and so its tenant, was given."""
        self._tenants.charge(job.tenant, seconds)
        self._jobs[job.tenant].charge(job, seconds)

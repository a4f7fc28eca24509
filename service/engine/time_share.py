"""Who comes first where rows compete for seconds: the tenant, then its job, that was given least of them.

Start-time fair queuing (Goyal, Vin, Cheng, SIGCOMM 1996): each one's level is the seconds it was given.
Nobody's is below that of those that had to wait, and a newcomer starts level with the least. So having been
away earns no credit, and a newcomer and one who has been at it for long share evenly from now on.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, TypeVar

from service.engine.batch import Batch, StepOutput
from service.engine.sequence import Job, Sequence
from service.engine.step_cost import Room, StepCost, num_pairs

# Of drawing in one step for those whose turn it is, however short the forward pass.
_OWED_S = 0.02

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
        self.given_s[who] = max(self.given_s.get(who, 0.0), self._floor_s) + seconds

    def wait(self, those: Iterable[Who]) -> None:
        self._floor_s = min(map(self.__getitem__, those))


class TimeShare:
    """Chooses who draws in a step, by an account of seconds for each tenant and job.

    Args:
        cost: knows how long draws take.
        max_rows: rows of any step.
    """

    def __init__(self, cost: StepCost, max_rows: int) -> None:
        self._cost, self._max_rows = cost, max_rows
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

    def choose(self, decoding: list[Sequence], room: Room) -> list[Sequence]:
        """The sequences whose next token can be drawn in this step; all of them, mostly. `room` has the
        seconds of a step with all of them.

        Where there is not time for all, what a step may draw follows from its rows. Those who were given less
        time than whoever is quickly drawn get a row, or `_OWED_S` of them, besides.
        """
        wanted_s = sum(map(self._cost.draw_s, decoding))
        if wanted_s <= room.seconds:
            room.spent_s = wanted_s
            return decoding
        chosen: list[Sequence] = []
        is_owed, is_refused, light_s = True, False, self._cost.light_draw_s
        for sequence in self._in_order(decoding):
            draw_s = self._cost.draw_s(sequence)
            is_light = draw_s <= light_s
            is_owed = is_owed and not is_light
            room.seconds = self._cost.drawing_s(len(chosen) + 1, self._max_rows)
            if is_owed and (not chosen or room.owed_s + draw_s <= _OWED_S):
                room.owed_s += draw_s
                chosen.append(sequence)
            elif (is_light or not is_refused) and room.admits(draw_s):
                chosen.append(sequence)
            else:
                is_refused = True  # nor does anybody costly pass who was given more
        self._note_turns(chosen, set(decoding) - set(chosen))
        return chosen

    def _in_order(self, sequences: list[Sequence]) -> list[Sequence]:
        """Those first whose tenant, and then whose job, was given least; of one job, who waits longest."""

        def level(sequence: Sequence) -> tuple[float, float, int]:
            job = sequence.job
            return self._tenants[job.tenant], self._jobs[job.tenant][job], sequence.last_turn

        return sorted(sequences, key=level)

    def _note_turns(self, served: list[Sequence], waiting: set[Sequence]) -> None:
        """Note whose turn it was, in this order, and who had to wait."""
        for sequence in served:
            self._num_turns += 1
            sequence.last_turn = self._num_turns
        waiting_jobs: defaultdict[str, set[Job]] = defaultdict(set)
        for sequence in waiting:
            waiting_jobs[sequence.job.tenant].add(sequence.job)
        if waiting:
            self._tenants.wait(waiting_jobs)
        for tenant, jobs in waiting_jobs.items():
            self._jobs[tenant].wait(jobs)

    def charge_step(self, batch: Batch, results: list[StepOutput], row_s: float) -> None:
        """Learn what came behind the forward pass, and put what a step cost on the accounts of its jobs, and
        so of their tenants.

        Args:
            batch: what was computed.
            results: what came of it, and how long that took.
            row_s: seconds of the forward pass for each of its rows.
        """
        given: dict[Job, float] = {}
        drawn_rows: dict[str, int] = {}  # by kind
        drawn_s: dict[str, float] = {}
        num_scored, score_s = 0, 0.0
        for item, result in zip(batch.items, results, strict=True):
            sequence, draw_s, num_drafts = item.sequence, result.draw_s, len(item.draft_ids)
            job, kind = sequence.job, sequence.kind_of_draw
            seconds = (item.num_tokens + num_drafts) * row_s + draw_s + result.score_s
            given[job] = given.get(job, 0.0) + seconds
            if draw_s:
                drawn_rows[kind] = drawn_rows.get(kind, 0) + item.num_drawn
                drawn_s[kind] = drawn_s.get(kind, 0.0) + draw_s
            if result.score_s:
                num_scored += len(result.logprobs) + len(result.prompt_logprobs)
                score_s += result.score_s
        self.charge(given)
        for kind, rows in drawn_rows.items():
            self._cost.note_draws(kind, rows, drawn_s[kind])
        if num_scored:
            self._cost.note_scores(num_scored, score_s)
            firsts = ((item.sequence.num_computed_tokens, item.num_rows) for item in batch.items)
            pairs = sum(num_pairs(first, first + rows) for first, rows in firsts)
            self._cost.note_pairs(pairs, row_s * batch.num_rows)

    def charge(self, given_s: Mapping[Job, float]) -> None:
        """Note the seconds that jobs, and so their tenants, were given."""
        of_tenants: defaultdict[str, float] = defaultdict(float)
        for job, seconds in given_s.items():
            of_tenants[job.tenant] += seconds
            self._jobs[job.tenant].charge(job, seconds)
        for tenant, seconds in of_tenants.items():
            self._tenants.charge(tenant, seconds)

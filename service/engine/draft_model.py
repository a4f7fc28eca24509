"""Draft tokens from a small model of the same vocabulary, where prompt lookup has none (Leviathan, 2023).

The small model follows the sequences that decode, in a cache of its own, and draws with their very parameters
and random numbers: so a drawn text's drafts are likely to be what the large model draws, and a constraint
holds for them, too. What counts as accepted is decided where any draft is verified; no text ever changes.

How many are proposed follows from measured costs and from how often drafts were right. An account in seconds
bounds what may be lost: it is paid a small share of each step and what accepted drafts save, and it pays for
the small model's time and for the rows that verify. With nothing on it nothing is drafted.
"""

from __future__ import annotations

import time

from service.engine.sequence import Job, Sequence
from service.engine.speculator import Speculator
from service.engine.step_cost import StepCost
from service.engine.time_share import TimeShare
from service.engine.twins import Pair, Twins, room_of

_MAX_DRAFT = 7
_MOST_TOGETHER = 16  # sequences drafted for in one step: a batch of more is wide enough without
_MIN_EXPECTED_GAIN = 1.05
_ALLOWANCE = 0.03  # of a step's time: what drafts that are never right may cost
_FIRST_STEPS, _MOST_STEPS = 4, 24  # on the account at the start and at most, in steps of one row
_PROBE_EVERY = 32  # steps after which drafts that do not pay are tried all the same
_PROBE_LENGTH = 2
_WORTH = 2.0  # what catching up is expected to save, in times of what it costs


class DraftModel:
    """Proposes drafts of prompt lookup or of a small model; a `Drafter`.

    Args:
        lookup: proposes from the text so far, for nothing; what it expects to be right more often goes first.
        twins: what the small model knows of sequences.
        cost: what steps of the large model cost.
        max_rows: rows a step may have in all.
        time_share: the accounts on which the small model's time is put.
    """

    def __init__(
        self, lookup: Speculator, twins: Twins, cost: StepCost, max_rows: int, time_share: TimeShare
    ) -> None:
        self.twins = twins
        self.num_drafted = self.num_accepted = 0  # ever, from either source
        self.num_model_drafted = self.num_model_accepted = 0
        self.acceptance = 0.6  # of all sequences, exponentially averaged: a newcomer's first guess
        self.account_s: float | None = None  # None until a step was measured
        self._lookup, self._cost, self._max_rows, self._time_share = lookup, cost, max_rows, time_share
        self._proposed: set[Sequence] = set()  # by the small model, and not verified yet
        self._token_s = 0.0  # what an accepted draft saves
        self._since_probe = 0

    # ---- the interface of a drafter ---------------------------------------------------------------------

    def draft(self, decoding: list[Sequence]) -> dict[Sequence, tuple[int, ...]]:
        """Choose drafts for decoding sequences; see `Drafter`."""
        self.twins.forget_stopped()
        self._proposed.clear()
        copied = self._lookup.draft(decoding)
        if not decoding:
            return copied
        step_s = self._cost.predict(len(decoding))
        self._token_s = step_s / len(decoding)
        self._earn(_ALLOWANCE * step_s)
        candidates = [s for s in decoding if self._may_draft(s, copied)]
        candidates.sort(key=self._acceptance_of, reverse=True)
        del candidates[_MOST_TOGETHER:]
        kept = {s: ids for s, ids in copied.items() if s not in candidates}
        length, spent_s = self._best_length(candidates, decoding, kept)
        if not length or spent_s > self._left_s:
            return copied
        started = time.monotonic()
        chosen = [pair for s in candidates if (pair := self.twins.level(s, self.acceptance)) is not None]
        level = self.twins.catch_up(chosen, step_s, self._is_worth)
        drafts = self.twins.guess(level, length)
        self._pay(chosen, time.monotonic() - started)
        num_rows = len(decoding) + sum(map(len, drafts.values()))
        self._earn(step_s - self._cost.predict(num_rows))
        self._proposed.update(drafts)
        return copied | drafts

    def note(self, sequence: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Learn from a verified draft."""
        self.num_drafted += num_drafted
        self.num_accepted += num_accepted
        if sequence not in self._proposed:
            self._lookup.note(sequence, num_drafted, num_accepted)
            return
        self._proposed.remove(sequence)
        self.num_model_drafted += num_drafted
        self.num_model_accepted += num_accepted
        self._earn(num_accepted * self._token_s)
        pair = self.twins.get(sequence)
        assert pair is not None, "the small model proposed"
        tried = min(num_accepted + 1, num_drafted)  # drafts after the first wrong one say nothing
        for was_right in [True] * num_accepted + [False] * (tried - num_accepted):
            pair.acceptance += 0.15 * (was_right - pair.acceptance)
            self.acceptance += 0.05 * (was_right - self.acceptance)

    # ---- deciding ---------------------------------------------------------------------------------------

    def _may_draft(self, sequence: Sequence, copied: dict[Sequence, tuple[int, ...]]) -> bool:
        """Whether there is room for a draft, and none that was copied is as good."""
        pair = self.twins.get(sequence)
        is_known = self._cost.draw_s(sequence) != float("inf")
        is_beam = sequence.params.num_beams > 1  # beams part too often
        if is_beam or room_of(sequence) < 1 or not is_known or (pair is not None and pair.has_failed):
            return False
        return sequence not in copied or sequence.drafts.likelihood < self._acceptance_of(sequence)

    def _acceptance_of(self, sequence: Sequence) -> float:
        pair = self.twins.get(sequence)
        return self.acceptance if pair is None else pair.acceptance

    def _best_length(
        self, candidates: list[Sequence], decoding: list[Sequence], copied: dict[Sequence, tuple[int, ...]]
    ) -> tuple[int, float]:
        """Length of all drafts with the most tokens per second, and the seconds that they take more than
        none; 0 if none pays.
        """
        rows = len(decoding) + sum(map(len, copied.values()))
        tokens = len(decoding) + sum(_gain(s.drafts.likelihood, len(ids)) for s, ids in copied.items())
        draw_s = sum(map(self._cost.draw_s, decoding))
        draw_s += sum(len(ids) * self._cost.draw_s(s) for s, ids in copied.items())
        plain_s = self._cost.predict(rows) + draw_s
        best, best_s, best_rate = 0, 0.0, _MIN_EXPECTED_GAIN * tokens / plain_s
        drafting_s, verified, gain = 0.0, 0, 0.0
        seconds = {}
        for length in range(1, _MAX_DRAFT + 1):
            longer = [s for s in candidates if room_of(s) >= length]
            verified += len(longer)
            if not longer or rows + verified > self._max_rows:
                break
            each_s = sum(map(self._cost.draw_s, longer))
            drafting_s += self.twins.cost.predict(len(longer)) + each_s
            draw_s += each_s
            gain += sum(self._acceptance_of(s) ** length for s in longer)
            seconds[length] = self._cost.predict(rows + verified) + draw_s + drafting_s
            rate = (tokens + gain) / seconds[length]
            if rate > best_rate:
                best, best_s, best_rate = length, seconds[length] - plain_s, rate
        if best or not seconds:
            return best, best_s
        self._since_probe += 1
        if self._since_probe < _PROBE_EVERY:
            return 0, 0.0
        self._since_probe = 0
        del candidates[1:]
        length = min(_PROBE_LENGTH, room_of(candidates[0]))
        return length, self._cost.predict(rows + length) - self._cost.predict(rows)

    def _is_worth(self, pair: Pair, seconds: float) -> bool:
        """Whether bringing a twin level is likely to save more than it takes, and can be afforded."""
        saved = 1 - 1 / (1 + _gain(pair.acceptance, _PROBE_LENGTH))
        is_begun = pair.twin.num_computed_tokens > 0
        is_paid = room_of(pair.twin) * saved * self._token_s >= _WORTH * seconds
        return is_paid and (is_begun or seconds <= self._left_s)

    # ---- the account ------------------------------------------------------------------------------------

    @property
    def _left_s(self) -> float:
        return self.account_s or 0.0

    def _earn(self, seconds: float) -> None:
        """Put seconds on the account, or take them, up to the most that it holds."""
        row_s = self._cost.predict(1)
        known_s = _FIRST_STEPS * row_s if self.account_s is None else self.account_s
        self.account_s = min(known_s + seconds, _MOST_STEPS * row_s)

    def _pay(self, pairs: list[Pair], seconds: float) -> None:
        """Put the small model's time on the account and on its jobs'."""
        self._earn(-seconds)
        given_s: dict[Job, float] = {}
        for pair in pairs:
            job = pair.sequence.job
            given_s[job] = given_s.get(job, 0.0) + seconds / len(pairs)
        self._time_share.charge(given_s)


def _gain(acceptance: float, length: int) -> float:
    """Drafts expected to be right, of so many in a row."""
    return sum(acceptance**count for count in range(1, length + 1))

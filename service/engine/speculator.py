"""Draft tokens copied from the text so far: prompt lookup (Saxena, 2023), worth most where outputs copy.

The tokens that followed the last earlier occurrence of the newest n-gram are proposed; the model verifies all
of them in one pass, and since a draft counts only if it equals the token the draw gives, no text ever
changes. How many are proposed follows from measured cost and from how often this sequence's drafts were
right. `scheduler` asks for drafts, `engine` reports what became of them; a sequence carries what is known of
it (`Sequence.drafts`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from service.engine.sequence import Sequence
from service.engine.step_cost import StepCost

_NGRAM = 3
_MAX_DRAFT = 7
_MIN_EXPECTED_GAIN = 1.05  # below this a draft is not worth the noise of the measurement
_PROBE_EVERY = 16  # tokens after which a sequence without luck may try once more


@dataclass(slots=True)
class Step:
    """A step as it would be with the drafts chosen so far."""

    rows: int
    tokens: float  # expected to come of it
    draw_s: float  # behind its forward pass


class Drafter(Protocol):
    """What proposes drafts and learns what became of them; see `Speculator`, `DraftModel`."""

    num_drafted: int
    num_accepted: int
    num_model_drafted: int  # of these, by a draft model
    num_model_accepted: int

    def draft(self, decoding: list[Sequence]) -> dict[Sequence, tuple[int, ...]]:
        """Choose drafts for some of the decoding sequences."""
        ...

    def note(self, sequence: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Learn from a verified draft."""
        ...


class Speculator:
    """Proposes drafts.

    Args:
        cost: measured step times, which decide whether a longer batch pays.
        max_rows: rows a step may have in all.
    """

    num_model_drafted = num_model_accepted = 0  # see `DraftModel`

    def __init__(self, cost: StepCost, max_rows: int) -> None:
        self._cost = cost
        self._max_rows = max_rows
        self.num_drafted = 0
        self.num_accepted = 0

    def draft(self, decoding: list[Sequence]) -> dict[Sequence, tuple[int, ...]]:
        """Choose drafts for decoding sequences, most promising first, while the step is worth more."""
        single = (s for s in decoding if s.params.num_beams == 1)  # beams part too often
        candidates = [(s, ids) for s in single if (ids := self._propose(s))]
        if not candidates:
            return {}
        candidates.sort(key=lambda candidate: -candidate[0].drafts.likelihood)
        step = Step(len(decoding), float(len(decoding)), sum(map(self._cost.draw_s, decoding)))
        chosen: dict[Sequence, tuple[int, ...]] = {}
        for sequence, ids in candidates:
            each_s = self._cost.draw_s(sequence)
            if is_undrawn(sequence, ids):  # in this step or the next, they fill the same rows
                length, gain, each_s = min(len(ids), self._max_rows - step.rows), float(len(ids)), 0.0
            else:
                length, gain = self._best_length(sequence, len(ids), step)
            if length > 0:
                chosen[sequence] = ids[:length]
                step.rows, step.tokens = step.rows + length, step.tokens + gain
                step.draw_s += length * each_s
        return chosen

    def note(self, sequence: Sequence, num_drafted: int, num_accepted: int) -> None:
        """Learn from a verified draft."""
        self.num_drafted += num_drafted
        self.num_accepted += num_accepted
        history = sequence.drafts
        if history.forced:
            return  # that they were right says nothing of others
        tried = min(num_accepted + 1, num_drafted)  # drafts after the first wrong one say nothing
        for was_right in [True] * num_accepted + [False] * (tried - num_accepted):
            history.acceptance += 0.15 * (was_right - history.acceptance)

    def _best_length(self, sequence: Sequence, available: int, step: Step) -> tuple[int, float]:
        """Draft length with the most tokens per second, and the tokens it should add; 0 if none pays."""
        p = sequence.drafts.likelihood
        each_s = self._cost.draw_s(sequence)
        best = (0, 0.0)
        best_rate = _MIN_EXPECTED_GAIN * step.tokens / (self._cost.predict(step.rows) + step.draw_s)
        gain = 0.0
        longest = min(available, self._max_rows - step.rows)
        for length in range(1, longest + 1):
            gain += p**length
            seconds = self._cost.predict(step.rows + length) + step.draw_s + length * each_s
            rate = (step.tokens + gain) / seconds
            if rate > best_rate:
                best, best_rate = (length, gain), rate
        if best[0] or longest < 1:
            return best
        sequence.drafts.since_probe += 1
        if sequence.drafts.since_probe < _PROBE_EVERY:
            return best
        sequence.drafts.since_probe = 0
        return 1, p

    def _propose(self, sequence: Sequence) -> tuple[int, ...]:
        """The tokens that must follow, or those that followed the newest n-gram when it last stood in the
        text.
        """
        room = sequence.params.max_new_tokens - sequence.num_output_tokens - 1
        if room < 1:
            return ()
        ask = sequence.params.forced_next
        forced = [] if ask is None else ask(sequence.output_ids)
        sequence.drafts.forced = tuple(forced[: min(_MAX_DRAFT, room)])
        return sequence.drafts.forced or tuple(self._lookup(sequence)[: min(_MAX_DRAFT, room)])

    def _lookup(self, sequence: Sequence) -> list[int]:
        ids, known = sequence.token_ids, sequence.drafts
        for end in range(max(known.num_indexed, _NGRAM), len(ids)):  # every n-gram with a token behind it
            known.behind[tuple(ids[end - _NGRAM : end])] = end
        known.num_indexed = max(len(ids), _NGRAM)
        at = known.behind.get(tuple(ids[-_NGRAM:]))
        return [] if at is None else ids[at : at + _MAX_DRAFT]


def is_undrawn(sequence: Sequence, draft: tuple[int, ...]) -> bool:
    """Whether a draft needs no draw: its tokens must come, and nobody wants their log probabilities."""
    is_forced = len(draft) > 0 and draft == sequence.drafts.forced[: len(draft)]
    return is_forced and sequence.params.logprobs is None

"""How long a step takes, learnt from the steps themselves: the forward pass by its rows, and what comes
behind it (drawing tokens, log probabilities) by kinds of rows.

Three decisions need it: how much prefill may ride along without stalling running streams, how many rows may
be drawn from in one step, and whether drafts pay (`speculator`). `Room` is what is left of a step while it is
scheduled, in rows and in these seconds.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import accumulate

from service.engine.sequence import Sequence

_KNOTS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)
_WEIGHT = 0.1  # of the newest measurement
_SHORTEST_S = 1e-9  # a clock too coarse to see the step
# Drawing may make a step longer by this many times the forward pass of its decodes; and prefill, then, by as
# many times the two together.
_MAX_STALL = 1.5
_PART_S = 0.02  # of drawing between two signs of life, about
_LIGHT = 0.25  # a draw that takes no more than this share of a pass with one row holds nobody up
_UNKNOWN_S = float("inf")
# Measurements: the quickest of fewer may be that of a busy moment, as at a start beside others.
_SURE_AFTER = 16
_SCORED = "scored"  # the kind of all rows whose log probabilities are wanted


class StepCost:
    """Step seconds: of the forward pass by number of rows, averaged per knot and interpolated between them;
    of what comes behind it per row, by kind.

    Args:
        min_prefill_rows: rows of prefill that are always worth a step's while.
    """

    def __init__(self, min_prefill_rows: int = 16) -> None:
        self._min_prefill_rows = min_prefill_rows
        self._seconds: dict[int, _Average] = {}
        self._rows: list[int] = []  # knots with data, rising
        self._rising: list[float] = []  # their seconds, each at least those of fewer rows
        self._row_s: dict[str, _Average] = {}  # of one row behind the forward pass, by kind
        self._min_pass_s = self._min_score_s = _UNKNOWN_S  # of one row at its quickest: forward, scored
        self._min_pair_s = _UNKNOWN_S  # of one row's attention to one token, and its share of the rest
        self._num_scorings = 0

    # ---- learning ---------------------------------------------------------------------------------------

    def note(self, rows: int, seconds: float) -> None:
        """Learn from a forward pass."""
        self._min_pass_s = min(self._min_pass_s, seconds / rows)
        knot = _KNOTS[min(bisect_left(_KNOTS, rows), len(_KNOTS) - 1)]
        self._seconds.setdefault(knot, _Average()).note(seconds)
        if len(self._rows) < len(self._seconds):
            self._rows = sorted(self._seconds)
        self._rising = list(accumulate((self._seconds[at].value for at in self._rows), max))

    def note_draws(self, kind: str, rows: int, seconds: float) -> None:
        """Learn from tokens drawn from rows of one kind."""
        self._row_s.setdefault(kind, _Average()).note(seconds / rows)

    def note_pairs(self, pairs: float, seconds: float) -> None:
        """Learn from a forward pass what attention adds where texts are long: pairs of a row and a token."""
        self._min_pair_s = min(self._min_pair_s, seconds / pairs)

    def note_scores(self, rows: int, seconds: float) -> None:
        """Learn from the log probabilities of some rows."""
        self._row_s.setdefault(_SCORED, _Average()).note(seconds / rows)
        self._min_score_s = min(self._min_score_s, seconds / rows)
        self._num_scorings += 1

    # ---- knowing ----------------------------------------------------------------------------------------

    def predict(self, rows: int) -> float:
        """Seconds of a forward pass with so many rows, no less than for fewer; without data, the rows."""
        if not self._rows:
            return float(rows)
        above = bisect_right(self._rows, rows)
        if above == 0:
            return self._rising[0]
        row, seconds = self._rows[above - 1], self._rising[above - 1]
        if above == len(self._rows):
            return seconds * rows / row
        share = (rows - row) / (self._rows[above] - row)
        return seconds + share * (self._rising[above] - seconds)

    def draw_s(self, sequence: Sequence) -> float:
        """Seconds to draw one token for a sequence, its log probabilities included.

        Infinite for a kind that was never measured: one row at a time may try it. 0 where nothing ever was.
        """
        if not self._row_s or sequence.params.max_new_tokens == 0:
            return 0.0
        row_s = self._known(sequence.kind_of_draw, _UNKNOWN_S)
        return row_s if sequence.params.logprobs is None else row_s + self._known(_SCORED, 0.0)

    def score_s(self) -> float:
        """Seconds for the log probabilities of one row; as `draw_s` where they are not known."""
        return self._known(_SCORED, _UNKNOWN_S) if self._row_s else 0.0

    def min_scoring_s(self, start: int, end: int) -> float:
        """Seconds that the tokens from `start` to `end` of a prompt and their log probabilities take at their
        quickest; 0 where too little was measured.
        """
        if self._num_scorings < _SURE_AFTER or self._min_pass_s == _UNKNOWN_S:
            return 0.0
        by_rows = (end - start) * self._min_pass_s
        by_pairs = num_pairs(start, end) * self._min_pair_s if self._min_pair_s < _UNKNOWN_S else 0.0
        return max(by_rows, by_pairs) + (end - start) * self._min_score_s

    # ---- deciding ---------------------------------------------------------------------------------------

    def prefill_rows(self, decode_rows: int, draw_s: float, max_rows: int) -> int:
        """Rows of prefill that may ride along with so many decodes without stalling their streams.

        Args:
            decode_rows: rows of the step without prefill.
            draw_s: seconds of that step behind its forward pass.
            max_rows: rows of any step.
        """
        if decode_rows == 0:
            return max_rows
        forward_s = self.predict(decode_rows)
        limit_s = forward_s + _MAX_STALL * (forward_s + draw_s)
        fitting = [rows for rows in _KNOTS if rows <= max_rows and self.predict(rows) <= limit_s]
        return max(max(fitting, default=0) - decode_rows, self._min_prefill_rows)

    def drawing_s(self, decode_rows: int, max_rows: int) -> float:
        """Seconds that a step with so many decodes may spend behind its forward pass.

        Args:
            decode_rows: sequences that want their next token; without any, nobody is stalled by a long step.
            max_rows: rows of any step.
        """
        return _MAX_STALL * self.predict(decode_rows or max_rows)

    @property
    def light_draw_s(self) -> float:
        """A draw that takes longer than so many seconds holds others up."""
        return _LIGHT * self.predict(1)

    def rows_at_once(self, kind_of_draw: str) -> int:
        """How many rows to draw from before a sign of life is due."""
        return max(int(_PART_S / self._known(kind_of_draw, _PART_S)), 1)

    def _known(self, kind_of_draw: str, otherwise: float) -> float:
        average = self._row_s.get(kind_of_draw)
        return otherwise if average is None else average.value


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of every step."""

    max_rows: int  # rows of a forward pass
    max_running: int  # sequences in flight


@dataclass(slots=True)
class Room:
    """What is left of a step: rows, and seconds behind the forward pass."""

    rows: int
    seconds: float = 0.0
    spent_s: float = 0.0
    owed_s: float = 0.0  # given besides, to those who come first
    num_scored: int = 0  # rows of prompts whose log probabilities are wanted

    def admits(self, seconds: float) -> bool:
        """Take seconds if they are left."""
        if self.spent_s + seconds > self.seconds:
            return False
        self.spent_s += seconds
        return True

    def count(self, wanted: int, each_s: float) -> int:
        """How many of something that takes so many seconds each are left; takes them."""
        count = wanted if each_s == 0 else max(min(wanted, int((self.seconds - self.spent_s) / each_s)), 0)
        self.spent_s += count * each_s if count else 0.0
        return count

    def scores(self, each_s: float) -> bool:
        """Whether one more row can be scored, in so many seconds. The first one always can: scoring goes on
        however busy the others are.
        """
        return self.num_scored == 0 or self.spent_s + each_s <= self.seconds

    def count_scored(self, wanted: int, each_s: float) -> int:
        """As `count`, of rows to be scored."""
        count = self.count(wanted, each_s)
        if wanted and not count and self.scores(each_s):
            count = 1
        self.num_scored += count
        return count


def num_pairs(start: int, end: int) -> float:
    """Pairs of a token from `start` to `end` and one that it attends to."""
    return (end * end - start * start) / 2


class _Average:
    """Exponential; while there are few measurements, quicker ones weigh more: the first had cold memory."""

    __slots__ = ("_count", "value")

    def __init__(self) -> None:
        self.value, self._count = 0.0, 0

    def note(self, seconds: float) -> None:
        """Learn from one; a rare outlier, as a page fault makes, is clamped to twice what is known."""
        seconds = max(seconds, _SHORTEST_S)
        known = self.value if self._count else seconds
        weight = max(_WEIGHT, 1 / max(self._count, 1)) if seconds < known else _WEIGHT
        self.value = known + weight * (min(seconds, 2 * known) - known)
        self._count += 1

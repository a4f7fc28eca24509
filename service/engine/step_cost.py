"""How long a step of so many rows takes, learnt from the steps themselves.

Two decisions need it: how much prefill may ride along without stalling running streams, and whether drafts
pay (`speculator`).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate

_KNOTS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)
_WEIGHT = 0.1  # of the newest measurement
_SHORTEST_S = 1e-9  # a clock too coarse to see the step
_MAX_STALL = 2.5  # a step with prefill in it takes at most so many times as long as one without


class StepCost:
    """Step seconds by number of rows, averaged per knot and interpolated between them.

    Args:
        min_prefill_rows: rows of prefill that are always worth a step's while.
    """

    def __init__(self, min_prefill_rows: int = 16) -> None:
        self._min_prefill_rows = min_prefill_rows
        self._seconds: dict[int, float] = {}
        self._rows: list[int] = []  # knots with data, rising
        self._rising: list[float] = []  # their seconds, each at least those of fewer rows

    def note(self, rows: int, seconds: float) -> None:
        """Learn from a step. A rare outlier, as a page fault makes, is clamped to twice."""
        knot = _KNOTS[min(bisect_left(_KNOTS, rows), len(_KNOTS) - 1)]
        seconds = max(seconds, _SHORTEST_S)
        known = self._seconds.get(knot)
        if known is None:
            self._seconds[knot] = seconds
        else:
            self._seconds[knot] = known + _WEIGHT * (min(seconds, 2 * known) - known)
        if len(self._rows) < len(self._seconds):
            self._rows = sorted(self._seconds)
        self._rising = list(accumulate((self._seconds[at] for at in self._rows), max))

    def predict(self, rows: int) -> float:
        """Seconds of a step with so many rows; never less than for fewer rows. Without data, the rows
        themselves.
        """
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

    def prefill_rows(self, decode_rows: int, max_rows: int) -> int:
        """Rows of prefill that may ride along with so many decodes without stalling their streams.

        Args:
            decode_rows: rows of the step without prefill.
            max_rows: rows of any step.
        """
        if decode_rows == 0:
            return max_rows
        limit_s = _MAX_STALL * self.predict(decode_rows)
        fitting = [rows for rows in _KNOTS if rows <= max_rows and self.predict(rows) <= limit_s]
        return max(max(fitting, default=0) - decode_rows, self._min_prefill_rows)

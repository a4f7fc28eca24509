"""How long a step of so many rows takes, learnt from the steps themselves.

Two decisions need it: how much prefill may ride along without stalling running streams, and whether drafts
pay.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate

_KNOTS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)
_WEIGHT = 0.1  # of the newest measurement
_SHORTEST_S = 1e-9  # a clock too coarse to see the step


class StepCost:
    """Step seconds by number of rows, averaged per knot and interpolated between them."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._rows: list[int] = []  # knots with data, rising
        self._rising: list[float] = []  # their seconds, each at least those of fewer rows

    def note(self, rows: int, seconds: float) -> None:
        """Learn from a step. Seldom outliers (a page fault, a neighbour on the machine) are damped to
        twice.
        """
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

    def rows_within(self, seconds: float, most: int) -> int:
        """The most rows, of the sizes measured, whose step is expected to take at most so long."""
        fitting = [rows for rows in _KNOTS if rows <= most and self.predict(rows) <= seconds]
        return max(fitting, default=0)

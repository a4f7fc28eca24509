"""How long a step of so many rows takes, learnt from the steps themselves.

Two decisions need it: how much prefill may ride along without stalling running streams, and whether drafts
pay.
"""

from __future__ import annotations

from bisect import bisect_left

_KNOTS = (1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)
_WEIGHT = 0.1  # of the newest measurement


class StepCost:
    """Step seconds by number of rows, averaged per knot and interpolated between them."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def note(self, rows: int, seconds: float) -> None:
        """Learn from a step. Seldom outliers (a page fault, a neighbour on the machine) are damped to
        twice.
        """
        knot = _KNOTS[min(bisect_left(_KNOTS, rows), len(_KNOTS) - 1)]
        known = self._seconds.get(knot)
        if known is None:
            self._seconds[knot] = seconds
        else:
            self._seconds[knot] = known + _WEIGHT * (min(seconds, 2 * known) - known)

    def predict(self, rows: int) -> float:
        """Seconds of a step with so many rows; never less than for fewer rows. Without data, the rows
        themselves.
        """
        known = sorted(self._seconds.items())
        if not known:
            return float(rows)
        below = max(((k, s) for k, s in known if k <= rows), default=known[0])
        above = min(((k, s) for k, s in known if k >= rows), default=known[-1])
        if rows > known[-1][0]:
            return below[1] * rows / below[0]
        if above[0] == below[0]:
            return below[1]
        share = (rows - below[0]) / (above[0] - below[0])
        return below[1] + max(share, 0.0) * max(above[1] - below[1], 0.0)

    def rows_within(self, seconds: float, most: int) -> int:
        """The most rows whose step is expected to take at most so long."""
        fitting = [rows for rows in _KNOTS if rows <= most and self.predict(rows) <= seconds]
        return max(fitting, default=0)

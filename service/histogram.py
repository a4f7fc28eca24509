"""A histogram of plain numbers, for `service.metrics`."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """Counts by bucket and a sum. One thread writes; a reader may be one observation behind.

    Args:
        bounds: upper bounds of the buckets, rising; one more bucket takes what is larger.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value, in the unit of the bounds."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        """Pairs of (upper bound, how many values are not above it), as Prometheus wants them."""
        total, counts = 0, []
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts.copy(), strict=True):
            total += count
            counts.append((bound, float(total)))
        return counts

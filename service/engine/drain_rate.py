"""How fast sequences finish, for the `Retry-After` of a refusal."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_WINDOW = 64  # finished sequences that are looked at
_LEAST_S, _MOST_S = 1.0, 60.0


class DrainRate:
    """Finished sequences against a clock that stands still while nothing is in flight: idling is no sign of
    slowness.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._finished_at: deque[float] = deque(maxlen=_WINDOW)  # in busy seconds
        self._idle_since: float | None = clock()
        self._idle_s = 0.0  # ever, up to the last `work`

    def work(self) -> None:
        """Something is in flight from now on."""
        self._idle_s, self._idle_since = self._clock() - self._busy_seconds(), None

    def idle(self) -> None:
        """Nothing is in flight from now on."""
        self._idle_since = self._clock()

    def finished(self) -> None:
        """Note that one sequence has finished."""
        self._finished_at.append(self._busy_seconds())

    def seconds_until(self, count: int) -> float:
        """Seconds until so many sequences will have finished, 1 … 60; 1 while nothing was measured."""
        if len(self._finished_at) < 2:
            return _LEAST_S
        rate = len(self._finished_at) / max(self._busy_seconds() - self._finished_at[0], 1e-3)
        return min(max(count / rate, _LEAST_S), _MOST_S)

    def _busy_seconds(self) -> float:
        return (self._clock() if self._idle_since is None else self._idle_since) - self._idle_s

"""How fast what is held is given back, for the `Retry-After` of a refusal."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_WINDOW = 64  # times something was given back that are looked at
_MIN_S, _MAX_S = 1.0, 60.0


class DrainRate:
    """What finished, against a clock that stands still while nothing is in flight: idling is no sign of
    slowness.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._finished: deque[tuple[float, int]] = deque(maxlen=_WINDOW)  # busy seconds, how much
        self._idle_since: float | None = clock()
        self._idle_s = 0.0  # ever, up to the last `work`

    def work(self) -> None:
        """Something is in flight from now on."""
        self._idle_s, self._idle_since = self._clock() - self._busy_seconds(), None

    def idle(self) -> None:
        """Nothing is in flight from now on."""
        self._idle_since = self._clock()

    def finished(self, count: int = 1) -> None:
        """Note that so much has finished."""
        self._finished.append((self._busy_seconds(), count))

    def seconds_until(self, count: int) -> float:
        """Seconds until so much will have finished, 1 … 60; 1 while nothing was measured."""
        if len(self._finished) < 2:
            return _MIN_S
        seconds = max(self._busy_seconds() - self._finished[0][0], 1e-3)
        return min(max(count * seconds / sum(each for _, each in self._finished), _MIN_S), _MAX_S)

    def _busy_seconds(self) -> float:
        return (self._clock() if self._idle_since is None else self._idle_since) - self._idle_s

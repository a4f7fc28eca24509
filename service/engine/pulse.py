"""Signs of life of a step: written by the engine thread, read by the watchdog on another."""

from __future__ import annotations

from collections.abc import Callable


class Pulse:
    """When a step last got on. Long work is no hang as long as parts of it end.

    Args:
        clock: seconds; never goes back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.last_at: float | None = None  # None between two steps
        self.slowest_s = 0.0  # longest time between two beats
        self._clock = clock
        self._seen: float | None = None  # the beat that `look` saw last
        self._still_s = 0.0  # for how long

    def begin(self) -> None:
        """A step begins."""
        self.last_at = self._clock()

    def beat(self) -> None:
        """A part of the step is done."""
        now = self._clock()
        if self.last_at is not None:
            self.slowest_s = max(self.slowest_s, now - self.last_at)
        self.last_at = now

    def end(self) -> None:
        """The step is over."""
        self.beat()
        self.last_at = None

    def look(self, after_s: float) -> float:
        """Say for how many seconds a step has been seen without a sign of life. Counting looks, not clock
        time, forgives a process that was stopped for a while.

        Args:
            after_s: how long after the look before this one.
        """
        beat = self.last_at
        self._still_s = self._still_s + after_s if beat is not None and beat == self._seen else 0.0
        self._seen = beat
        return self._still_s

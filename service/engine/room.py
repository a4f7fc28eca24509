"""What a step may take: the limits of every step, and what is left of one while it is scheduled."""

from __future__ import annotations

from dataclasses import dataclass


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

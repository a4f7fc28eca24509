"""What one step may take, computes and gives: room, which tokens of which sequences, and what came of each.

The scheduler makes a `Batch`, the model runner gives one `StepOutput` for each of its items, in order. What
there is one of for each token is not frozen, which takes four times as long; nobody changes it all the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from service.engine.sequence import Sequence, TokenLogprob


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


@dataclass(slots=True)
class Scheduled:
    """A sequence's share of a step: its next `num_tokens` known tokens, then drafts to verify."""

    sequence: Sequence
    num_tokens: int
    draft_ids: tuple[int, ...] = ()

    @property
    def num_rows(self) -> int:
        """Rows of the forward pass this sequence fills."""
        return self.num_tokens + len(self.draft_ids)

    @property
    def samples(self) -> bool:
        """Whether the last known token is in this step, so that the next one can be sampled."""
        sequence = self.sequence
        end = sequence.num_computed_tokens + self.num_tokens
        return end == len(sequence.token_ids) and sequence.params.max_new_tokens > 0

    @property
    def num_drawn(self) -> int:
        """Rows from which a token is drawn: that of the last known token and those of the drafts."""
        return 1 + len(self.draft_ids) if self.samples else 0


@dataclass(slots=True)
class Batch:
    """The sequences of one step, decodes first."""

    items: tuple[Scheduled, ...]
    num_rows: int = field(init=False)  # of the forward pass

    def __post_init__(self) -> None:
        """Count the rows once."""
        self.num_rows = sum(item.num_rows for item in self.items)


@dataclass(slots=True)
class StepOutput:
    """What a step gave one sequence: verified new ids (none while prefilling) and log probabilities; and what
    that took behind the forward pass, in seconds.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    draw_s: float = 0.0  # drawing from its rows
    score_s: float = 0.0  # log probabilities

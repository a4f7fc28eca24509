"""What one step computes and gives: which tokens of which sequences, and what came of each.

The scheduler makes a `Batch`, the model runner gives one `StepOutput` for each of its items, in order. What
there is one of for each token is not frozen, which takes four times as long; nobody changes it all the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from service.engine.beam_search import Candidates
from service.engine.sequence import Sequence, TokenLogprob


@dataclass(slots=True)
class Scheduled:
    """A sequence's share of a step: its next `num_tokens` known tokens, then drafts to verify."""

    sequence: Sequence
    num_tokens: int
    draft_ids: tuple[int, ...] = ()
    is_undrawn: bool = False  # whether its drafts must come, and are taken as they are
    copied: tuple[int, int] | None = None  # before the step, a block's contents into another: from, to

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
        """Rows from which a token is drawn: that of the last known token and those of the drafts, or of the
        last draft only.
        """
        return (1 if self.is_undrawn else 1 + len(self.draft_ids)) if self.samples else 0


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
    candidates: Candidates | None = None  # of a beam, in place of new ids

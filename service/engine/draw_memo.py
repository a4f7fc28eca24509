"""What a sampler and a drafter keep of a sequence from token to token."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class DrawMemo:
    """Room for what a sampler makes of a sequence once."""

    kept: object | None = None


@dataclass(slots=True)
class DraftHistory:
    """Where a sequence's n-grams stand, and how its drafts fared."""

    behind: dict[tuple[int, ...], int] = field(default_factory=dict)  # n-gram -> position behind it
    num_indexed: int = 0
    acceptance: float = 0.6  # share of drafts accepted, exponentially averaged; starts hopeful
    since_probe: int = 0  # chances let pass since a draft was tried in spite of its cost
    forced: tuple[int, ...] = ()  # what must come next, as a constraint has it

    @property
    def likelihood(self) -> float:
        """How likely each of the present drafts is right, if those before it are."""
        return 1.0 if self.forced else self.acceptance

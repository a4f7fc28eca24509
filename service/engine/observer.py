"""What the engine tells whoever watches it. It imports no metrics library; `service.metrics` is one
observer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from service.engine.sequence import SequenceStats


@dataclass(frozen=True, slots=True)
class StepStats:
    """The engine after a step. Counts marked "ever" only grow."""

    duration_s: float
    num_rows: int  # rows of the forward pass
    num_cache_queries: int  # ever: prompt blocks looked up in the prefix cache
    num_cache_hits: int  # ever
    num_drafted: int  # ever
    num_accepted: int  # ever
    num_preemptions: int  # ever


class Observer(Protocol):
    """Called on the engine thread; must be quick and must not raise."""

    def on_start(self, queue_s: float) -> None:
        """A sequence was admitted for the first time after waiting so long."""

    def on_tokens(self, count: int, since_s: float, is_first: bool) -> None:
        """A sequence got tokens, so long after its last ones, or after its arrival when these are its
        first.
        """

    def on_finish(self, stats: SequenceStats) -> None:
        """A sequence ended, for whatever reason."""

    def on_step(self, stats: StepStats) -> None:
        """A step ended."""


class NullObserver:
    """Watches nothing."""

    def on_start(self, queue_s: float) -> None:
        """See `Observer`."""

    def on_tokens(self, count: int, since_s: float, is_first: bool) -> None:
        """See `Observer`."""

    def on_finish(self, stats: SequenceStats) -> None:
        """See `Observer`."""

    def on_step(self, stats: StepStats) -> None:
        """See `Observer`."""

"""What the engine tells whoever watches it. No metrics library here; `service.metrics` is one observer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from service.engine.batch import Batch
from service.engine.scheduler import Scheduler
from service.engine.sequence import Sequence, SequenceStats


@dataclass(frozen=True, slots=True)
class StepStats:
    """The engine after a step. Counts marked "ever" only grow."""

    duration_s: float
    num_rows: int  # rows of the forward pass
    num_cache_queries: int  # ever: prompt blocks looked up in the prefix cache
    num_cache_hits: int  # ever
    num_drafted: int  # ever
    num_accepted: int  # ever
    num_model_drafted: int  # ever: of those, by a draft model
    num_model_accepted: int  # ever
    num_preemptions: int  # ever


class Observer(Protocol):
    """Called on the engine thread; must be quick and must not raise."""

    def on_start(self, queue_s: float) -> None:
        """A sequence was admitted for the first time after waiting so long."""

    def on_tokens(self, count: int, since_s: float, is_first: bool) -> None:
        """A sequence got tokens, so long after its last ones; after its arrival, if these are its first."""

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


class Reporter:
    """Keeps the times of the sequences, and tells an observer what happens to them.

    Args:
        scheduler: whose counts are told after each step.
        clock: the engine's.
    """

    def __init__(self, scheduler: Scheduler, clock: Callable[[], float]) -> None:
        self.observer: Observer = NullObserver()
        self._scheduler = scheduler
        self._clock = clock

    def scheduled(self, now: float) -> None:
        """A step was scheduled: some sequences run for the first time."""
        for sequence in self._scheduler.started:
            self.observer.on_start(now - sequence.arrived_at)

    def said(self, sequence: Sequence, num_tokens: int, now: float) -> None:
        """A sequence got tokens."""
        last = sequence.last_token_at
        since_s = now - (sequence.arrived_at if last is None else last)
        self.observer.on_tokens(num_tokens, since_s, is_first=last is None)
        sequence.first_token_at = now if last is None else sequence.first_token_at
        sequence.last_token_at = now

    def finished(self, sequence: Sequence, num_tokens: int | None = None) -> SequenceStats:
        """A sequence ended: its account, which the observer gets, too.

        Args:
            sequence: which one.
            num_tokens: how many tokens it gave, where these are not its own output.
        """
        now = self._clock()
        started = now if sequence.started_at is None else sequence.started_at
        first = now if sequence.first_token_at is None else sequence.first_token_at
        stats = SequenceStats(
            key=sequence.job.salt,
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_output_tokens=sequence.num_output_tokens if num_tokens is None else num_tokens,
            num_cached_tokens=sequence.num_cached_tokens,
            queue_s=started - sequence.arrived_at,
            prefill_s=first - started,
        )
        self.observer.on_finish(stats)
        return stats

    def stepped(self, batch: Batch, duration_s: float) -> None:
        """A step ended well."""
        scheduler, speculator = self._scheduler, self._scheduler.speculator
        self.observer.on_step(
            StepStats(
                duration_s=duration_s,
                num_rows=batch.num_rows,
                num_cache_queries=scheduler.prefix_cache.num_queries,
                num_cache_hits=scheduler.prefix_cache.num_hits,
                num_drafted=speculator.num_drafted if speculator else 0,
                num_accepted=speculator.num_accepted if speculator else 0,
                num_model_drafted=speculator.num_model_drafted if speculator else 0,
                num_model_accepted=speculator.num_model_accepted if speculator else 0,
                num_preemptions=scheduler.num_preemptions,
            )
        )

"""What constraints allow is asked for on a thread of its own, while the forward pass runs.

A constraint is a function of the text, which is known before the logits are. So it costs a step only the time
by which it takes longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

from service.engine.model.logits_processors import SampleRow


class Asking:
    """Asks for the rows of one step after the other."""

    def begin(self, rows: Sequence[SampleRow], on_progress: Callable[[], None]) -> Future[None] | None:
        """Begin to ask for those rows that have a constraint; None where none has.

        Args:
            rows: of which each gets its `allowed` and `asked_s`.
            on_progress: called after each.
        """
        bound = [row for row in rows if row.params.allowed_next is not None]
        return self._thread.submit(_ask, bound, on_progress) if bound else None

    @cached_property
    def _thread(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(max_workers=1, thread_name_prefix="constraints")


def wait_for(asked: Future[None] | None, rows: Sequence[SampleRow]) -> None:
    """Wait until all rows have been asked for, and leave in `asked_s` each one's share of the wait."""
    if asked is None:
        return
    started = time.monotonic()
    asked.result()
    waited_s, total_s = time.monotonic() - started, sum(row.asked_s for row in rows)
    for row in rows:
        row.asked_s *= min(waited_s / max(total_s, 1e-9), 1.0)


def _ask(rows: Sequence[SampleRow], on_progress: Callable[[], None]) -> None:
    for row in rows:
        started = time.monotonic()
        row.ask()
        row.asked_s = time.monotonic() - started
        on_progress()

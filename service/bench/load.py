"""Many requests: as fast as N clients go (closed loop), or at a rate whatever the server does (open loop)."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from service.bench.client import Sample
from service.bench.prompts import Ask

AskOnce = Callable[[Ask], Awaitable[Sample]]


@dataclass(slots=True)
class Run:
    """A run while it goes on and after: samples, and the times it began and ended."""

    samples: list[Sample] = field(default_factory=list)
    num_in_flight: int = 0
    began_at: float = field(default_factory=time.monotonic)
    ended_at: float = 0.0

    async def track(self, work: Awaitable[Sample]) -> None:
        """Await one request and keep its sample."""
        self.num_in_flight += 1
        try:
            self.samples.append(await work)
        finally:
            self.num_in_flight -= 1


async def closed_loop(
    run: Run, ask_once: AskOnce, asks: Iterator[Ask], num_clients: int, num_requests: int, duration_s: float
) -> None:
    """Let clients ask one after another, until enough was asked or the time is over.

    Args:
        run: is filled.
        ask_once: makes one request.
        asks: what is asked, in order.
        num_clients: at the same time.
        num_requests: in all.
        duration_s: no request begins later; those that run are waited for.
    """
    left = iter(range(num_requests))
    run.began_at = time.monotonic()

    async def one_client() -> None:
        for _ in left:
            if time.monotonic() - run.began_at > duration_s:
                return
            await run.track(ask_once(next(asks)))

    await asyncio.gather(*(one_client() for _ in range(num_clients)))
    run.ended_at = time.monotonic()


async def open_loop(
    run: Run, ask_once: AskOnce, asks: Iterator[Ask], rate: float, duration_s: float, seed: int
) -> None:
    """Ask at random moments (a Poisson process), whether or not earlier requests have been answered.

    Args:
        run: is filled.
        ask_once: makes one request.
        asks: what is asked, in order.
        rate: requests a second on average.
        duration_s: for so long; those that run are waited for.
        seed: of the moments.
    """
    draw = random.Random(seed)
    run.began_at = due = time.monotonic()
    async with asyncio.TaskGroup() as group:
        while (due := due + draw.expovariate(rate)) < run.began_at + duration_s:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            group.create_task(run.track(ask_once(next(asks))))
    run.ended_at = time.monotonic()

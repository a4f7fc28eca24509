"""Nothing vanishes: requests that come in are counted out, and what they held is given back."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

from service.bench.chaos.check import Check, at_most, equal, nothing
from service.bench.chaos.server import ChaosOptions, Server, imbalance, leftovers
from service.bench.chaos.traffic import Traffic, run_errand
from service.bench.server_view import total
from service.bench.wire import make_client

_NUM_CLIENTS = 32
_NUM_FIRST = 1000
_SCRAPE_EVERY_S = 0.1


async def conservation(options: ChaosOptions) -> list[Check]:
    """Mixed requests on every endpoint with disconnects, deadlines and refusals, watched all along.

    Memory and file descriptors after the first 1,000 requests are compared with those after all.
    """
    seen: Counter[str] = Counter()
    async with Server(options, {"REQUEST_TIMEOUT_S": "60"}, "conservation") as server:
        traffic = Traffic(options.seed)
        imbalances: list[float] = []
        watcher = asyncio.create_task(_watch(server, imbalances))
        began_at = time.monotonic()
        try:
            await _send(server, traffic, _NUM_FIRST, seen)
            first = await _at_rest(server)
            await _send(server, traffic, options.num_requests - _NUM_FIRST, seen)
            last = await _at_rest(server)
        finally:
            watcher.cancel()
        seconds = time.monotonic() - began_at
        final = await server.metrics()
        kinds = ", ".join(f"{name[:60]} {count}" for name, count in seen.most_common(14))
        return [
            Check("requests", f"{seen.total()} in {seconds:.0f} s: {kinds}", "all endpoints", True),
            nothing("answers outside the contract", {k: n for k, n in seen.items() if k.startswith("bad")}),
            Check(
                "received = finished + in flight",
                f"off by {max(map(abs, imbalances))} in {len(imbalances)} scrapes",
                "0 at every scrape",
                bool(imbalances) and not any(imbalances),
            ),
            equal(
                "received at the end", total(final, "textgen_requests_received_total") <= seen.total(), True
            ),
            nothing("left over at the end", {k: v for k, v in leftovers(final).items() if v}),
            nothing("internal errors", total(final, "textgen_requests_finished_total", outcome="internal")),
            nothing("exceptions in the log", server.log_faults()),
            at_most("file descriptors more than after 1,000", last[1] - first[1], 0),
            at_most("memory more than after 1,000", 100 * (last[0] / max(first[0], 1) - 1), 5, " %"),
        ]


async def _send(server: Server, traffic: Traffic, number: int, seen: Counter[str]) -> None:
    """Let some clients send so many errands; their connections are closed afterwards."""
    left = iter(range(number))
    async with make_client() as client:

        async def one_client() -> None:
            for _ in left:
                await run_errand(client, server.url, traffic.errand(), seen)

        await asyncio.gather(*(one_client() for _ in range(_NUM_CLIENTS)))


async def _at_rest(server: Server) -> tuple[int, int]:
    """Resident bytes and descriptors once nothing is in flight and closed sockets have been noticed."""
    await server.seconds_until_idle()
    await asyncio.sleep(1.0)
    return server.rss_bytes(), server.num_descriptors()


async def _watch(server: Server, imbalances: list[float]) -> None:
    while True:
        series = await server.metrics()
        if series:
            imbalances.append(imbalance(series))
        await asyncio.sleep(_SCRAPE_EVERY_S)

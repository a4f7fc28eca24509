"""Ten times too much: what cannot be served is refused at once, what is accepted runs as fast as ever."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from statistics import fmean

from service.bench.chaos.check import Check, at_least, at_most, nothing
from service.bench.chaos.server import ChaosOptions, Server
from service.bench.client import Sample, ask_once
from service.bench.dialect import Dialect
from service.bench.load import AskOnce, Run, closed_loop, open_loop
from service.bench.prompts import Ask, Shape, generated
from service.bench.server_view import total
from service.bench.summary import percentile

_MAX_WAITING = 64
_MAX_RUNNING = 32
_N = 16  # samples of a request: ten times the capacity is then a rate that one client process can send
_NEW_TOKENS = 64
_TIMES = 10
_ROUNDS = 2  # a machine that others use too is slower now and then
_LIVES = 2  # of a request: a load lasts as long at least, so that no single wave is measured
_TOKENS = _N * _NEW_TOKENS  # of a request
_TIMEOUT_S = 20.0
_PROBE_EVERY_S = 0.05
_SCRAPE_EVERY = 8  # probes


async def overload(options: ChaosOptions) -> list[Check]:
    """A closed loop measures the capacity, an open one asks ten times as much at random moments; in turns."""
    settings = {"MAX_WAITING": str(_MAX_WAITING), "MAX_RUNNING": str(_MAX_RUNNING)}
    async with Server(options, settings, "overload") as server:
        rate = await _closed(server, options, 2.0) / _TOKENS
        seconds = max(options.seconds, _LIVES * _MAX_RUNNING / _N / rate)
        run, probe = Run(), _Probe(server)
        best, reached = [await _closed(server, options, seconds)], list[float]()
        for _ in range(_ROUNDS):
            reached.append(await _open(server, options, _TIMES * best[-1] / _TOKENS, seconds, run, probe))
            best.append(await _closed(server, options, seconds))
        capacity = f"{fmean(best):.0f} tokens/s, {fmean(best) / _TOKENS:.1f} requests/s"
        return [
            Check("capacity", capacity, "measured", True),
            *_refusal_checks(run.samples),
            at_most("sequences running and waiting", probe.max_in_flight, _MAX_RUNNING + _MAX_WAITING),
            at_least("throughput against the best", 100 * fmean(reached) / fmean(best), 90, " %"),
            at_most("/livez at its slowest", 1000 * max(probe.livez_s, default=9.9), 100, " ms"),
            nothing("exceptions in the log", server.log_faults()),
        ]


def _refusal_checks(samples: list[Sample]) -> list[Check]:
    refused = [sample for sample in samples if sample.status == 429]
    times = sorted(sample.e2e_s for sample in refused)
    waits = Counter(sample.retry_after for sample in refused)
    bad_waits = {w: count for w, count in waits.items() if not (w.isdigit() and 1 <= int(w) <= 600)}
    strange = Counter(
        f"{s.status} {s.error}"
        for s in samples
        if not (s.is_ok or s.status in (429, 504) or s.error == "deadline_exceeded")
    )
    late = sorted(s.e2e_s for s in samples if s.status == 200)
    return [
        Check("requests", f"{len(samples)}, {len(refused)} refused", "most are refused", bool(refused)),
        nothing("answers other than 200, 429 and 504", dict(strange)),
        at_most("429 takes, p99", 1000 * percentile(times or [9.9], 99), 50, " ms"),
        nothing("429 without a whole number of seconds in Retry-After", bad_waits),
        at_most("the longest accepted request", late[-1] if late else 999.0, _TIMEOUT_S + 1, " s"),
    ]


async def _closed(server: Server, options: ChaosOptions, seconds: float) -> float:
    """Tokens/s with the batch always full; what still runs at the end is left."""
    clients = (_MAX_RUNNING + _MAX_WAITING) // _N  # as many in flight as when more are refused
    load = asyncio.create_task(closed_loop(Run(), *_asking(server, options), clients, 10**9, seconds))
    async with _Probe(server).looking():  # costs as much as under overload
        tokens_per_s = await _measured(server, seconds)
    load.cancel()
    await asyncio.wait({load})
    await server.seconds_until_idle()
    return tokens_per_s


async def _open(
    server: Server, options: ChaosOptions, rate: float, seconds: float, run: Run, probe: _Probe
) -> float:
    """Tokens/s under that many requests/s, all of which are waited for."""
    load = asyncio.create_task(open_loop(run, *_asking(server, options), rate, seconds, options.seed))
    async with probe.looking():
        tokens_per_s = await _measured(server, seconds)
        await load
    await server.seconds_until_idle()
    return tokens_per_s


async def _measured(server: Server, seconds: float) -> float:
    """Tokens/s by the server's own count over the middle of a load, where it is at its full."""
    await asyncio.sleep(seconds * 0.2)
    began_at, before = time.monotonic(), await server.metrics()
    await asyncio.sleep(seconds * 0.7)
    ended_at, after = time.monotonic(), await server.metrics()
    name = "textgen_generation_tokens_total"
    return (total(after, name) - total(before, name)) / (ended_at - began_at)


def _asking(server: Server, options: ChaosOptions) -> tuple[AskOnce, Iterator[Ask]]:
    dialect = Dialect(f"{server.url}/generate", is_native=True, extra={"timeout_s": _TIMEOUT_S, "n": _N})

    async def ask(one: Ask) -> Sample:
        return await ask_once(server.client, dialect, one, 2 * _TIMEOUT_S)

    return ask, generated([Shape(12, _NEW_TOKENS)], options.seed)


class _Probe:
    """Asks for life signs and the number of sequences while a load runs."""

    def __init__(self, server: Server) -> None:
        self.livez_s: list[float] = []
        self.max_in_flight = 0.0
        self._server = server

    @asynccontextmanager
    async def looking(self) -> AsyncIterator[None]:
        """Look, as long as it is entered; a last answer is waited for, and whatever fails is raised."""
        is_over = asyncio.Event()
        watcher = asyncio.create_task(self._look(is_over))
        try:
            yield
        finally:
            is_over.set()
            await watcher

    async def _look(self, is_over: asyncio.Event) -> None:
        count = 0
        while not is_over.is_set():
            began_at = time.monotonic()
            response = await self._server.client.get(f"{self._server.url}/livez")
            took_s = time.monotonic() - began_at
            self.livez_s.append(took_s if response.status_code == 200 else 9.9)
            if count % _SCRAPE_EVERY == 0:  # a scrape is work for the server: not twenty times a second
                levels = await self._server.metrics()
                here = sum(total(levels, f"textgen_requests_{where}") for where in ("running", "waiting"))
                self.max_in_flight = max(self.max_in_flight, here)
            count += 1
            await asyncio.sleep(_PROBE_EVERY_S)

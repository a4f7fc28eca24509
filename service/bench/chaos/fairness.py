"""Keys: only those that are known, none can starve another, none appears in the log."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from itertools import count

from service.bench.chaos.check import Check, at_most, equal, nothing
from service.bench.chaos.server import ChaosOptions, Server
from service.bench.client import Sample, ask_once
from service.bench.dialect import Dialect
from service.bench.load import Run, closed_loop
from service.bench.prompts import Ask, Shape, generated
from service.bench.summary import percentile
from service.bench.wire import make_client

_GREEDY, _MODEST = "key-of-the-greedy-one-1f0c", "key-of-the-modest-one-92ab"
_NUM_GREEDY = 150
_SETTINGS = {"API_KEYS": f"{_GREEDY},{_MODEST}", "MAX_RUNNING": "16", "MAX_WAITING": "100"}
_LIMIT = 4


async def fairness(options: ChaosOptions) -> list[Check]:
    """One key floods the service with 150 clients, another has one client; then a limit for each key."""
    async with Server(options, _SETTINGS, "fairness") as server:
        stranger = (await server.client.post(f"{server.url}/generate", json={"prompt": "a"})).status_code
        alone = Run()
        await _ask(server, options, _MODEST, alone, 1, 8)
        flood, modest = Run(), Run()
        flooding = asyncio.create_task(_ask(server, options, _GREEDY, flood, _NUM_GREEDY, 10**9, 8.0))
        await asyncio.sleep(1.5)
        await _ask(server, options, _MODEST, modest, 1, 12, 10.0)
        await flooding
        log = server.log()
        checks = [
            equal("without a key", stranger, 401),
            *_compare(alone.samples, modest.samples, flood.samples),
            nothing("keys in the log", [key for key in (_GREEDY, _MODEST) if key in log]),
        ]
    return checks + await _limited(options)


def _compare(alone: list[Sample], modest: list[Sample], flood: list[Sample]) -> list[Check]:
    refused = [f"{sample.status} {sample.error}" for sample in modest if not sample.is_ok]
    waits = [_median_ms(samples) for samples in (alone, modest, flood)]
    story = "alone {:.0f} ms, beside the flood {:.0f} ms, the flood itself {:.0f} ms".format(*waits)
    return [
        nothing("refusals of the modest key beside the flood", Counter(refused)),
        Check("time to first token, p50", story, "below half of the flood's", waits[1] < waits[2] / 2),
    ]


def _median_ms(samples: list[Sample]) -> float:
    times = sorted(s.ttft_s for s in samples if s.ttft_s is not None)
    return percentile(times, 50) * 1000 if times else 1e9


async def _limited(options: ChaosOptions) -> list[Check]:
    settings = _SETTINGS | {"KEY_CONCURRENCY": str(_LIMIT)}
    async with Server(options, settings, "fairness-limit") as server:
        flood, modest = Run(), Run()
        flooding = asyncio.create_task(_ask(server, options, _GREEDY, flood, 32, 200, 5.0))
        await _ask(server, options, _MODEST, modest, _LIMIT, 24, 5.0)
        await flooding
        statuses = Counter(sample.status for sample in flood.samples)
        highest = _max_at_once([sample for sample in flood.samples if sample.status == 200])
        return [
            nothing(
                "key limit: refusals of who keeps it", Counter(s.error for s in modest.samples if s.error)
            ),
            Check("key limit: the flood's answers", str(dict(statuses)), "some 429", statuses[429] > 0),
            at_most("key limit: served at once to one key", highest, _LIMIT),
        ]


def _max_at_once(samples: list[Sample]) -> int:
    """Most requests between first token and end at the same time: all of them were certainly admitted."""
    moves = sorted(
        move for s in samples if s.token_times for move in ((s.token_times[0], 1), (s.token_times[-1], -1))
    )
    running = highest = 0
    for _, step in moves:
        running += step
        highest = max(highest, running)
    return highest


async def _ask(
    server: Server,
    options: ChaosOptions,
    key: str,
    run: Run,
    clients: int,
    requests: int,
    seconds: float = 30.0,
) -> None:
    """A closed loop under one key."""
    dialect = Dialect(f"{server.url}/generate", is_native=True)
    asks: Iterator[Ask] = generated([Shape(12, 32)], options.seed + next(_RUNS))
    async with make_client({"Authorization": f"Bearer {key}"}) as client:

        async def ask(one: Ask) -> Sample:
            sample = await ask_once(client, dialect, one, 60.0)
            if sample.status == 429:
                await asyncio.sleep(0.05)
            return sample

        await closed_loop(run, ask, asks, clients, requests, seconds)


_RUNS = count()

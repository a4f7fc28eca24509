"""Runs what was planned: each load in turn, with progress on stderr, and the metrics before and after.

Prints nothing else; `cli` shows what it returns.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import httpx

from service.bench.client import Sample, ask_once
from service.bench.dialect import Dialect
from service.bench.load import Run, closed_loop, open_loop
from service.bench.prompts import Ask, Shape, choose_prompts
from service.bench.server_view import scrape, view
from service.bench.summary import Objective, Summary, summarize
from service.bench.wire import make_client

_PROGRESS_EVERY_S = 2.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: a dialect, what to ask, and the loads one after another."""

    dialect: Dialect
    shapes: list[Shape]
    prompts: Path | None
    shared_words: int
    seed: int
    clients: list[int]
    rates: list[float]
    requests: int
    duration_s: float
    timeout_s: float
    objective: Objective
    api_key: str


def run_async(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on uvloop where it is installed: the client is to cost little."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


async def measure(plan: Plan) -> list[Summary]:
    """Run every load of a plan.

    Raises:
        httpx.HTTPError: the server does not answer at all.
    """
    headers = {"Authorization": f"Bearer {plan.api_key}"} if plan.api_key else None
    async with make_client(headers) as client:
        dialect = await _with_model(client, plan.dialect)
        asks = choose_prompts(plan.prompts, plan.shapes, plan.seed, plan.shared_words)
        summaries = []
        for number in plan.clients or plan.rates:
            summaries += await _one_load(plan, client, dialect, asks, number)
    return summaries


async def _with_model(client: httpx.AsyncClient, dialect: Dialect) -> Dialect:
    """Ask the server which model it serves, where its dialect wants it named."""
    if dialect.is_native or dialect.model:
        return dialect
    response = await client.get(dialect.url.removesuffix("/completions") + "/models")
    if response.status_code != 200:
        return dialect
    listed = response.json().get("data") or [{}]
    return replace(dialect, model=str(listed[0].get("id", "")))


async def _one_load(
    plan: Plan, client: httpx.AsyncClient, dialect: Dialect, asks: Iterator[Ask], number: float
) -> list[Summary]:
    run = Run()

    async def ask(one: Ask) -> Sample:
        return await ask_once(client, dialect, one, plan.timeout_s)

    await ask(next(asks))  # connections, caches and compilers are warm after it
    before = await scrape(client, dialect.url)
    progress = asyncio.create_task(_show_progress(run, number, "/s" if plan.rates else " clients"))
    try:
        if plan.rates:
            await open_loop(run, ask, asks, number, plan.duration_s, plan.seed)
        else:
            num_requests = plan.requests or 5 * int(number)
            await closed_loop(run, ask, asks, int(number), num_requests, plan.duration_s)
    finally:
        progress.cancel()
        with suppress(asyncio.CancelledError):
            await progress
    after = await scrape(client, dialect.url)
    return _summaries(plan, run, number, dict(view(before, after, run.ended_at - run.began_at)))


def _summaries(plan: Plan, run: Run, number: float, server: dict[str, Any]) -> list[Summary]:
    """One over all requests, and one for each kind where there are several."""
    kinds = sorted({sample.kind for sample in run.samples})
    clients, rate = (None, number) if plan.rates else (int(number), None)
    duration_s = run.ended_at - run.began_at
    summaries = [summarize(run.samples, duration_s, plan.objective, clients, rate)]
    summaries[0] = replace(summaries[0], server=server)
    for kind in kinds if len(kinds) > 1 else []:
        samples = [sample for sample in run.samples if sample.kind == kind]
        summaries.append(summarize(samples, duration_s, plan.objective, clients, rate, kind))
    return summaries


async def _show_progress(run: Run, number: float, unit: str) -> None:
    """A line every other second while a load runs; on a terminal the same line again."""
    end = "\r" if sys.stderr.isatty() else "\n"
    while True:
        await asyncio.sleep(_PROGRESS_EVERY_S)
        done = len(run.samples)
        tokens = sum(sample.output_tokens for sample in run.samples)
        passed = time.monotonic() - run.began_at
        failed = sum(not sample.is_ok for sample in run.samples)
        line = f"{number:g}{unit}: {done} done, {run.num_in_flight} in flight, {failed} failed, "
        sys.stderr.write(f"{line}{tokens / passed:.0f} tokens/s, {passed:.0f} s {end}")
        sys.stderr.flush()

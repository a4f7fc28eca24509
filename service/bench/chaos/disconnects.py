"""Clients that leave disturb nobody: streams beside them keep their text, blocks come back at once."""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any

import httpx

from service.bench.chaos.check import Check, at_least, at_most, equal, nothing
from service.bench.chaos.server import ChaosOptions, Server
from service.bench.prompts import Shape, generated
from service.bench.wire import make_client

_NUM_STAYING = 8
_STORM_CLIENTS = 25  # at the same time
_BLOCKS_BACK_S = 1.0


async def disconnects(options: ChaosOptions) -> list[Check]:
    """Many clients leave at random points while eight stay; theirs must read as when they were alone."""
    async with Server(options, {}, "disconnects") as server:
        asks = generated([Shape(12, 1)], options.seed)
        bodies = [_body(next(asks).prompt, number) for number in range(_NUM_STAYING)]
        alone = [await _text(server.client, server.url, body) for body in bodies]
        storm = asyncio.create_task(_storm(server, options))
        rounds = await asyncio.gather(*(_repeat(server, body, storm) for body in bodies))
        num_left = await storm
        seconds = await server.seconds_until_idle()
        wrong = [
            f"stream {number}: {text[:80]!r} instead of {alone[number][:80]!r}"
            for number, texts in enumerate(rounds)
            for text in texts
            if text != alone[number]
        ]
        return [
            at_least("clients that left early", num_left, options.num_clients // 4),
            equal("streams compared with their text alone", sum(map(len, rounds)) >= _NUM_STAYING, True),
            nothing("streams whose text changed", f"{len(wrong)}, as {wrong[0]}" if wrong else ""),
            at_most("blocks back after the last client left", seconds, _BLOCKS_BACK_S, " s"),
            nothing("exceptions in the log", server.log_faults()),
        ]


def _body(prompt: str, number: int) -> bytes:
    """Every other one is sampled with a fixed seed, the others are greedy."""
    sampling = {"temperature": 0} if number % 2 else {"temperature": 1.0, "seed": number}
    fields = {"prompt": prompt, "max_new_tokens": 64, "ignore_eos": True, "stream": True, **sampling}
    return json.dumps(fields).encode()


async def _text(client: httpx.AsyncClient, url: str, body: bytes) -> str:
    """The whole text of a stream; its error in brackets if it ends with one."""
    response = await client.post(
        f"{url}/generate", content=body, headers={"Content-Type": "application/json"}
    )
    events = [event for event in response.text.split("\n\n") if event.startswith("event: ")]
    frames: list[dict[str, Any]] = [json.loads(event[event.index("data: ") + 6 :]) for event in events]
    broken = [frame for frame in frames if "error" in frame]
    return f"<{broken[0]}>" if broken else "".join(frame.get("text", "") for frame in frames)


async def _repeat(server: Server, body: bytes, storm: asyncio.Task[int]) -> list[str]:
    """Stream the same again and again while the storm lasts, at least once."""
    texts = [await _text(server.client, server.url, body)]
    while not storm.done():
        texts.append(await _text(server.client, server.url, body))
    return texts


async def _storm(server: Server, options: ChaosOptions) -> int:
    """Send the leaving clients; how many left before their answer was whole."""
    draw = random.Random(options.seed)
    asks = generated([Shape(5, 1), Shape(40, 1)], options.seed + 1)
    left = iter(range(options.num_clients))
    num_left = 0

    async def one_client(client: httpx.AsyncClient) -> None:
        nonlocal num_left
        for _ in left:
            fields = {"prompt": next(asks).prompt, "max_new_tokens": 64, "ignore_eos": True}
            fields |= {"stream": draw.random() < 0.7, "n": draw.choice([1, 1, 4])}
            has_left = await _leave(client, server.url, fields, draw.expovariate(10))
            num_left += has_left  # only now: other clients counted while this one waited

    async with make_client() as client:
        await asyncio.gather(*(one_client(client) for _ in range(_STORM_CLIENTS)))
    return num_left


async def _leave(client: httpx.AsyncClient, url: str, fields: dict[str, Any], after_s: float) -> bool:
    """Ask and go away after a while. Whether that was before the answer was whole."""
    began_at = time.monotonic()
    try:
        async with asyncio.timeout(after_s):
            await client.post(f"{url}/generate", json=fields)
    except TimeoutError:
        return True
    except httpx.HTTPError:
        return time.monotonic() - began_at < after_s
    return False

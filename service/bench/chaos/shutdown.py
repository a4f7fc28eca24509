"""The end is orderly: what runs finishes, what comes is refused, no stream is cut without a word."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping

import httpx

from service.bench.chaos.check import Check, at_most, equal, nothing
from service.bench.chaos.server import ChaosOptions, Server
from service.bench.chaos.traffic import judge_stream
from service.bench.prompts import Shape, generated
from service.bench.wire import make_client

_NUM_STREAMS = 32
_END_S = 40.0


async def shutdown(options: ChaosOptions) -> list[Check]:
    """SIGTERM during 32 streams: once, twice, and with too little time to drain."""
    return [
        *await _one_signal(options),
        *await _cut_short(options, {"DRAIN_S": "60"}, "a second SIGTERM", num_signals=2),
        *await _cut_short(options, {"DRAIN_S": "0"}, "the drain limit", num_signals=1),
    ]


async def _one_signal(options: ChaosOptions) -> list[Check]:
    async with Server(options, {"DRAIN_S": "60"}, "shutdown") as server:
        streams = await _start_streams(server, options)
        server.terminate()
        answers = await _ask_while_draining(server, streams)
        ends = Counter(await asyncio.gather(*streams))
        code = await server.exit_code(_END_S)
        refused = {key: count for key, count in answers.items() if key != "503 draining"}
        return [
            equal("SIGTERM: streams that finished", ends["stream done"], _NUM_STREAMS),
            nothing("SIGTERM: other ends of streams", {k: n for k, n in ends.items() if k != "stream done"}),
            Check(
                "SIGTERM: new requests",
                str(dict(answers)),
                "503 draining, all",
                bool(answers) and not refused,
            ),
            equal("SIGTERM: exit code", code, 0),
        ]


async def _cut_short(
    options: ChaosOptions, settings: Mapping[str, str], what: str, num_signals: int
) -> list[Check]:
    async with Server(options, settings, f"shutdown-{num_signals}") as server:
        streams = await _start_streams(server, options)
        began_at = time.monotonic()
        for _ in range(num_signals):
            server.terminate()
            await asyncio.sleep(0.02)  # two signals at the same moment would be one
        ends = Counter(await asyncio.gather(*streams))
        code = await server.exit_code(_END_S)
        cut = {key: count for key, count in ends.items() if key.startswith("bad")}
        return [
            nothing(f"{what}: streams cut without an error frame", cut),
            Check(f"{what}: ends of streams", str(dict(ends)), "done or error", True),
            at_most(f"{what}: the process ends within", time.monotonic() - began_at, 10, " s"),
            Check(f"{what}: exit code", str(code), "an exit", code is not None),
        ]


async def _start_streams(server: Server, options: ChaosOptions) -> list[asyncio.Task[str]]:
    """Streams that run as long as the model's window allows; returns when each has its first token."""
    asks = generated([Shape(3, 1)], options.seed)
    begun = [asyncio.Event() for _ in range(_NUM_STREAMS)]
    tasks = [asyncio.create_task(_stream(server.url, next(asks).prompt, event)) for event in begun]
    await asyncio.wait_for(asyncio.gather(*(event.wait() for event in begun)), 60)
    return tasks


async def _stream(url: str, prompt: str, begun: asyncio.Event) -> str:
    fields = {"prompt": prompt, "ignore_eos": True, "stream": True, "temperature": 0, "max_new_tokens": 100}
    pieces = []
    try:
        async with (
            make_client() as client,
            client.stream("POST", f"{url}/generate", json=fields) as response,
        ):
            async for data in response.aiter_raw():
                pieces.append(data)
                begun.set()
    except httpx.HTTPError as error:
        return f"bad: {type(error).__name__} after {len(pieces)} reads"
    finally:
        begun.set()
    return judge_stream("/generate", b"".join(pieces))


async def _ask_while_draining(server: Server, streams: list[asyncio.Task[str]]) -> Counter[str]:
    """New requests on new connections while at least one stream still runs."""
    answers: Counter[str] = Counter()
    await asyncio.sleep(0.05)
    while not all(stream.done() for stream in streams):
        try:
            async with make_client() as client:
                response = await client.post(f"{server.url}/generate", json={"prompt": "a"})
            code = json.loads(response.content).get("error", {}).get("code", "")
            has_wait = "retry-after" in response.headers
            answers[f"{response.status_code} {code}" + ("" if has_wait else " without Retry-After")] += 1
        except httpx.HTTPError as error:
            if not all(stream.done() for stream in streams):
                answers[type(error).__name__] += 1
        await asyncio.sleep(0.02)
    return answers

"""Slow, broken and malicious clients: the contract's error each time, soon, without echo, memory flat."""

from __future__ import annotations

import asyncio
import json
import socket
import time

from service.bench.chaos.attacks import ATTACKS, MARK, Attack
from service.bench.chaos.check import Check, at_most, nothing
from service.bench.chaos.raw import RawAnswer, exchange, post
from service.bench.chaos.server import ChaosOptions, Server

_SETTINGS = {"BODY_TIMEOUT_S": "2", "SEND_TIMEOUT_S": "2", "MAX_BODY_BYTES": "4M"}
_MEMORY_BYTES = 64 << 20
_NUM_SLOW_READERS = 4
_SLOW_READERS_S = 60.0


async def hostile(options: ChaosOptions) -> list[Check]:
    """Every attack in turn, then clients that never read, then a look at what it cost."""
    async with Server(options, _SETTINGS, "hostile") as server:
        await server.client.post(f"{server.url}/generate", json={"prompt": "a", "max_new_tokens": 4})
        before = server.rss_bytes()
        checks = [_judge(attack, await exchange(server.port, attack.pieces())) for attack in ATTACKS]
        checks += await _slow_readers(server)
        await server.seconds_until_idle()
        grown = server.rss_bytes() - before
        checks.append(at_most("memory it cost", grown / 2**20, _MEMORY_BYTES / 2**20, " MiB"))
        ready = (await server.client.get(f"{server.url}/readyz")).status_code
        checks.append(Check("ready afterwards", str(ready), "200", ready == 200))
        checks.append(nothing("the mark in the log", [MARK] if MARK in server.log() else []))
        checks.append(nothing("exceptions in the log", server.log_faults()))
        return checks


def _judge(attack: Attack, answer: RawAnswer) -> Check:
    is_wanted = any(answer.status == status and code in ("", answer.code) for status, code in attack.wanted)
    echo = ", the input was echoed" if MARK in answer.text else ""
    figure = f"{answer.status} {answer.code} after {answer.seconds * 1000:.0f} ms{echo}"
    if answer.num_sent > attack.max_bytes:
        figure += f" and {answer.num_sent / 2**20:.0f} MiB"
    target = " or ".join(f"{status} {code}".strip() for status, code in attack.wanted)
    is_soon = answer.seconds <= attack.within_s and answer.num_sent <= attack.max_bytes
    passed = is_wanted and is_soon and not echo
    return Check(attack.name, figure, f"{target} within {attack.within_s:g} s", passed)


async def _slow_readers(server: Server) -> list[Check]:
    """Clients that ask for a lot and read nothing: cut off, or done if all of it fitted the socket."""
    body = {"prompt": "a", "n": 16, "logprobs": 10, "ignore_eos": True, "stream": True}
    request = post("/generate", json.dumps(body).encode())
    # The same answers to clients that read come first: what is measured is the cost of not reading.
    url = f"{server.url}/generate"
    await asyncio.gather(*(server.client.post(url, json=body) for _ in range(_NUM_SLOW_READERS)))
    before = server.rss_bytes()
    sockets = [_deaf_socket(server.port, request) for _ in range(_NUM_SLOW_READERS)]
    began_at = time.monotonic()
    await asyncio.sleep(0.5)
    await server.seconds_until_idle(_SLOW_READERS_S)
    seconds, grown = time.monotonic() - began_at, server.rss_bytes() - before
    for deaf in sockets:
        deaf.close()
    return [
        at_most("readers that do not read: all over within", seconds, _SLOW_READERS_S, " s"),
        at_most("readers that do not read: memory each", grown / _NUM_SLOW_READERS / 2**20, 2, " MiB"),
    ]


def _deaf_socket(port: int, request: bytes) -> socket.socket:
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(("127.0.0.1", port))
    deaf.sendall(request)
    return deaf

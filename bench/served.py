"""What HTTP costs a small model, and what a flood of refusals costs those who are served.

    python bench/served.py FOLDER [--clients 64] [--rounds 3] [--flood 2000 10000]

The same requests (64 tokens each, drawn from nobody's cache) go to the bare engine, to a server, and to the
server while somebody without a key asks so many times a second, in turns. Clients only send and receive: what
they do more would be taken from the server's cores. Then what a refusal costs by itself, beside bare uvicorn
(`constant.py`). JSON last.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import statistics
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from children import end_with_parent
from engine import OUTPUT_TOKENS, random_prompts, requests_for, run
from front import free_port, processor_seconds, wait_until_ready

from model_store.architecture import read_architecture
from model_store.tokenizer import Tokenizer
from service.engine.config import EngineConfig
from service.engine.loader import build_engine

_KEY = "bench"
_AT_ONCE = 20  # refused requests under way at a time
_KEYLESS = (
    b"POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Length: 0\r\n\r\n"  # keeps its connection
)
_END = b"data: [DONE]"
_FAILED = b'{"error"'  # in a text, quotes are escaped


def request(body: dict[str, object]) -> bytes:
    """A request for a completion, as bytes."""
    text = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(text)}\r\n"
    return f"{head}Authorization: Bearer {_KEY}\r\nContent-Type: application/json\r\n\r\n".encode() + text


def bodies_of(prompts: list[tuple[int, ...]], first: int) -> list[bytes]:
    """Requests for streams behind these prompts; the first token keeps them out of each other's cache."""
    fields = {"max_tokens": OUTPUT_TOKENS, "temperature": 0, "ignore_eos": True, "stream": True}
    return [request({"prompt": [first, *prompt], **fields}) for prompt in prompts]


def served(port: int, requests: list[bytes], clients: int) -> float:
    """Tokens per second of streams, so many at a time until all have ended."""
    left, started = list(requests), time.perf_counter()
    with selectors.DefaultSelector() as waiting:
        for _ in range(clients):
            connection = socket.create_connection(("127.0.0.1", port))
            connection.sendall(left.pop())
            waiting.register(connection, selectors.EVENT_READ, bytearray())
        while waiting.get_map():
            for key, _ in waiting.select():
                connection, tail = key.fileobj, key.data
                assert isinstance(connection, socket.socket)
                received = connection.recv(1 << 16)
                text = tail + received
                if _END in text:
                    tail.clear()
                    if left:
                        connection.sendall(left.pop())
                    else:
                        waiting.unregister(connection)
                        connection.close()
                elif not received or _FAILED in text:
                    raise SystemExit(f"a stream ended badly: {bytes(text[-300:])!r}")
                else:
                    tail[:] = text[-len(_END) :]
    return len(requests) * OUTPUT_TOKENS / (time.perf_counter() - started)


def refused(connections: list[socket.socket]) -> int:
    """Ask once on each of these without a key, and read each answer to its end; how many were refused."""
    for connection in connections:
        connection.sendall(_KEYLESS)
    count = 0
    for connection in connections:
        answer = b""
        while not answer.endswith(b"}"):
            answer += (piece := connection.recv(1 << 12))
            if not piece:
                raise SystemExit(f"a refusal broke off: {answer!r}")
        count += answer.startswith(b"HTTP/1.1 401")
    return count


def refused_on_new_ones(port: int) -> int:
    """The same, each on a connection of its own."""
    with ExitStack() as stack:
        address = ("127.0.0.1", port)
        return refused([stack.enter_context(socket.create_connection(address)) for _ in range(_AT_ONCE)])


class Flood:
    """Asks without a key, so many times a second, from a thread of its own; how often it was refused."""

    def __init__(self, port: int, rate: int) -> None:
        self.num_refused = 0
        self._port, self._rate = port, rate
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Flood:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _ask(self) -> None:
        started = time.perf_counter()
        while not self._is_over.is_set():
            self.num_refused += refused_on_new_ones(self._port)
            self._is_over.wait(max(started + self.num_refused / self._rate - time.perf_counter(), 0))


def refusal_costs(servers: dict[str, tuple[int, int]], seconds: float = 2.0) -> dict[str, list[float]]:
    """Microseconds of the server's processor time for a refusal, and how many a second one client gets, with
    nothing else to do.

    Args:
        servers: name -> its port and process.
        seconds: of asking, for each figure.
    """
    costs = {}
    for name, (port, process) in servers.items():
        with ExitStack() as stack:
            address = ("127.0.0.1", port)
            kept = [stack.enter_context(socket.create_connection(address)) for _ in range(_AT_ONCE)]
            for how, ask in (
                ("kept connections", lambda kept=kept: refused(kept)),
                ("new connections", lambda port=port: refused_on_new_ones(port)),
            ):
                before = processor_seconds(lambda number, _, process=process: number == process)
                count, started = 0, time.perf_counter()
                while time.perf_counter() < started + seconds:
                    count += ask()
                taken = time.perf_counter() - started
                used = processor_seconds(lambda number, _, process=process: number == process) - before
                costs[f"{name}, {how}"] = [round(1e6 * used / count), round(count / taken)]
    return costs


def main() -> None:
    """Measure one checkpoint."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flood", type=int, nargs="*", default=[2000, 10000], help="refusals a second")
    given = parser.parse_args()
    port, constant_port = free_port(), free_port()
    vocab_size = read_architecture(given.folder).vocab_size
    environment = {**os.environ, "TEXTGEN_MODEL": str(given.folder), "TEXTGEN_API_KEYS": _KEY}
    python: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    python |= {"preexec_fn": end_with_parent, "env": {**environment, "TEXTGEN_SPECULATION": "0"}}
    server = subprocess.Popen([sys.executable, "-m", "service.cli", "serve", "--port", str(port)], **python)
    options = ["--app-dir", str(Path(__file__).parent), "--port", str(constant_port), "--no-access-log"]
    constant = subprocess.Popen([sys.executable, "-m", "uvicorn", "constant:app", *options], **python)
    try:
        engine = build_engine(EngineConfig(given.folder, speculation=False), Tokenizer.load(given.folder))
        wait_until_ready(port)
        shares: dict[str, list[float]] = {}
        for seed in range(given.rounds):
            prompts = random_prompts(3 * given.clients, vocab_size, seed)
            bare, _ = run(engine, requests_for(prompts, 0.0), given.clients)
            alone = served(port, bodies_of(prompts, 1), given.clients)
            shares.setdefault("served, of bare", []).append(alone / bare)
            print(f"bare {bare:.0f}, served {alone:.0f} tokens/s", flush=True)
            for rate in given.flood:
                bodies = bodies_of(prompts, 1 + rate % vocab_size)
                with Flood(port, rate) as flood:
                    started = time.perf_counter()
                    beside = served(port, bodies, given.clients)
                    reached = flood.num_refused / (time.perf_counter() - started)
                shares.setdefault(f"beside {rate} refusals/s, of served", []).append(beside / alone)
                print(f"served beside {reached:.0f} of {rate} refusals/s {beside:.0f} tokens/s", flush=True)
        both = {"textgen": (port, server.pid), "bare uvicorn": (constant_port, constant.pid)}
        costs = refusal_costs(both)
        for name, (microseconds, rate) in costs.items():
            print(f"a refusal of {name}: {microseconds:.0f} us, {rate:.0f} a second")
        medians = {name: round(statistics.median(each), 3) for name, each in shares.items()}
        print(json.dumps({**medians, "a refusal, us and a second": costs}))
    finally:
        for process in (server, constant):
            process.terminate()
            process.wait(60)


if __name__ == "__main__":
    main()

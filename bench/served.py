"""What HTTP costs a small model, and what a flood of refusals costs those who are served.

    python bench/served.py FOLDER [--clients 64] [--rounds 3] [--flood 2000 10000]

The same requests (64 tokens each, drawn from nobody's cache) go to the bare engine, to a server, and to the
server while somebody without a key asks so many times a second, in turns. Clients only send and receive: what
they do more would be taken from the server's cores. JSON last.
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
from pathlib import Path

from children import end_with_parent
from engine import OUTPUT_TOKENS, random_prompts, requests_for, run
from front import free_port, wait_until_ready

from model_store.architecture import read_architecture
from model_store.tokenizer import Tokenizer
from service.engine.config import EngineConfig
from service.engine.loader import build_engine

_KEY = "bench"
_AT_ONCE = 20  # refused requests under way at a time
_END = b"data: [DONE]"
_FAILED = b'{"error"'  # in a text, quotes are escaped


def request(body: dict[str, object], key: str = "") -> bytes:
    """A request for a completion, as bytes."""
    text = json.dumps(body).encode()
    bearer = f"Authorization: Bearer {key}\r\n" if key else ""
    head = f"POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(text)}\r\n{bearer}"
    return f"{head}Content-Type: application/json\r\n\r\n".encode() + text


def bodies_of(prompts: list[tuple[int, ...]], first: int) -> list[bytes]:
    """Requests for streams behind these prompts; the first token keeps them out of each other's cache."""
    fields = {"max_tokens": OUTPUT_TOKENS, "temperature": 0, "ignore_eos": True, "stream": True}
    return [request({"prompt": [first, *prompt], **fields}, _KEY) for prompt in prompts]


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
        asked = request({"prompt": "Hello", "max_tokens": 1})
        started = time.perf_counter()
        while not self._is_over.is_set():
            connections = [socket.create_connection(("127.0.0.1", self._port)) for _ in range(_AT_ONCE)]
            for connection in connections:
                connection.sendall(asked)
            for connection in connections:  # each is closed behind its refusal
                with connection:
                    self.num_refused += connection.recv(1 << 12).startswith(b"HTTP/1.1 401")
            self._is_over.wait(max(started + self.num_refused / self._rate - time.perf_counter(), 0))


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
    port, vocab_size = free_port(), read_architecture(given.folder).vocab_size
    environment = {**os.environ, "TEXTGEN_MODEL": str(given.folder), "TEXTGEN_API_KEYS": _KEY}
    server = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "serve", "--port", str(port)],
        env={**environment, "TEXTGEN_SPECULATION": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=end_with_parent,
    )
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
        print(json.dumps({name: round(statistics.median(each), 3) for name, each in shares.items()}))
    finally:
        server.terminate()
        server.wait(60)


if __name__ == "__main__":
    main()

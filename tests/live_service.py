"""A real service on a loopback socket, in a thread, and ways to talk to it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from model_store.tokenizer import Tokenizer
from service.api.state import ServiceState
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.loader import build_engine
from service.engine_setup import Opening
from service.server import Server, make_server
from service.settings import Settings

WAIT_S = 90.0
COLD_START_S = 300.0  # a first start compiles kernels, perhaps on a busy machine


def expect(is_true: Callable[[], object], what: str = "the condition", limit_s: float = WAIT_S) -> None:
    """Poll until something holds; fail when it does not in time."""
    end = time.monotonic() + limit_s
    while not is_true():
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not come true within {limit_s:g} s")
        threading.Event().wait(0.005)


class Live:
    """A running service and ways to talk to it."""

    def __init__(self, server: Server, thread: threading.Thread) -> None:
        self.server, self.thread = server, thread
        self.state: ServiceState = server.life.state
        expect(lambda: server.started or not thread.is_alive(), "the listener")
        self.port: int = server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=WAIT_S)

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return self.http.post(path, json=body, **options)

    def raw(self, data: bytes) -> bytes:
        """Send bytes, read until the server closes."""
        with self.connect() as sock:
            sock.sendall(data)
            return read_all(sock)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples that carry these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        lines = self.http.get("/metrics").text.splitlines()
        found = [
            line for line in lines if line.startswith(name + "{") and all(part in line for part in wanted)
        ]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    def num_sequences(self) -> int:
        """Sequences in the engine."""
        assert self.state.served is not None
        return self.state.served.engine.num_in_flight  # type: ignore[attr-defined]

    def stop(self) -> None:
        self.http.close()
        self.server.should_exit = True
        self.thread.join(WAIT_S)


class Stuck:
    """An engine whose steps wait until it is let go."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.gate = threading.Event()

    def make(self) -> Engine:
        engine = build_engine(EngineConfig(self._folder, num_threads=1), Tokenizer.load(self._folder))
        execute = engine.runner.execute

        def wait(batch: Any) -> Any:
            assert self.gate.wait(WAIT_S)
            return execute(batch)

        engine.runner = type("Runner", (), {"execute": staticmethod(wait)})()
        return engine


def read_all(sock: socket.socket) -> bytes:
    """Bytes until the other side closes."""
    found = b""
    try:
        while piece := sock.recv(65536):
            found += piece
    except ConnectionResetError:
        return found
    return found


def events(text: str) -> list[tuple[str, Any]]:
    """Native frames as (type, data)."""
    found = []
    for part in text.split("\n\n")[:-1]:
        if part.startswith(":"):
            continue
        kind, data = part.split("\n")
        assert kind.startswith("event: ") and data.startswith("data: ")
        found.append((kind[7:], json.loads(data[6:])))
    return found


@contextmanager
def running(
    settings: Settings, engine: Any = None, is_ready: bool = True, loop: Any = "auto"
) -> Iterator[Live]:
    """Run a service in a thread until the block ends, on one of uvicorn's event loops."""
    server = make_server(settings, Opening(settings, engine))
    server.config.loop = loop
    thread = threading.Thread(target=server.run, name="server")
    thread.start()
    live = Live(server, thread)
    try:
        if is_ready:
            expect(lambda: live.http.get("/readyz").status_code == 200, "readiness", COLD_START_S)
        yield live
    finally:
        live.stop()

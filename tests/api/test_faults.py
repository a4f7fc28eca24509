"""Engine faults injected into a running service: who is told what, who goes on, and how the process ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live_service import Live, events, expect, read_all, running

from model_store.tokenizer import Tokenizer
from service.engine.async_engine import AsyncEngine
from service.engine.config import EngineConfig
from service.engine.engine import Engine
from service.engine.loader import build_engine
from service.server import make_server
from service.settings import Settings

LONG = {"prompt": "go on", "max_new_tokens": 240, "ignore_eos": True}


class Saboteur:
    """Stands before the real runner and fails when told to."""

    def __init__(self, folder: Path) -> None:
        self.error: BaseException | None = None
        self._folder = folder
        self.steps = 0

    def make(self) -> Engine:
        engine = build_engine(EngineConfig(self._folder, num_threads=1), Tokenizer.load(self._folder))
        execute = engine.runner.execute

        def sabotaged(batch: Any) -> Any:
            self.steps += 1
            error, self.error = self.error, None
            if error is not None:
                raise error
            return execute(batch)

        engine.runner = type("Runner", (), {"execute": staticmethod(sabotaged)})()
        return engine


@pytest.fixture
def saboteur(tiny_model: Path) -> Saboteur:
    return Saboteur(tiny_model)


@pytest.fixture
def sabotaged(serve: Callable[..., Live], saboteur: Saboteur) -> Live:
    return serve(AsyncEngine(saboteur.make))


def test_a_failing_step_is_an_internal_error_and_the_next_request_works(
    sabotaged: Live, saboteur: Saboteur
) -> None:
    saboteur.error = RuntimeError("canary in the trace")
    response = sabotaged.post("/generate", {"prompt": "a", "max_new_tokens": 2})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal")
    assert "canary" not in response.text
    assert sabotaged.post("/generate", {"prompt": "a", "max_new_tokens": 2}).status_code == 200


def test_a_failing_step_ends_its_streams_with_an_error_frame(sabotaged: Live, saboteur: Saboteur) -> None:
    with sabotaged.http.stream("POST", "/generate", json={**LONG, "stream": True}) as response:
        saboteur.error = RuntimeError("x")
        found = events(response.read().decode())
    assert found[-1][0] == "error" and found[-1][1]["error"]["code"] == "internal"


def test_a_dead_engine_thread_ends_streams_and_the_process(saboteur: Saboteur, tiny_model: Path) -> None:
    settings = Settings(model=str(tiny_model), port=0)
    with running(settings, AsyncEngine(saboteur.make)) as live:
        with live.http.stream("POST", "/generate", json={**LONG, "stream": True}) as response:
            saboteur.error = SystemExit("killed")
            found = events(response.read().decode())
        assert found[-1][0] == "error"
        expect(lambda: not live.thread.is_alive(), "the end of the server")
        assert live.server.exit_code == 1


def test_a_model_that_does_not_exist_ends_the_process_with_code_2() -> None:
    server = make_server(Settings(model="./nowhere", port=0))
    server.run()
    assert server.exit_code == 2


def test_a_drain_does_not_wait_for_a_body_that_does_not_come(tiny_model: Path) -> None:
    head = (
        "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    )
    with running(Settings(model=str(tiny_model), port=0, drain_s=0.0)) as live, live.connect() as sock:
        sock.sendall(head.encode())
        expect(lambda: live.state.in_flight, "the request")
        live.server._loop.call_soon_threadsafe(live.server._begin_drain, "SIGTERM")
        reply = read_all(sock)
    assert reply.startswith(b"HTTP/1.1 503 ") and b'"draining"' in reply


def test_a_drain_that_takes_too_long_ends_streams_with_an_error_frame(
    saboteur: Saboteur, tiny_model: Path
) -> None:
    settings = Settings(model=str(tiny_model), port=0, drain_s=0.0)
    with running(settings, AsyncEngine(saboteur.make)) as live:
        with live.http.stream("POST", "/generate", json={**LONG, "stream": True}) as response:
            live.server._loop.call_soon_threadsafe(live.server._begin_drain, "SIGTERM")
            found = events(response.read().decode())
        assert found[-1][0] == "error" and found[-1][1]["error"]["code"] == "draining"
        expect(lambda: not live.thread.is_alive(), "the end of the server")
        assert live.server.exit_code == 0


def test_running_streams_finish_while_newcomers_are_refused(saboteur: Saboteur, tiny_model: Path) -> None:
    settings = Settings(model=str(tiny_model), port=0)
    ends: list[str] = []
    with running(settings, AsyncEngine(saboteur.make)) as live:

        def read() -> None:
            ends.append(events(live.post("/generate", {**LONG, "n": 4, "stream": True}).text)[-1][0])

        readers = [threading.Thread(target=read) for _ in range(4)]
        for reader in readers:
            reader.start()
        expect(
            lambda: [fail.__self__.client.status for fail in tuple(live.state.in_flight)] == [200] * 4,
            "the streams to start",
        )
        live.server._loop.call_soon_threadsafe(live.server._begin_drain, "SIGTERM")
        expect(lambda: live.state.is_draining, "the drain")
        assert live.post("/generate", {"prompt": "a"}).json()["error"]["code"] == "draining"
        for reader in readers:
            reader.join(30)
    assert ends == ["done"] * 4

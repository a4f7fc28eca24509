"""Keys: who may ask, how much at once, and what the log keeps to itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live_service import WAIT_S, Live, Stuck, expect

from service.engine.async_engine import AsyncEngine

KEYS = {"api_keys": ("first-key", "second-key"), "key_concurrency": 1}
FIRST = {"authorization": "Bearer first-key"}
ONE = {"prompt": "go on", "max_new_tokens": 1}


@pytest.fixture(scope="module")
def locked(serve: Callable[..., Live]) -> Live:
    return serve(**KEYS, ops_require_key=True)


@pytest.mark.parametrize(
    "value", [None, "Bearer wrong", "first-key", "Basic first-key", "Bearer", "Bearer é"]
)
def test_without_one_of_the_keys_nothing_is_served(locked: Live, value: str | None) -> None:
    headers = {} if value is None else {"authorization": value.encode()}
    response = locked.post("/generate", {"prompt": "a"}, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (401, "unauthorized")
    assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", ["first-key", "second-key"])
def test_each_key_is_served(locked: Live, key: str) -> None:
    headers = {"authorization": f"Bearer {key}"}
    assert locked.post("/generate", {"prompt": "a", "max_new_tokens": 1}, headers=headers).status_code == 200


@pytest.mark.parametrize("path", ["/metrics", "/info", "/docs", "/openapi.json", "/", "/tasks", "/v1/models"])
def test_operations_pages_can_be_locked(locked: Live, path: str) -> None:
    assert locked.http.get(path).status_code == 401
    assert locked.http.get(path, headers=FIRST).status_code == 200


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_probes_stay_open(locked: Live, path: str) -> None:
    assert locked.http.get(path).status_code == 200


@pytest.fixture
def stuck(tiny_model: Path) -> Iterator[Stuck]:
    engine = Stuck(tiny_model)
    yield engine
    engine.gate.set()


def ask_in_background(live: Live, key: str, count: int) -> list[threading.Thread]:
    """So many requests that stay in flight while the engine is stuck."""
    headers = {"authorization": f"Bearer {key}"}
    threads = [
        threading.Thread(target=live.post, args=("/generate", ONE), kwargs={"headers": headers})
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    return threads


def status_of(live: Live, key: str) -> int:
    """What one more request of a key is told at once."""
    body = {**ONE, "timeout_s": 0.05}
    return live.post("/generate", body, headers={"authorization": f"Bearer {key}"}).status_code


def test_a_key_has_only_so_many_requests_in_flight(serve: Callable[..., Live], stuck: Stuck) -> None:
    live = serve(AsyncEngine(stuck.make, hung_after_s=WAIT_S), **KEYS)
    busy = ask_in_background(live, "first-key", 1)
    expect(lambda: live.num_sequences() == 1, "the work to start")
    refused = live.post("/generate", ONE, headers=FIRST)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert status_of(live, "second-key") == 504  # admitted, and the engine is stuck
    stuck.gate.set()
    for thread in busy:
        thread.join()


@pytest.mark.parametrize(("keys", "told"), [(("first-key",), 504), (("first-key", "second-key"), 429)])
def test_a_key_has_three_quarters_of_the_queue_unless_it_is_alone(
    serve: Callable[..., Live], stuck: Stuck, keys: tuple[str, ...], told: int
) -> None:
    live = serve(AsyncEngine(stuck.make, 4, hung_after_s=WAIT_S), api_keys=keys)
    busy = ask_in_background(live, "first-key", 3)
    expect(lambda: live.num_sequences() == 3, "the work to start")
    assert status_of(live, "first-key") == told
    stuck.gate.set()
    for thread in busy:
        thread.join()


def test_the_log_has_one_line_for_a_request_and_neither_prompt_nor_key(
    locked: Live, log_lines: list[str]
) -> None:
    headers = {**FIRST, "x-request-id": "find-me"}
    locked.post("/generate", {"prompt": "canary", "max_new_tokens": 2, "ignore_eos": True}, headers=headers)

    def lines_of_request() -> list[str]:
        return [line for line in log_lines if "find-me" in line]

    expect(lambda: lines_of_request() != [], "the line, which follows the answer")
    [line] = lines_of_request()
    assert "outcome=ok" in line and "completion_tokens=2" in line
    assert not any("canary" in line or "first-key" in line for line in log_lines)

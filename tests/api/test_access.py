"""Keys: who may ask, how much at once, and what the log keeps to itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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


# ---- keys that change while the service runs ------------------------------------------------------------


def status_with(service: Live, key: str) -> int:
    return service.post("/generate", ONE, headers={"authorization": f"Bearer {key}"}).status_code


@pytest.fixture
def key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("service.api.key_file.POLL_S", 0.02)
    (tmp_path / "keys").write_text("#tenant=acme\nold\n")
    return tmp_path / "keys"


def test_a_key_file_that_changes_is_read_again(serve: Callable[..., Live], key_file: Path) -> None:
    service = serve(api_keys_file=key_file)
    assert (status_with(service, "old"), status_with(service, "new")) == (200, 401)
    key_file.write_text("#tenant=acme\nnew\n")
    expect(lambda: status_with(service, "new") == 200, "the new key")
    assert status_with(service, "old") == 401
    assert service.metric("textgen_tenant_requests_total", tenant="acme") >= 2


def test_a_key_file_that_another_takes_the_place_of_is_read_again(
    serve: Callable[..., Live], key_file: Path
) -> None:
    service = serve(api_keys_file=key_file)
    other = key_file.with_name("other")
    other.write_text("new\n")
    other.replace(key_file)
    expect(lambda: status_with(service, "new") == 200, "the new key")
    assert (status_with(service, "old"), status_with(service, "new")) == (401, 200)


@pytest.mark.parametrize("text", ["", "# none left\n", "#tenant=not legal\nold\n"])
def test_a_key_file_that_became_unusable_leaves_the_keys_as_they_were(
    serve: Callable[..., Live], key_file: Path, log_lines: list[str], text: str
) -> None:
    service = serve(api_keys_file=key_file)
    start = len(log_lines)
    key_file.write_text(text)
    expect(lambda: any("the keys stay as they were" in line for line in log_lines[start:]), "the line")
    assert (status_with(service, "old"), service.post("/generate", ONE).status_code) == (200, 401)


# ---- clients without keys -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "tenant"),
    [
        ({}, "@127.0.0.1"),
        ({"trusted_proxies": "127.0.0.0/8"}, "@198.51.100.7"),
        ({"trusted_proxies": "127.0.0.0/8", "api_keys": ("only",)}, ""),
    ],
)
def test_clients_without_keys_are_told_apart_by_address(
    serve: Callable[..., Live], stuck: Stuck, settings: dict[str, Any], tenant: str
) -> None:
    service = serve(AsyncEngine(stuck.make, hung_after_s=WAIT_S), **settings)
    headers = {"x-forwarded-for": "1.1.1.1, 198.51.100.7", "authorization": "Bearer only"}
    busy = threading.Thread(target=service.post, args=("/generate", ONE), kwargs={"headers": headers})
    busy.start()
    expect(lambda: service.num_sequences() == 1, "the work to start")
    (fail,) = service.state.in_flight
    assert fail.__self__.tenant == tenant  # type: ignore[attr-defined]  # a method of the exchange
    stuck.gate.set()
    busy.join()


# ---- pages of other origins -----------------------------------------------------------------------------

PREFLIGHT = {
    "origin": "https://a.example",
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


def test_a_preflight_is_answered_without_a_key(serve: Callable[..., Live]) -> None:
    service = serve(**KEYS, cors_origins="https://a.example,https://b.example")
    reply = service.http.options("/generate", headers=PREFLIGHT)
    assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, "https://a.example")
    refused = service.post("/generate", ONE, headers={"origin": "https://b.example"})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "https://b.example")
    stranger = service.http.options("/generate", headers={**PREFLIGHT, "origin": "https://c.example"})
    assert stranger.status_code == 400 and "access-control-allow-origin" not in stranger.headers
    assert service.metric("textgen_requests_received_total") == 1


def test_by_default_no_page_of_another_origin_may_call(live: Live) -> None:
    reply = live.post("/generate", ONE, headers={"origin": "https://a.example"})
    assert reply.status_code == 200 and "access-control-allow-origin" not in reply.headers

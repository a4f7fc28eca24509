"""Keys: who may ask, how much at once, and what the log keeps to itself."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from live_service import Live, expect

KEYS = {"api_keys": ("first-key", "second-key"), "key_concurrency": 1}
FIRST = {"authorization": "Bearer first-key"}
LONG = {"prompt": "go on", "max_new_tokens": 240, "ignore_eos": True, "n": 8}


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


def test_a_key_has_only_so_many_requests_in_flight(locked: Live) -> None:
    busy = threading.Thread(target=lambda: locked.post("/generate", LONG, headers=FIRST))
    busy.start()
    expect(lambda: locked.num_sequences() == 8, "the work to start")
    refused = locked.post("/generate", {"prompt": "a"}, headers=FIRST)
    other = {"authorization": "Bearer second-key"}
    served = locked.post("/generate", {"prompt": "a", "max_new_tokens": 1}, headers=other)
    busy.join()
    assert (refused.status_code, refused.headers["retry-after"], served.status_code) == (429, "1", 200)


def test_the_log_has_one_line_for_a_request_and_neither_prompt_nor_key(
    locked: Live, capfd: pytest.CaptureFixture[str]
) -> None:
    headers = {**FIRST, "x-request-id": "find-me"}
    locked.post("/generate", {"prompt": "canary", "max_new_tokens": 2, "ignore_eos": True}, headers=headers)
    printed: list[str] = []

    def lines_of_request() -> list[str]:
        captured = capfd.readouterr()
        printed.append(captured.out + captured.err)
        return [line for line in "".join(printed).splitlines() if "find-me" in line]

    expect(lambda: lines_of_request() != [], "the line, which follows the answer")
    lines = lines_of_request()
    assert len(lines) == 1 and "outcome=ok" in lines[0] and "completion_tokens=2" in lines[0]
    assert "canary" not in lines[0] and "first-key" not in lines[0]

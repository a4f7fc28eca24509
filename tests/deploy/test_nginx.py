"""nginx with deploy/nginx.conf before two running services."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest
from live_service import Live, expect, running
from nginx_front import CONF, nginx

from service.settings import Settings

SHORT = {"prompt": "x", "max_new_tokens": 1}
LONG = {"prompt": "go on", "max_new_tokens": 200, "ignore_eos": True, "stream": True}


def test_the_limit_of_bodies_is_the_services_own() -> None:
    said = re.search(r"client_max_body_size (\d+)m;", CONF)
    assert said is not None and int(said[1]) << 20 == Settings.model_fields["max_body_bytes"].default


def test_a_stream_may_last_as_long_as_the_service_lets_it() -> None:
    said = re.search(r"proxy_read_timeout (\d+)s;", CONF)
    assert said is not None and int(said[1]) > Settings.model_fields["request_timeout_s"].default


@pytest.fixture(scope="module")
def second(tiny_model: Path) -> Iterator[Live]:
    with running(Settings(model=str(tiny_model), port=0, threads=1, speculation=False)) as service:
        yield service


@pytest.fixture(scope="module")
def front(live: Live, second: Live, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with nginx(tmp_path_factory.mktemp("nginx"), live, second) as client:
        yield client


PAGES = ["/metrics", "/info", "/livez", "/readyz", "/docs", "/docs/x", "/redoc", "/openapi.json"]
TRICKS = ["/metrics/", "//metrics", "/%6detrics", "/x/../metrics", "/metrics?a=b"]


@pytest.mark.tools
@pytest.mark.parametrize("path", [*PAGES, *TRICKS])
def test_operations_pages_are_denied(front: httpx.Client, path: str) -> None:
    connection = HTTPConnection("127.0.0.1", front.base_url.port)  # it sends the path as it is
    connection.request("GET", path)
    assert connection.getresponse().status == 403
    connection.close()


@pytest.mark.tools
def test_a_stream_arrives_while_it_runs(front: httpx.Client, live: Live, second: Live) -> None:
    with front.stream("POST", "/generate", json=LONG) as reply:
        pieces = reply.iter_raw()
        first = next(pieces)
        running_now = live.metric("textgen_requests_in_flight") + second.metric("textgen_requests_in_flight")
        rest = list(pieces)
    assert b"event: token" in first and b"event: done" not in first
    assert running_now == 1 and len(rest) > 10


@pytest.mark.tools
def test_a_client_that_leaves_frees_its_sequence(front: httpx.Client, live: Live, second: Live) -> None:
    def aborts() -> float:
        return sum(each.metric("textgen_requests_finished_total", outcome="abort") for each in (live, second))

    before = aborts()
    with front.stream("POST", "/generate", json=LONG) as reply:
        next(reply.iter_raw())
    expect(lambda: aborts() == before + 1, "the abort")


@pytest.mark.tools
def test_a_body_up_to_our_limit_reaches_the_service(front: httpx.Client) -> None:
    body = {
        "text": "a " * (3 << 19),
        "max_new_tokens": 8,
    }  # 3 MB: our refusal of too many chunks, not nginx's page
    reply = front.post("/summarize", json=body)
    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "invalid_request")


@pytest.mark.tools
def test_a_session_stays_with_one_service(front: httpx.Client, live: Live, second: Live) -> None:
    def served() -> list[float]:
        return [service.metric("textgen_requests_finished_total") for service in (live, second)]

    for session in range(12):
        before = served()
        for _ in range(3):
            front.post(
                "/generate",
                json={"prompt": "x", "max_new_tokens": 1},
                headers={"X-Session-ID": f"s{session}"},
            )
        grown = [after - old for after, old in zip(served(), before, strict=True)]
        assert sorted(grown) == [0, 3]


@pytest.mark.tools
def test_requests_without_a_session_are_spread(front: httpx.Client, live: Live, second: Live) -> None:
    before = [service.metric("textgen_requests_finished_total") for service in (live, second)]
    for _ in range(40):
        front.post("/generate", json=SHORT)
    after = [service.metric("textgen_requests_finished_total") for service in (live, second)]
    assert all(now - then > 0 for now, then in zip(after, before, strict=True))


@pytest.mark.tools
def test_a_service_that_is_gone_is_passed_over(live: Live, tiny_model: Path, tmp_path: Path) -> None:
    with running(Settings(model=str(tiny_model), port=0, threads=1, speculation=False)) as gone:
        pass
    with nginx(tmp_path, live, gone) as client:
        replies = [client.post("/generate", json=SHORT) for _ in range(20)]
    assert {reply.status_code for reply in replies} == {200}

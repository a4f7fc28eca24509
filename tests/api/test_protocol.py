"""The wire below the routes: broken and slow HTTP, clients of other versions, clients that have left."""

from __future__ import annotations

import json
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from live_service import WAIT_S, Live, Stuck, events, expect, read_all

from service.api import protocol
from service.api.protocol import MAX_PIPELINED
from service.engine.async_engine import AsyncEngine

HEAD = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BODY = json.dumps({"prompt": "a", "max_new_tokens": 2, "stream": True}).encode()


def request(version: bytes = b"1.1", body: bytes = BODY) -> bytes:
    """A whole request."""
    return HEAD.replace(b"1.1", version) + b"Content-Length: %d\r\n\r\n" % len(body) + body


def drip(sock: socket.socket, piece: bytes) -> Iterator[bytes]:
    """Send a piece every 50 ms until the server answers or closes; what it answered comes last."""
    sock.settimeout(0.05)
    for _ in range(int(WAIT_S / 0.05)):
        with suppress(OSError):
            sock.sendall(piece)
        with suppress(TimeoutError):
            sock.settimeout(0.05)
            found = sock.recv(65536)
            sock.settimeout(WAIT_S)
            yield found + (read_all(sock) if found else b"")
            return


def test_a_slow_body_times_out(live: Live) -> None:
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    reply = live.raw(head + b"Content-Length: 100\r\n\r\n{")
    assert reply.startswith(b"HTTP/1.1 408 ") and b'"request_timeout"' in reply


def test_headers_that_are_too_large_are_refused(live: Live) -> None:
    response = live.post("/generate", {"prompt": "a"}, headers={"x-long": "a" * 10_000})
    assert (response.status_code, response.json()["error"]["code"]) == (431, "headers_too_large")


def test_a_header_that_never_ends_is_refused(live: Live) -> None:
    reply = live.raw(b"POST /generate HTTP/1.1\r\nX: " + b"a" * 20_000)
    assert reply.startswith(b"HTTP/1.1 431 ") and b'"headers_too_large"' in reply


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_broken_http_is_answered_in_the_one_error_body(live: Live, data: bytes) -> None:
    head, _, body = live.raw(data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"]["code"] == "bad_request"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Host: x\r\n", b""),
        (b"Host: x\r\n", b"Host: x\r\nHost: y\r\n"),
        (b"Host: x\r\n", b"Host: x\r\nAuthorization: Bearer a\r\nAuthorization: Bearer b\r\n"),
        (b"HTTP/1.1", b"HTTP/2.0"),
    ],
)
def test_a_head_with_two_meanings_is_refused(live: Live, old: bytes, new: bytes) -> None:
    refused = live.metric("textgen_requests_finished_total", outcome="bad_request")
    reply = live.raw(request().replace(old, new + b"Connection: close\r\n" if old != b"HTTP/1.1" else new))
    assert reply.startswith(b"HTTP/1.1 400 ") and b'"bad_request"' in reply
    assert live.metric("textgen_requests_finished_total", outcome="bad_request") == refused + 1


def test_a_body_in_chunks_that_are_compressed_is_refused(live: Live) -> None:
    reply = live.raw(
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
    )
    assert reply.startswith(b"HTTP/1.1 400 ") and b"chunked" in reply


def test_what_follows_broken_http_is_not_looked_at(serve: Callable[..., Live], log_lines: list[str]) -> None:
    live = serve()
    before = len(log_lines)
    reply = live.raw(b"nonsense\r\n\r\n" + b"a" * 9000)
    assert reply.startswith(b"HTTP/1.1 400 ")
    offers = b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n"
    live.raw(offers * 2000)
    assert live.http.get("/livez").status_code == 200
    assert not [line for line in log_lines[before:] if "Error" in line]


def test_broken_http_behind_an_unanswered_offer_to_continue_is_no_fault(live: Live) -> None:
    faults = live.metric("textgen_requests_finished_total", outcome="internal")
    aborts = live.metric("textgen_requests_finished_total", outcome="abort")
    reply = live.raw(request().replace(b"Host", b"Expect: 100-continue\r\nHost") + b"nonsense\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 400 ")
    expect(lambda: live.metric("textgen_requests_finished_total", outcome="abort") == aborts + 1, "the end")
    assert live.metric("textgen_requests_finished_total", outcome="internal") == faults


def test_headers_that_stop_in_the_middle_are_answered_on_a_used_connection(live: Live) -> None:
    with live.connect() as sock:
        sock.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
        sock.sendall(b"POST /gen")
        assert read_all(sock).startswith(b"HTTP/1.1 408 ")


def test_headers_that_drip_are_cut_off(live: Live) -> None:
    with live.connect() as sock:
        sock.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nX: ")
        reply = next(drip(sock, b"a"))
    assert reply.startswith(b"HTTP/1.1 408 ") and b'"request_timeout"' in reply


def test_empty_lines_after_a_reply_do_not_hold_a_connection_open(live: Live) -> None:
    with live.connect() as sock:
        sock.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
        next(drip(sock, b"\r\n"))


@pytest.mark.parametrize("encoding", [b"chunked\r\n\r\nZZ\r\n", b"gzip\r\n\r\nabc"])
def test_a_body_that_is_broken_http_is_answered(live: Live, encoding: bytes) -> None:
    reply = live.raw(HEAD + b"Transfer-Encoding: " + encoding)
    assert reply.startswith(b"HTTP/1.1 400 ") and b'"bad_request"' in reply


def test_an_http_1_0_client_gets_a_stream_without_chunks(live: Live) -> None:
    head, _, body = live.raw(request(b"1.0")).partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head and events(body.decode())[-1][0] == "done"


def test_an_http_1_0_client_gets_a_reply_with_its_length(live: Live) -> None:
    head, _, body = live.raw(request(b"1.0", b'{"prompt": "a", "max_new_tokens": 2}')).partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(body) in head


def test_head_is_answered_as_get_without_a_body(live: Live) -> None:
    reply = live.http.head("/readyz")
    assert (reply.status_code, reply.content) == (200, b"")


def test_pipelined_requests_are_answered_in_order_whatever_becomes_of_each(live: Live) -> None:
    plain = b'{"prompt": "a", "max_new_tokens": 2}'
    with live.connect() as sock:
        sock.sendall(request(body=plain) + request(body=b"{}") + request(b"1.0", plain))
        replies = read_all(sock).split(b"HTTP/1.1 ")[1:]
    assert [reply[:3] for reply in replies] == [b"200", b"422", b"200"]


def test_more_pipelined_requests_than_may_wait_end_the_connection(live: Live) -> None:
    asked = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    with live.connect() as sock:
        sock.sendall(asked * (MAX_PIPELINED + 1) + request(b"1.0"))
        assert read_all(sock).count(b"HTTP/1.1 200 ") == 0
    with live.connect() as sock:
        sock.sendall(asked * MAX_PIPELINED + request(b"1.0"))
        assert read_all(sock).count(b"HTTP/1.1 200 ") == MAX_PIPELINED + 1


def test_a_request_whose_client_has_left_is_not_submitted(live: Live) -> None:
    before = live.metric("textgen_requests_finished_total", outcome="abort")
    tokens = live.metric("textgen_prompt_tokens_total")
    gate = threading.Event()
    live.server._loop.call_soon_threadsafe(gate.wait)  # the event loop is behind
    for _ in range(8):
        with live.connect() as sock:
            sock.sendall(request())
    gate.set()
    expect(lambda: live.metric("textgen_requests_finished_total", outcome="abort") == before + 8, "the ends")
    assert live.metric("textgen_prompt_tokens_total") == tokens


@pytest.mark.parametrize("offer", [b"h2c", b"websocket"])
def test_an_offer_to_upgrade_is_declined_without_losing_the_body(live: Live, offer: bytes) -> None:
    upgrade = (
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + offer + b"\r\nHTTP2-Settings: AAMAAABk\r\n"
    )
    asked = request(body=b'{"prompt": "a", "max_new_tokens": 2}').replace(b"Host", upgrade + b"Host")
    with live.connect() as sock:
        sock.sendall(asked[:-5])
        sock.sendall(asked[-5:] + asked + request(b"1.0"))
        replies = read_all(sock).split(b"HTTP/1.1 ")[1:]
    assert [reply[:3] for reply in replies] == [b"200"] * 3


def test_a_tunnel_is_refused(live: Live) -> None:
    assert live.raw(b"CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_data_behind_the_last_request_does_not_spoil_it(live: Live) -> None:
    offer = b"Connection: close, Upgrade\r\nUpgrade: h2c\r\n"
    reply = live.raw(request().replace(b"Host", offer + b"Host") + b"\r\nmore")
    assert reply.startswith(b"HTTP/1.1 200 ")


# ---- bodies ---------------------------------------------------------------------------------------------


def test_large_bodies_that_wait_for_their_end_have_only_so_much_room(serve: Callable[..., Live]) -> None:
    live = serve(max_body_bytes=100_000)
    begun = HEAD + b"Content-Length: 100000\r\n\r\n" + b" " * 99_999
    with ExitStack() as stack:
        held = [stack.enter_context(live.connect()) for _ in range(60)]
        for sock in held:
            sock.sendall(begun)
        readable, _, _ = select.select(held, [], [], WAIT_S)
        reply = read_all(readable[0])
        assert reply.startswith(b"HTTP/1.1 429 ") and b'"queue_full"' in reply
        assert live.post("/generate", {"prompt": "a", "max_new_tokens": 1}).status_code == 200
    expect(lambda: not live.state.in_flight, "the ends")
    assert live.post("/generate", {"prompt": " " * 90_000}).status_code == 422  # there is room again


# ---- connections ----------------------------------------------------------------------------------------

BEGUN = HEAD + b"Content-Length: 100\r\n\r\n{"  # a body that does not come


def test_a_connection_too_many_is_refused_and_counted_and_may_ask_whether_the_service_lives(
    serve: Callable[..., Live],
) -> None:
    live = serve(max_connections=3)
    live.http.close()
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(live.connect()).sendall(BEGUN)
        expect(lambda: len(live.state.in_flight) == 3, "the bodies")
        reply = live.raw(request()).lower()
        assert (
            reply.startswith(b"http/1.1 429 ") and b'"queue_full"' in reply and b"retry-after: 1\r\n" in reply
        )
        health = live.raw(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert health.startswith(b"HTTP/1.1 200 ")
        assert live.state.metrics.counters["textgen_connections_refused_total"] == 1
    expect(lambda: not live.state.in_flight, "the ends")
    assert live.raw(request(b"1.0")).startswith(b"HTTP/1.1 200 ")  # there is room again


def test_a_connection_that_is_idle_gives_way(serve: Callable[..., Live]) -> None:
    live = serve(max_connections=1)
    assert live.post("/tokenize", {"prompt": "a"}).status_code == 200  # and is kept alive
    assert live.raw(request(b"1.0")).startswith(b"HTTP/1.1 200 ")
    assert live.post("/tokenize", {"prompt": "a"}).status_code == 200  # on a new connection
    assert live.state.metrics.counters["textgen_connections_refused_total"] == 0


def test_those_beyond_the_limit_are_few_and_must_be_quick(
    serve: Callable[..., Live], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "NUM_EXTRA", 2)
    live = serve(max_connections=1, body_timeout_s=10 * WAIT_S)
    live.http.close()
    with ExitStack() as stack:
        stack.enter_context(live.connect()).sendall(BEGUN)
        expect(lambda: len(live.state.in_flight) == 1, "the body")
        silent = [stack.enter_context(live.connect()) for _ in range(3)]
        assert read_all(silent[2]) == b""  # at once; the other two after EXTRA_TIMEOUT_S
        assert [read_all(sock) for sock in silent[:2]] == [b"", b""]
        assert live.state.metrics.counters["textgen_connections_refused_total"] == 1
        assert len(live.state.in_flight) == 1  # the body's time is longer


# ---- trailers -------------------------------------------------------------------------------------------

CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


def chunked(body: bytes, trailers: bytes) -> bytes:
    """A whole request in one chunk, with fields after its body."""
    return CHUNKED + b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(body), body, trailers)


@pytest.mark.parametrize("piece", [b"X: " + b"a" * 1000 + b"\r\n", b"a" * 4000])
def test_trailers_without_end_are_refused(live: Live, piece: bytes) -> None:
    with live.connect() as sock:
        sock.sendall(CHUNKED + b"2\r\n{}\r\n0\r\nX: ")
        reply = next(drip(sock, piece))
    assert reply.startswith(b"HTTP/1.1 431 ") and b'"headers_too_large"' in reply


def test_trailers_do_not_pass_for_headers(live: Live) -> None:
    trailers = b"X-Request-ID: smuggled\r\nContent-Type: text/xml\r\nConnection: keep-alive\r\n"
    with live.connect() as sock:
        sock.sendall(chunked(b'{"prompt": "a", "max_new_tokens": 2}', trailers) + request(b"1.0"))
        replies = read_all(sock)
    assert replies.count(b"HTTP/1.1 200 ") == 2
    assert b"smuggled" not in replies


def test_a_key_in_a_trailer_opens_nothing(serve: Callable[..., Live]) -> None:
    live = serve(api_keys="abc")
    sent = chunked(b'{"prompt": "a", "max_new_tokens": 2}', b"Authorization: Bearer abc\r\n")
    assert live.raw(sent.replace(b"Host: x", b"Host: x\r\nConnection: close")).startswith(b"HTTP/1.1 401 ")


# ---- clients that leave behind more than one request ----------------------------------------------------


@pytest.fixture
def engine(tiny_model: Path) -> Iterator[Stuck]:
    found = Stuck(tiny_model)
    yield found
    found.gate.set()


@pytest.fixture
def stuck(serve: Callable[..., Live], engine: Stuck) -> Live:
    return serve(AsyncEngine(engine.make, hung_after_s=WAIT_S))


def test_the_beginning_of_a_request_does_not_end_the_one_before_it(
    serve: Callable[..., Live], engine: Stuck
) -> None:
    """The service waits for the rest of the headers for less time than the first request takes."""
    stuck = serve(AsyncEngine(engine.make, hung_after_s=WAIT_S), body_timeout_s=1.0)
    with stuck.connect() as sock:
        sock.sendall(request(body=b'{"prompt": "a", "max_new_tokens": 2}') + b"GE")
        expect(lambda: stuck.num_sequences() == 1, "a sequence")
        sock.settimeout(2.0)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(WAIT_S)
        engine.gate.set()
        reply = read_all(sock)
    assert reply.startswith(b"HTTP/1.1 200 ") and b"HTTP/1.1 408 " in reply


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("is_together", [False, True])
def test_a_client_that_leaves_with_a_request_in_the_pipeline_is_noticed(
    stuck: Live, stream: bool, is_together: bool
) -> None:
    aborts = stuck.metric("textgen_requests_finished_total", outcome="abort")
    behind = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    body = json.dumps({"prompt": "a", "max_new_tokens": 9, "stream": stream}).encode()
    with stuck.connect() as sock:
        sock.sendall(request(body=body) + (behind if is_together else b""))
        expect(lambda: stuck.num_sequences() == 1, "a sequence")
        if not is_together:
            sock.sendall(behind)
            expect(_is_paused(stuck), "the second request")
    expect(lambda: stuck.metric("textgen_requests_finished_total", outcome="abort") == aborts + 1, "the end")
    assert stuck.num_sequences() == 0


def _is_paused(live: Live) -> Callable[[], bool]:
    """Whether a connection has a request behind another."""
    connections = live.server.server_state.connections
    return lambda: any(connection.pipeline for connection in list(connections))  # type: ignore[union-attr]

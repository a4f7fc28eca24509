"""How the storms judge what they see; the storms themselves run in `tests/soak`."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from service.bench.chaos.check import at_most, nothing
from service.bench.chaos.raw import exchange, post
from service.bench.chaos.server import imbalance, leftovers
from service.bench.chaos.traffic import Errand, Traffic, judge, judge_stream

TOKEN = b'event: token\ndata: {"index":0,"text":"a"}\n\n'
END = b'event: done\ndata: {"id":"x"}\n\n'
FAILURE = b'event: error\ndata: {"error":{"code":"draining"}}\n\n'
GENERATE = Errand("/generate", b"{}")


def test_a_stream_with_one_end_is_done() -> None:
    assert judge_stream("/generate", TOKEN + b": keep-alive\n\n" + END) == "stream done"


def test_a_stream_that_ends_with_an_error_is_named_by_its_code() -> None:
    assert judge_stream("/generate", TOKEN + FAILURE) == "stream draining"


@pytest.mark.parametrize("body", [b"", TOKEN, END + TOKEN, END + END])
def test_a_stream_without_exactly_one_end_is_bad(body: bytes) -> None:
    assert judge_stream("/generate", body).startswith("bad")


def test_an_openai_stream_must_end_with_its_mark() -> None:
    assert judge_stream("/v1/completions", b'data: {"choices":[]}\n\n').startswith("bad")


def test_a_status_outside_the_contract_is_bad() -> None:
    assert judge(GENERATE, httpx.Response(500, text="oops")).startswith("bad")


def test_a_refusal_is_named_by_status_and_code() -> None:
    reply = httpx.Response(429, json={"error": {"code": "queue_full"}})
    assert judge(GENERATE, reply) == "429 queue_full"


def test_the_same_seed_sends_the_same_traffic() -> None:
    first, second = Traffic(5), Traffic(5)
    assert [first.errand() for _ in range(50)] == [second.errand() for _ in range(50)]


def test_traffic_visits_every_endpoint() -> None:
    traffic = Traffic(0)
    paths = {traffic.errand().path for _ in range(400)}
    assert {"/generate", "/v1/completions", "/summarize", "/qa", "/tasks/generate", "/no/such/path"} <= paths


def test_requests_that_vanish_are_an_imbalance() -> None:
    series = {
        ("textgen_requests_received_total", (("endpoint", "/qa"),)): 5.0,
        ("textgen_requests_finished_total", (("endpoint", "/qa"), ("outcome", "ok"))): 3.0,
        ("textgen_requests_in_flight", ()): 1.0,
    }
    assert imbalance(series) == 1.0


def test_blocks_still_held_are_left_over() -> None:
    assert leftovers({("textgen_kv_blocks_used_ratio", ()): 0.25})["kv_blocks_used_ratio"] == 0.25


def test_a_figure_on_its_bound_passes() -> None:
    assert at_most("memory", 5.0, 5.0, " %").passed


def test_something_where_there_must_be_nothing_fails() -> None:
    assert not nothing("exceptions", "Traceback").passed


@pytest.mark.asyncio
async def test_a_raw_exchange_reads_status_and_code() -> None:
    body = json.dumps({"error": {"code": "bad_request"}}).encode()

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        answer = await exchange(server.sockets[0].getsockname()[1], [post("/generate", b"{}")])
    assert (answer.status, answer.code) == (400, "bad_request")

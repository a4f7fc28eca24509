"""`textgen bench` against a small server of our own on loopback: what it counts, and what it says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from service.bench.client import Sample, ask_once
from service.bench.dialect import Account, Dialect, dialect_of, read_account
from service.bench.load import Run, closed_loop, open_loop
from service.bench.prompts import Ask, BadPrompts, Shape, from_json_lines, from_text, generated, parse_mix
from service.bench.server_view import histogram_quantile, parse_metrics, total, view
from service.bench.summary import Objective, percentile, summarize
from service.bench.wire import make_client

ASK = Ask("64x64", "once upon a time", 3)
FRAMES = [b'data: {"choices":[{"text":" a"}]}\n\n', b'data: {"choices":[{"text":" b"}]}\n\n']
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":3}}\n\n'
DONE = b"data: [DONE]\n\n"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(*answers: bytes) -> AsyncIterator[str]:
    """A server that gives these answers, one after another on a connection; its URL."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            head = await reader.readuntil(b"\r\n\r\n")
            length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
            await reader.readexactly(int(length[0].split(b":")[1]) if length else 0)
            writer.write(answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def chunked(*pieces: bytes, status: bytes = b"200 OK") -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return b"HTTP/1.1 " + status + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n\r\n"


def plain(body: bytes, status: bytes = b"200 OK", headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, headers, len(body), body)


async def sample_of(answer: bytes, stream: bool = True) -> Sample:
    async with serving(answer) as url, make_client() as client:
        return await ask_once(client, Dialect(url, is_native=False, stream=stream), ASK, 5.0)


# ---- one request ----------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_tokens_are_counted_by_the_usage_frame() -> None:
    sample = await sample_of(chunked(*FRAMES, USAGE, DONE))
    assert (sample.output_tokens, sample.prompt_tokens, sample.is_counted) == (3, 4, True)


@pytest.mark.asyncio
async def test_tokens_are_counted_by_arrivals_where_no_usage_is_told() -> None:
    sample = await sample_of(chunked(*FRAMES, DONE))
    assert (sample.output_tokens, sample.is_counted) == (len(sample.token_times), False)


@pytest.mark.asyncio
async def test_usage_and_the_end_mark_are_no_arrivals_of_tokens() -> None:
    sample = await sample_of(chunked(USAGE, DONE))
    assert sample.token_times == []


@pytest.mark.asyncio
async def test_a_refusal_keeps_its_status_code_and_wait() -> None:
    body = b'{"error":{"code":"queue_full","message":"full"}}'
    sample = await sample_of(plain(body, b"429 Too Many Requests", b"Retry-After: 7\r\n"))
    assert (sample.status, sample.error, sample.retry_after) == (429, "queue_full", "7")


@pytest.mark.asyncio
async def test_an_error_frame_makes_a_stream_a_failure() -> None:
    frame = b'event: error\ndata: {"error":{"code":"deadline_exceeded"}}\n\n'
    assert (await sample_of(chunked(FRAMES[0], frame))).error == "deadline_exceeded"


@pytest.mark.asyncio
async def test_a_stream_that_is_cut_is_an_error() -> None:
    cut = chunked(*FRAMES)[: -len(b"0\r\n\r\n")]
    assert (await sample_of(cut)).error == "RemoteProtocolError"


@pytest.mark.asyncio
async def test_a_server_that_does_not_listen_is_an_error() -> None:
    async with serving(b"") as url:
        pass
    async with make_client() as client:
        sample = await ask_once(client, Dialect(url, is_native=False), ASK, 5.0)
    assert sample.error == "ConnectError"


@pytest.mark.asyncio
async def test_a_silent_server_is_given_up() -> None:
    async with serving(b"") as url, make_client() as client:
        sample = await ask_once(client, Dialect(url, is_native=False), ASK, 0.05)
    assert sample.error in {"client_timeout", "RemoteProtocolError"}


@pytest.mark.asyncio
async def test_a_whole_answer_has_no_time_to_first_token() -> None:
    body = b'{"choices":[{"text": "a"}],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
    sample = await sample_of(plain(body), stream=False)
    assert (sample.ttft_s, sample.output_tokens) == (None, 2)


@pytest.mark.asyncio
async def test_a_connection_serves_the_next_request_too() -> None:
    async with serving(plain(b"first"), plain(b"second")) as url, make_client() as client:
        texts = [(await client.get(url)).text for _ in range(2)]
    assert texts == ["first", "second"]


@pytest.mark.asyncio
async def test_what_is_not_http_is_an_error() -> None:
    async with serving(b"\x00\x01garbage\r\n\r\n") as url, make_client() as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get(url)


# ---- what is asked --------------------------------------------------------------------------------------


def test_a_bare_server_means_its_openai_endpoint() -> None:
    assert dialect_of("http://a:1/") == ("http://a:1/v1/completions", False)


def test_a_generate_url_is_native() -> None:
    assert dialect_of("http://a:1/generate") == ("http://a:1/generate", True)


def test_a_native_body_names_the_tokens_its_own_way() -> None:
    body = json.loads(Dialect("u", is_native=True).body(ASK))
    assert body["max_new_tokens"] == 3 and "stream_options" not in body


def test_fields_given_by_hand_win() -> None:
    body = json.loads(Dialect("u", is_native=False, extra={"temperature": 1}).body(ASK))
    assert body["temperature"] == 1


def test_the_last_frames_tell_the_account() -> None:
    assert read_account(b"".join([*FRAMES, USAGE, DONE]), is_stream=True) == Account(4, 3)


def test_a_mix_has_words_tokens_and_weights() -> None:
    assert parse_mix("64x32@9,700x16") == [Shape(64, 32, 9.0), Shape(700, 16, 1.0)]


@pytest.mark.parametrize("text", ["", "64", "0x5", "5x0", "64x64@0", "64x64;5x5"])
def test_a_mix_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadPrompts):
        parse_mix(text)


def test_the_same_seed_gives_the_same_prompts() -> None:
    first, second = generated([Shape(5, 1)], 3), generated([Shape(5, 1)], 3)
    assert [next(first) for _ in range(4)] == [next(second) for _ in range(4)]


def test_prompts_have_the_words_asked_for() -> None:
    assert len(next(generated([Shape(17, 1)], 0)).prompt.split()) == 17


def test_prompts_can_share_their_beginning() -> None:
    asks = generated([Shape(10, 1)], 0, num_shared_words=6)
    assert len({tuple(next(asks).prompt.split()[:6]) for _ in range(5)}) == 1


def test_a_text_too_short_for_the_mix_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("only four words here")
    with pytest.raises(BadPrompts, match="4 words"):
        next(from_text(path, [Shape(5, 1)], 0))


def test_a_broken_line_of_prompts_is_named(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    with pytest.raises(BadPrompts, match=":2 "):
        next(from_json_lines(path, 8))


# ---- many requests --------------------------------------------------------------------------------------


async def instant(ask: Ask) -> Sample:
    await asyncio.sleep(0)
    return Sample(ask.kind, 0.0, 1.0, status=200)


@pytest.mark.asyncio
async def test_a_closed_loop_makes_exactly_the_requests() -> None:
    run = Run()
    await closed_loop(run, instant, generated([Shape(1, 1)], 0), 4, 10, 60.0)
    assert len(run.samples) == 10


@pytest.mark.asyncio
async def test_an_open_loop_comes_near_its_rate() -> None:
    run = Run()
    await open_loop(run, instant, generated([Shape(1, 1)], 0), 500.0, 0.4, seed=1)
    assert 140 <= len(run.samples) <= 260


def test_a_percentile_is_a_value_that_was_measured() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 50) == 2.0


def test_a_percentile_of_one_value_is_that_value() -> None:
    assert percentile([5.0], 99) == 5.0


def test_goodput_counts_only_requests_within_the_objective() -> None:
    samples = [Sample("a", 0.0, end, [first], 200) for first, end in ((0.1, 1.0), (0.5, 1.0))]
    assert summarize(samples, 2.0, Objective(ttft_ms=200)).goodput_per_s == 0.5


def test_failed_requests_give_no_tokens_but_their_code() -> None:
    summary = summarize([Sample("a", 0, 1, status=429, error="queue_full")], 1.0, Objective())
    assert (summary.output_tokens, summary.errors) == (0, {"queue_full": 1})


# ---- the server's view ----------------------------------------------------------------------------------

METRICS = """# TYPE textgen_step_seconds histogram
textgen_step_seconds_bucket{le="0.01",model="m"} 5.0
textgen_step_seconds_bucket{le="0.1",model="m"} 10.0
textgen_step_seconds_bucket{le="+Inf",model="m"} 10.0
textgen_requests_finished_total{endpoint="/qa",model="m",outcome="ok"} 3.0
textgen_requests_finished_total{endpoint="/generate",model="m",outcome="ok"} 4.0
textgen_generation_tokens_total{model="m"} 90.0
"""


def test_a_metric_is_summed_over_its_series() -> None:
    assert total(parse_metrics(METRICS), "textgen_requests_finished_total") == 7


def test_a_metric_is_summed_over_the_series_with_a_label() -> None:
    assert total(parse_metrics(METRICS), "textgen_requests_finished_total", endpoint="/qa") == 3


def test_a_quantile_is_the_bound_of_its_bucket() -> None:
    assert histogram_quantile(parse_metrics(METRICS), "textgen_step_seconds", 0.9) == 0.1


def test_the_view_is_of_what_grew() -> None:
    found = view({("textgen_generation_tokens_total", ()): 30.0}, parse_metrics(METRICS), 2.0)
    assert found["output_tokens_per_s"] == 30.0


def test_a_server_without_our_metrics_has_no_view() -> None:
    assert view({}, {("process_cpu_seconds_total", ()): 3.0}, 1.0) == {}


# ---- the command ----------------------------------------------------------------------------------------


def run_command(*arguments: str) -> tuple[int, str]:
    from service.bench.cli import app

    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.output


def test_a_server_that_is_not_there_is_said_in_one_line() -> None:
    code, output = run_command("http://127.0.0.1:9", "--clients", "1")
    assert code == 1 and "127.0.0.1:9 does not answer" in output


def test_clients_must_be_numbers() -> None:
    code, output = run_command("http://127.0.0.1:9", "--clients", "1,many")
    assert code == 2 and "--clients must be numbers above 0" in output


def test_an_unknown_scenario_is_refused_with_the_known_ones() -> None:
    code, output = run_command("chaos", "no-such")
    assert code == 2 and "conservation" in output

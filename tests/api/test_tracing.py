"""Traces, as a collector gets them, and the log lines that go with them."""

from __future__ import annotations

import gzip
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from live_service import Live, running

from service.errors import SettingsError
from service.settings import Settings
from service.tracing import make_tracing

trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CALLER = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
STREAM = {"prompt": "a secret prompt", "max_new_tokens": 60, "ignore_eos": True, "stream": True}


class Collector:
    """An OTLP receiver on a free port."""

    def __init__(self) -> None:
        self.resources: list[dict[str, Any]] = []
        self.spans: list[Any] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                collector.take(trace_service.ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                """Keep quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def take(self, request: Any) -> None:
        for resource in request.resource_spans:
            self.resources.append(attributes(resource.resource))
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]

    def named(self, name: str) -> Any:
        [span] = [span for span in self.spans if span.name == name]
        return span


def attributes(thing: Any) -> dict[str, Any]:
    found = {}
    for pair in thing.attributes:
        kind = pair.value.WhichOneof("value")
        found[pair.key] = getattr(pair.value, kind)
    return found


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.server.serve_forever)
    thread.start()
    try:
        yield collector
    finally:
        collector.server.shutdown()
        thread.join()
        collector.server.server_close()


@contextmanager
def traced(model: Path, url: str) -> Iterator[Live]:
    """A service that sends its spans there, all of them by its end."""
    with running(Settings(model=str(model), port=0, threads=1, speculation=False, otlp_endpoint=url)) as live:
        yield live


@pytest.fixture(scope="module")
def streamed(tiny_model: Path) -> Collector:
    """What a collector got of one streamed request that a traced caller made."""
    with collecting() as collector:
        with traced(tiny_model, collector.url) as live:
            reply = live.post("/generate", STREAM, headers=CALLER)
            live.http.get("/info")
        # more frames than spans, so that one for each would show; a busy machine puts some together
        assert reply.text.count("event: token") > 4
        return collector


def test_a_stream_is_four_spans_of_its_callers_trace(streamed: Collector) -> None:
    assert sorted(span.name for span in streamed.spans) == ["POST /generate", "decode", "prefill", "queue"]
    assert {span.trace_id.hex() for span in streamed.spans} == {TRACE_ID}
    server = streamed.named("POST /generate")
    assert (server.parent_span_id.hex(), server.kind) == (PARENT_ID, 2)
    parents = {span.parent_span_id for span in streamed.spans if span is not server}
    assert parents == {server.span_id}


def test_the_parts_follow_each_other_within_the_request(streamed: Collector) -> None:
    server = streamed.named("POST /generate")
    flat = [server.start_time_unix_nano]
    for name in ("queue", "prefill", "decode"):
        part = streamed.named(name)
        flat += [part.start_time_unix_nano, part.end_time_unix_nano]
    flat.append(server.end_time_unix_nano)
    assert flat == sorted(flat)


def test_attributes_are_those_of_the_conventions(streamed: Collector) -> None:
    server = attributes(streamed.named("POST /generate"))
    assert server["http.request.method"] == "POST" and server["http.route"] == "/generate"
    assert server["http.response.status_code"] == 200 and "error.type" not in server
    assert server["gen_ai.operation.name"] == "text_completion"
    assert server["gen_ai.response.model"] == "tiny"
    assert server["gen_ai.usage.output_tokens"] == 60
    assert attributes(streamed.named("prefill"))["gen_ai.usage.input_tokens"] == len(STREAM["prompt"])  # type: ignore[arg-type]
    assert attributes(streamed.named("decode"))["gen_ai.usage.output_tokens"] == 60
    assert streamed.resources[0]["service.name"] == "textgen"


def test_no_span_holds_a_prompt(streamed: Collector) -> None:
    assert "secret" not in str(streamed.spans)


def test_a_refusal_is_a_span_with_its_code_and_its_log_line_has_the_trace(
    tiny_model: Path, log_lines: list[str]
) -> None:
    start = len(log_lines)
    with collecting() as collector:
        with traced(tiny_model, collector.url) as live:
            live.post("/generate", {"prompt": "a", "max_new_tokens": -1})
        [span] = collector.spans
    found = attributes(span)
    assert (found["http.response.status_code"], found["error.type"]) == (422, "invalid_request")
    [line] = [line for line in log_lines[start:] if "invalid_request" in line]
    assert f"trace_id={span.trace_id.hex()}" in line


def test_a_collector_that_is_not_there_costs_no_request(tiny_model: Path) -> None:
    with collecting() as collector:
        gone = collector.url
    with traced(tiny_model, gone) as live:
        assert live.post("/generate", {"prompt": "a", "max_new_tokens": 2}).status_code == 200


def test_without_the_extra_the_setting_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(SettingsError, match=r"TEXTGEN_OTLP_ENDPOINT needs .*\[otel\]"):
        make_tracing("http://127.0.0.1:4318")


# ---- the log line of a refusal --------------------------------------------------------------------------


def refusal(lines: list[str], *words: str) -> dict[str, Any]:
    """The fields of the one log line that holds all these words."""
    [line] = [line for line in lines if all(word in line for word in words)]
    return dict(part.split("=", 1) for part in line.split() if "=" in part)


def test_a_refusal_says_what_was_asked_and_what_was_wrong_with_it(live: Live, log_lines: list[str]) -> None:
    start = len(log_lines)
    reply = live.post(
        "/generate", {"prompt": "a secret", "temperature": 77.125}, headers={"x-request-id": "t1"}
    )
    assert reply.status_code == 422
    fields = refusal(log_lines[start:], "request_id=t1")
    assert (fields["method"], fields["endpoint"], fields["status"]) == ("POST", "/generate", "422")
    assert (fields["code"], fields["param"]) == ("invalid_request", "temperature")
    assert "77.125" not in json.dumps(log_lines[start:]) and "secret" not in json.dumps(log_lines[start:])


def test_what_is_not_found_shows_no_path_of_the_clients(live: Live, log_lines: list[str]) -> None:
    start = len(log_lines)
    live.http.get("/no-such-page-of-ours", headers={"x-request-id": "t2"})
    fields = refusal(log_lines[start:], "request_id=t2")
    asked = [fields[name] for name in ("method", "endpoint", "status", "code")]
    assert asked == ["GET", "other", "404", "not_found"]
    assert "no-such-page" not in json.dumps(log_lines[start:])

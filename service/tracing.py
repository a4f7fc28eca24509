"""Traces by OpenTelemetry, where `TEXTGEN_OTLP_ENDPOINT` names a collector; needs the extra `otel`.

A request that takes work is one server span, a child of the caller's where `traceparent` says so, with up to
three of its own: queue, prefill, decode. They are made when the request is over, from the times it kept
anyway, so a stream of any length costs the same four spans. Attributes are those of the semantic conventions
for HTTP and for generative models; no prompt, no answer and no key is among them. A thread of the library
sends the spans, and drops them, with a line in the log, when nobody takes them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Protocol

import structlog

from service.errors import SettingsError

_NAME = "textgen"


class _Usage(Protocol):
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def cached_tokens(self) -> int: ...
    @property
    def completion_tokens(self) -> int: ...


class _Timings(Protocol):
    @property
    def queue_ms(self) -> float: ...
    @property
    def prefill_ms(self) -> float: ...
    @property
    def decode_ms(self) -> float: ...


class Work(Protocol):
    """What a task tells of its work: `service.tasks.calls.Result`."""

    @property
    def usage(self) -> _Usage: ...
    @property
    def timings(self) -> _Timings: ...


@dataclass(slots=True)
class Outcome:
    """How a request ended; filled in while it does."""

    status: int = 0  # of the reply, 0 without one
    error: str = ""  # our code, "" if there was none
    model: str = ""
    work: Work | None = None  # None: it was not done, or not to its end


class NoTracing:
    """Traces nothing."""

    @contextmanager
    def request(self, route: str, headers: Mapping[bytes, bytes]) -> Iterator[Outcome]:
        """See `Tracing.request`."""
        yield Outcome()

    def close(self) -> None:
        """See `Tracing.close`."""


class Tracing:
    """Traces requests to a collector.

    Args:
        endpoint: its base URL; spans go to `/v1/traces` there, by OTLP over HTTP.

    Raises:
        SettingsError: OpenTelemetry is not installed.
    """

    def __init__(self, endpoint: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ModuleNotFoundError as error:
            extra = "install the extra: pip install '.[otel]'"
            raise SettingsError(f"TEXTGEN_OTLP_ENDPOINT needs {error.name}; {extra}") from error
        about = {"service.name": _NAME, "service.version": version("textgen-service")}
        self._provider = TracerProvider(resource=Resource.create(about), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint.rstrip("/") + "/v1/traces", timeout=5)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer(_NAME)

    @contextmanager
    def request(self, route: str, headers: Mapping[bytes, bytes]) -> Iterator[Outcome]:
        """One request that may take work; the log lines within carry its trace.

        Args:
            route: its path's template.
            headers: names in lower case.

        Yields:
            What its end is to be told with.
        """
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        names = ("traceparent", "tracestate")
        carrier = {name: headers.get(name.encode(), b"").decode("latin-1") for name in names}
        parent = TraceContextTextMapPropagator().extract(carrier)
        http = {"http.request.method": "POST", "http.route": route, "url.scheme": "http"}
        span = self._tracer.start_span(f"POST {route}", parent, SpanKind.SERVER, http)
        outcome = Outcome()
        ids = span.get_span_context()
        try:
            with structlog.contextvars.bound_contextvars(
                trace_id=f"{ids.trace_id:032x}", span_id=f"{ids.span_id:016x}"
            ):
                yield outcome
        finally:
            self._add_parts(span, outcome)
            if outcome.status:
                span.set_attribute("http.response.status_code", outcome.status)
            if outcome.error:
                span.set_attribute("error.type", outcome.error)
            if outcome.status >= 500:
                span.set_status(Status(StatusCode.ERROR))
            span.end()

    def _add_parts(self, span: Any, outcome: Outcome) -> None:
        """The work within a request's span: three spans that end now, one before the other."""
        from opentelemetry.trace import set_span_in_context

        common = {"gen_ai.operation.name": "text_completion", "gen_ai.provider.name": _NAME}
        if outcome.model:
            common |= {"gen_ai.request.model": outcome.model, "gen_ai.response.model": outcome.model}
        span.set_attributes(common)
        if outcome.work is None:
            return
        usage, timings = outcome.work.usage, outcome.work.timings
        read = {
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        }
        written = {"gen_ai.usage.output_tokens": usage.completion_tokens}
        span.set_attributes({**read, **written})
        context, end = set_span_in_context(span), time.time_ns()
        for name, lasted_ms, own in (
            ("decode", timings.decode_ms, written),
            ("prefill", timings.prefill_ms, read),
            ("queue", timings.queue_ms, {}),
        ):
            start = end - int(lasted_ms * 1e6)
            part = self._tracer.start_span(name, context, attributes={**common, **own}, start_time=start)
            part.end(end)
            end = start

    def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        self._provider.shutdown()


def make_tracing(endpoint: str) -> Tracing | NoTracing:
    """Tracing to a collector, or none for "". Raises SettingsError as `Tracing`."""
    return Tracing(endpoint) if endpoint else NoTracing()

"""Every metric of the service, declared once, and the text that `/metrics` answers.

The engine knows none of this: it calls an observer, and `Metrics` is one (same method names, no import).
Numbers are plain ints and floats that one thread writes: requests on the event loop, everything of the engine
on its thread. They become Prometheus families, with the label `model`, only when a scrape collects, so a step
pays little for being watched. A process, and a test, may hold many `Metrics`.

Counting requests is the business of `service.api.exchange`, the one place that calls `request_received` and
`request_finished`.
"""

from __future__ import annotations

import platform
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from itertools import product
from typing import Protocol

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from service.histogram import Histogram

_BUILD = {"version": version("textgen-service"), "python": platform.python_version()}
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

ENDPOINTS = (
    *("/generate", "/summarize", "/qa", "/tasks/{name}"),
    *("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"),
    *("/", "/generate_stream", "/invocations"),
    "other",
)
_TASK = re.compile(r"/tasks/[^/]+")

# 0.15 ms growing by 1.5 up to 219 s: a small model steps in less than 1 ms, a long job takes minutes.
SECONDS = tuple(round(0.00015 * 1.5**i, 9) for i in range(36))
TOKENS = tuple(float(2**i) for i in range(14))

UNNAMED = "unnamed"  # tenant of keys without a name beside them

INFO = {"textgen_build_info": "always 1; its labels tell what runs"}
GAUGES = {
    "textgen_requests_running": "sequences in the engine's batch",
    "textgen_requests_waiting": "sequences that wait for their turn",
    "textgen_requests_in_flight": "requests received and not finished",
    "textgen_kv_blocks_used_ratio": "share of the KV blocks that running sequences hold",
    "textgen_kernel_fallback": "1 if torch computes because the fast kernels failed",
}
COUNTERS = {
    "textgen_requests_received_total": "requests received, by endpoint",
    "textgen_requests_finished_total": "requests finished, by endpoint and outcome",
    "textgen_connections_refused_total": "connections beyond TEXTGEN_MAX_CONNECTIONS that were turned away",
    "textgen_prompt_tokens_total": "prompt tokens of finished sequences",
    "textgen_generation_tokens_total": "tokens generated",
    "textgen_prefix_cache_queries_total": "prompt blocks looked up in the prefix cache",
    "textgen_prefix_cache_hits_total": "prompt blocks found there",
    "textgen_draft_tokens_total": "draft tokens proposed, by source: the prompt or a draft model",
    "textgen_accepted_tokens_total": "draft tokens accepted, by source",
    "textgen_preemptions_total": "sequences whose blocks were taken for another's",
    "textgen_tenant_requests_total": "requests finished, by the tenant named beside their key",
    "textgen_tenant_prompt_tokens_total": "prompt tokens of finished sequences, by tenant",
    "textgen_tenant_generation_tokens_total": "tokens generated for finished sequences, by tenant",
}
HISTOGRAMS = {
    "textgen_time_to_first_token_seconds": "from submission to the first token",
    "textgen_inter_token_latency_seconds": "between two tokens of one sequence",
    "textgen_request_duration_seconds": "from a request's headers to the last byte of its reply, by endpoint",
    "textgen_request_queue_seconds": "from submission to the first step that holds the sequence",
    "textgen_step_seconds": "one forward pass with sampling",
    "textgen_step_tokens": "tokens of one forward pass",
}
NAMES = {**INFO, **GAUGES, **COUNTERS, **HISTOGRAMS}


class StepNumbers(Protocol):
    """What a step tells: the engine's `StepStats`. The last seven are counts that only grow."""

    @property
    def duration_s(self) -> float: ...
    @property
    def num_rows(self) -> int: ...
    @property
    def num_cache_queries(self) -> int: ...
    @property
    def num_cache_hits(self) -> int: ...
    @property
    def num_drafted(self) -> int: ...
    @property
    def num_accepted(self) -> int: ...
    @property
    def num_model_drafted(self) -> int: ...
    @property
    def num_model_accepted(self) -> int: ...
    @property
    def num_preemptions(self) -> int: ...


class FinishedSequence(Protocol):
    """What a sequence tells at its end: the engine's `SequenceStats`."""

    @property
    def num_prompt_tokens(self) -> int: ...
    @property
    def num_output_tokens(self) -> int: ...
    @property
    def key(self) -> str: ...


def endpoint_of(path: str) -> str:
    """The route template of a path, for a label; `other` for paths that take no work."""
    if _TASK.fullmatch(path):
        return "/tasks/{name}"
    return path if path in ENDPOINTS else "other"


class Metrics:
    """All numbers of one service.

    `levels` is called at each scrape for sequences running, sequences waiting and the share of KV blocks in
    use. Whoever builds the engine sets it; the engine's thread owns these numbers, and they are single reads.

    Args:
        model: value of the label `model`; may be set later, when the model is known.
    """

    def __init__(self, model: str = "") -> None:
        self.model = model
        self.levels: Callable[[], tuple[int, int, float]] = lambda: (0, 0, 0.0)
        self.tenants: Mapping[str, str] = {}  # names by key, as the engine and the exchange tell keys apart
        self.requests_of: Counter[str] = Counter()  # by key
        self.prompt_tokens_of: Counter[str] = Counter()
        self.generation_tokens_of: Counter[str] = Counter()
        self.gauges = dict.fromkeys(GAUGES, 0.0)
        self.drafts = dict.fromkeys(product(("draft", "accepted"), ("prompt", "model")), 0)
        labelled = ("textgen_requests_", "textgen_tenant_", "textgen_draft_", "textgen_accepted_")
        self.counters = dict.fromkeys((name for name in COUNTERS if not name.startswith(labelled)), 0.0)
        self.received = Counter(dict.fromkeys(ENDPOINTS, 0))
        self.finished: Counter[tuple[str, str]] = Counter({(name, "ok"): 0 for name in ENDPOINTS})
        self.durations = {name: Histogram(SECONDS) for name in ENDPOINTS}
        self.histograms = {
            name: Histogram(TOKENS if name.endswith("tokens") else SECONDS)
            for name in HISTOGRAMS
            if name != "textgen_request_duration_seconds"
        }
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    # ---- requests, on the event loop --------------------------------------------------------------------

    @property
    def num_in_flight(self) -> int:
        """Requests received and not finished."""
        return int(self.gauges["textgen_requests_in_flight"])

    def request_received(self, endpoint: str) -> None:
        """Count a request in.

        Args:
            endpoint: one of `ENDPOINTS`.
        """
        self.received[endpoint] += 1
        self.gauges["textgen_requests_in_flight"] += 1

    def request_finished(self, endpoint: str, outcome: str, duration_s: float, key: str = "") -> None:
        """Count a request out.

        Args:
            endpoint: what it was counted in as.
            outcome: `ok`, `abort` or one of our error codes, never a text of the client's.
            duration_s: seconds from headers to last byte.
            key: what stands for the key it came with; "" without one.
        """
        self.requests_of[key] += 1
        self.finished[endpoint, outcome] += 1
        self.gauges["textgen_requests_in_flight"] -= 1
        self.durations[endpoint].observe(duration_s)

    def connection_refused(self) -> None:
        """Count a connection that was one too many; it brought no request that was counted."""
        self.counters["textgen_connections_refused_total"] += 1

    # ---- the engine's observer, on its thread -----------------------------------------------------------

    def on_start(self, queue_s: float) -> None:
        """A sequence was admitted after waiting so long."""
        self.histograms["textgen_request_queue_seconds"].observe(queue_s)

    def on_tokens(self, count: int, since_s: float, is_first: bool) -> None:
        """A sequence got `count` tokens at once; the time since its last ones is shared among them."""
        self.counters["textgen_generation_tokens_total"] += count
        if is_first:
            self.histograms["textgen_time_to_first_token_seconds"].observe(since_s)
            return
        for _ in range(count):
            self.histograms["textgen_inter_token_latency_seconds"].observe(since_s / count)

    def on_finish(self, stats: FinishedSequence) -> None:
        """A sequence ended, for whatever reason."""
        self.counters["textgen_prompt_tokens_total"] += stats.num_prompt_tokens
        self.prompt_tokens_of[stats.key] += stats.num_prompt_tokens
        self.generation_tokens_of[stats.key] += stats.num_output_tokens

    def on_step(self, stats: StepNumbers) -> None:
        """A step ended: take over the engine's own counts."""
        self.histograms["textgen_step_seconds"].observe(stats.duration_s)
        self.histograms["textgen_step_tokens"].observe(stats.num_rows)
        self.counters["textgen_prefix_cache_queries_total"] = stats.num_cache_queries
        self.counters["textgen_prefix_cache_hits_total"] = stats.num_cache_hits
        self.drafts["draft", "prompt"] = stats.num_drafted - stats.num_model_drafted
        self.drafts["draft", "model"] = stats.num_model_drafted
        self.drafts["accepted", "prompt"] = stats.num_accepted - stats.num_model_accepted
        self.drafts["accepted", "model"] = stats.num_model_accepted
        self.counters["textgen_preemptions_total"] = stats.num_preemptions

    # ---- the scrape -------------------------------------------------------------------------------------

    def render(self) -> bytes:
        """The exposition text. Call it on the event loop, so that it sees no half-counted request."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Give all families; the registry calls this at every scrape."""
        build = GaugeMetricFamily("textgen_build_info", INFO["textgen_build_info"], labels=["model", *_BUILD])
        build.add_metric([self.model, *_BUILD.values()], 1)
        yield build
        running, waiting, used = self.levels()
        self.gauges["textgen_requests_running"] = running
        self.gauges["textgen_requests_waiting"] = waiting
        self.gauges["textgen_kv_blocks_used_ratio"] = used
        for name, text in GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=["model"])
            gauge.add_metric([self.model], self.gauges[name])
            yield gauge
        yield from self._request_counters()
        yield from self._tenant_counters()
        for name in self.counters:
            counter = CounterMetricFamily(name, COUNTERS[name], labels=["model"])
            counter.add_metric([self.model], self.counters[name])
            yield counter
        yield from self._histogram_families()

    def _labelled(
        self, name: str, labels: Sequence[str], counts: Iterable[tuple[tuple[str, ...], int]]
    ) -> CounterMetricFamily:
        family = CounterMetricFamily(name, COUNTERS[name], labels=["model", *labels])
        for values, count in counts:
            family.add_metric([self.model, *values], count)
        return family

    def _request_counters(self) -> Iterator[Metric]:
        received = {(endpoint,): count for endpoint, count in self.received.items()}
        yield self._labelled("textgen_requests_received_total", ["endpoint"], received.items())
        yield self._labelled(
            "textgen_requests_finished_total", ["endpoint", "outcome"], self.finished.items()
        )
        for kind in ("draft", "accepted"):
            by_source = {(source,): count for (of, source), count in self.drafts.items() if of == kind}
            yield self._labelled(f"textgen_{kind}_tokens_total", ["source"], by_source.items())

    def _tenant_counters(self) -> Iterator[Metric]:
        """Usage by tenant: several keys may have one name, while one takes the other's place, say."""
        for name, by_key in (
            ("textgen_tenant_requests_total", self.requests_of),
            ("textgen_tenant_prompt_tokens_total", self.prompt_tokens_of),
            ("textgen_tenant_generation_tokens_total", self.generation_tokens_of),
        ):
            by_tenant: Counter[str] = Counter()
            for key, count in by_key.copy().items():
                by_tenant[key and (self.tenants.get(key) or UNNAMED)] += count
            counts = {(tenant,): count for tenant, count in (by_tenant or {"": 0}).items()}
            yield self._labelled(name, ["tenant"], counts.items())

    def _histogram_families(self) -> Iterator[Metric]:
        for name, histogram in self.histograms.items():
            family = HistogramMetricFamily(name, HISTOGRAMS[name], labels=["model"])
            family.add_metric([self.model], histogram.buckets(), histogram.sum)
            yield family
        name = "textgen_request_duration_seconds"
        family = HistogramMetricFamily(name, HISTOGRAMS[name], labels=["model", "endpoint"])
        for endpoint, histogram in self.durations.items():
            family.add_metric([self.model, endpoint], histogram.buckets(), histogram.sum)
        yield family

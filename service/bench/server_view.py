"""The server's own account of a run: what its Prometheus metrics grew by between two scrapes.

Parses the text format as far as counters and histograms need; a server without metrics gives nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx

_LINE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]

_HISTOGRAMS = {
    "ttft_ms": "textgen_time_to_first_token_seconds",
    "itl_ms": "textgen_inter_token_latency_seconds",
    "queue_ms": "textgen_request_queue_seconds",
    "step_ms": "textgen_step_seconds",
}


def parse_metrics(text: str) -> Series:
    """Read an exposition: (name, labels without `model`) to value."""
    series: Series = {}
    for line in text.splitlines():
        match = _LINE.match(line)
        if match:
            labels = sorted((k, v) for k, v in _LABEL.findall(match[2] or "") if k != "model")
            series[match[1], tuple(labels)] = float(match[3])
    return series


def total(series: Series, name: str, **labels: str) -> float:
    """Sum of a metric over all series that have the given labels."""
    wanted = set(labels.items())
    return sum(value for (key, its), value in series.items() if key == name and wanted <= set(its))


async def scrape(client: httpx.AsyncClient, url: str) -> Series:
    """Metrics of the server behind a URL of its; empty when it has none."""
    parts = urlsplit(url)
    target = urlunsplit((parts.scheme, parts.netloc, "/metrics", "", ""))
    try:
        response = await client.get(target)
    except httpx.HTTPError:
        return {}
    return parse_metrics(response.text) if response.status_code == 200 else {}


def growth(before: Series, after: Series) -> Series:
    """How much each series grew."""
    return {key: value - before.get(key, 0.0) for key, value in after.items()}


def histogram_quantile(grown: Series, name: str, share: float) -> float | None:
    """Upper bound of the bucket that holds a quantile; None when nothing was observed.

    Args:
        grown: growth of the series.
        name: of the histogram, without `_bucket`.
        share: 0 … 1.
    """
    buckets: dict[float, float] = {}
    for (key, labels), count in grown.items():
        if key == f"{name}_bucket":
            bound = float(dict(labels)["le"])
            buckets[bound] = buckets.get(bound, 0.0) + count
    total = max(buckets.values(), default=0.0)
    reached = [bound for bound, count in sorted(buckets.items()) if total and count >= share * total]
    return reached[0] if reached else None


def view(before: Series, after: Series, duration_s: float) -> Mapping[str, Any]:
    """The server's figures for a run, in the units of the client's; empty when it tells nothing.

    Args:
        before: scraped before the run.
        after: scraped after it.
        duration_s: of the run.
    """
    grown = growth(before, after)
    if not any(key.startswith("textgen_") for key, _ in grown):
        return {}
    figures: dict[str, Any] = {
        "output_tokens_per_s": round(total(grown, "textgen_generation_tokens_total") / duration_s, 2),
        "tokens_per_step": _ratio(grown, "textgen_step_tokens_sum", "textgen_step_tokens_count"),
        "prefix_cache_hit_ratio": _ratio(
            grown, "textgen_prefix_cache_hits_total", "textgen_prefix_cache_queries_total"
        ),
        "draft_accept_ratio": _ratio(grown, "textgen_accepted_tokens_total", "textgen_draft_tokens_total"),
        "preemptions": int(total(grown, "textgen_preemptions_total")),
    }
    for short, name in _HISTOGRAMS.items():
        bounds = {f"p{int(q * 100)}": histogram_quantile(grown, name, q) for q in (0.5, 0.9, 0.99)}
        figures[short] = {key: round(b * 1000, 3) for key, b in bounds.items() if b is not None}
    return figures


def _ratio(grown: Series, above: str, below: str) -> float | None:
    divisor = total(grown, below)
    return round(total(grown, above) / divisor, 4) if divisor else None

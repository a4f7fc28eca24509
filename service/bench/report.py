"""How results are shown: a table for people, one line of JSON for programs, a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from service.bench.summary import Summary

_COLUMNS = (
    "load",
    "requests",
    "tokens/s",
    "req/s",
    "good/s",
    *("TTFT ms", "ITL ms", "TPOT ms", "E2E ms"),
    "errors",
)
NOTE = "TTFT, ITL, TPOT and E2E are p50 / p90 / p99; ITL is the time between two arrivals."


def table(rows: Sequence[Sequence[str]]) -> str:
    """Align columns; the first row is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def result_table(summaries: Sequence[Summary]) -> str:
    """One line for each load and kind of request, and one for what the server says about it."""
    rows: list[Sequence[str]] = [_COLUMNS]
    for summary in summaries:
        rows.append(_row(summary))
        if summary.server:
            rows.append(_server_row(summary.server))
    return table(rows)


def _row(s: Summary) -> list[str]:
    load = f"{s.clients} clients" if s.clients is not None else f"{s.rate:g}/s"
    return [
        load if s.kind == "all" else f"{load} {s.kind}",
        str(s.requests),
        f"{s.output_tokens_per_s:.1f}" + ("" if s.counted_by_server else "~"),
        f"{s.requests_per_s:.2f}",
        "" if s.goodput_per_s is None else f"{s.goodput_per_s:.2f}",
        *map(_three, (s.ttft_ms, s.itl_ms, s.tpot_ms, s.e2e_ms)),
        " ".join(f"{code}={count}" for code, count in sorted(s.errors.items())) or "none",
    ]


def _server_row(server: Mapping[str, Any]) -> list[str]:
    extras = {
        "tokens/step": server["tokens_per_step"],
        "cache hits": server["prefix_cache_hit_ratio"],
        "drafts kept": server["draft_accept_ratio"],
    }
    told = "  ".join(f"{name} {value:g}" for name, value in extras.items() if value is not None)
    tokens = f"{server['output_tokens_per_s']:.1f}"
    return ["server", "", tokens, "", "", _three(server["ttft_ms"]), _three(server["itl_ms"]), "", "", told]


def _three(values: Mapping[str, float]) -> str:
    return " / ".join(f"{value:.1f}" if value < 100 else f"{value:.0f}" for value in values.values()) or "-"


def save_plot(summaries: Sequence[Summary], path: Path) -> None:
    """Throughput and latency against load, as an image.

    Args:
        summaries: those over all kinds of request.
        path: its ending says which format.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    loads = [s.clients if s.clients is not None else s.rate for s in summaries]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot(loads, [s.output_tokens_per_s for s in summaries], marker="o")
    left.set(title="throughput", ylabel="output tokens/s", ylim=(0, None))
    for name, pick in (("TTFT", "ttft_ms"), ("ITL", "itl_ms"), ("E2E", "e2e_ms")):
        for percent, line in (("p50", "-"), ("p99", ":")):
            values = [getattr(s, pick).get(percent) for s in summaries]
            if None not in values:
                right.plot(loads, values, line, marker="o", label=f"{name} {percent}")
    right.set(title="latency", ylabel="ms", yscale="log")
    right.legend(fontsize="small")
    for axes in (left, right):
        axes.set(xlabel="clients" if summaries[0].clients is not None else "requests/s")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)

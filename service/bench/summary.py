"""What a run amounts to: rates, percentiles, goodput, errors by code. Numbers only; `report` shows them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from service.bench.client import Sample

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Objective:
    """What a request must keep to count as good, in milliseconds; None: no bound."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None

    @property
    def is_set(self) -> bool:
        """Whether anything is bounded."""
        return (self.ttft_ms, self.tpot_ms, self.e2e_ms) != (None, None, None)

    def is_kept_by(self, sample: Sample) -> bool:
        """Whether a request was answered in full and in time."""
        pairs = ((self.ttft_ms, sample.ttft_s), (self.tpot_ms, sample.tpot_s), (self.e2e_ms, sample.e2e_s))
        return sample.is_ok and all(
            bound is None or value is None or value * 1000 <= bound for bound, value in pairs
        )


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in numbers. Times in milliseconds; the dicts map `p50`, `p90`, `p99`."""

    clients: int | None
    rate: float | None
    kind: str
    requests: int
    duration_s: float
    output_tokens: int
    output_tokens_per_s: float
    requests_per_s: float
    goodput_per_s: float | None
    ttft_ms: dict[str, float]
    itl_ms: dict[str, float]
    tpot_ms: dict[str, float]
    e2e_ms: dict[str, float]
    errors: dict[str, int]
    counted_by_server: bool
    server: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that so many percent do not exceed: nearest rank, so it is one that was measured.

    Args:
        values: sorted, at least one.
        percent: 0 … 100.
    """
    return values[max(math.ceil(len(values) * percent / 100) - 1, 0)]


def percentiles_ms(seconds: Iterable[float | None]) -> dict[str, float]:
    """p50, p90 and p99 in milliseconds; empty when there is nothing."""
    values = sorted(value * 1000 for value in seconds if value is not None)
    return {f"p{p}": round(percentile(values, p), 3) for p in PERCENTILES} if values else {}


def summarize(
    samples: Sequence[Sample],
    duration_s: float,
    objective: Objective,
    clients: int | None = None,
    rate: float | None = None,
    kind: str = "all",
) -> Summary:
    """Condense samples.

    Args:
        samples: of one run.
        duration_s: of that run.
        objective: what goodput means.
        clients: of a closed loop.
        rate: of an open loop, requests/s.
        kind: name of these samples in the report.
    """
    good = [sample for sample in samples if sample.is_ok]
    num_tokens = sum(sample.output_tokens for sample in good)
    kept = sum(map(objective.is_kept_by, samples))
    return Summary(
        clients=clients,
        rate=rate,
        kind=kind,
        requests=len(samples),
        duration_s=round(duration_s, 3),
        output_tokens=num_tokens,
        output_tokens_per_s=round(num_tokens / duration_s, 2),
        requests_per_s=round(len(good) / duration_s, 3),
        goodput_per_s=round(kept / duration_s, 3) if objective.is_set else None,
        ttft_ms=percentiles_ms(sample.ttft_s for sample in good),
        itl_ms=percentiles_ms(gap for sample in good for gap in sample.gaps_s),
        tpot_ms=percentiles_ms(sample.tpot_s for sample in good),
        e2e_ms=percentiles_ms(sample.e2e_s for sample in good),
        errors=dict(Counter(sample.error for sample in samples if not sample.is_ok)),
        counted_by_server=all(sample.is_counted for sample in good),
    )

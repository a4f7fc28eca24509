"""Metrics: what is declared is served and documented, and counts add up."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import NAMES, SECONDS, Histogram, Metrics

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
STEP = SimpleNamespace(
    duration_s=0.002,
    num_rows=5,
    num_cache_queries=4,
    num_cache_hits=3,
    num_drafted=2,
    num_accepted=1,
    num_model_drafted=1,
    num_model_accepted=1,
    num_preemptions=6,
)


def samples(metrics: Metrics) -> dict[str, float]:
    """Samples by name, summed over labels."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_declared_metric_is_served_with_the_model(name: str) -> None:
    lines = Metrics("m1").render().decode().splitlines()
    found = [line for line in lines if re.match(rf"{name}(_bucket|_count|_sum)?\{{", line)]
    assert found and all('model="m1"' in line for line in found)


@pytest.mark.parametrize("name", NAMES)
def test_every_declared_metric_is_documented(name: str) -> None:
    assert f"`{name}" in OPERATIONS.read_text(encoding="utf-8")


def test_the_text_is_what_prometheus_reads() -> None:
    assert len(samples(Metrics("m"))) > len(NAMES)


def test_a_request_is_in_flight_until_it_is_finished() -> None:
    metrics = Metrics()
    metrics.request_received("/generate")
    before = samples(metrics)["textgen_requests_in_flight"]
    metrics.request_finished("/generate", "ok", 0.1)
    assert (before, samples(metrics)["textgen_requests_in_flight"]) == (1, 0)


def test_a_step_takes_over_the_engines_counts() -> None:
    metrics = Metrics()
    metrics.on_step(STEP)
    found = samples(metrics)
    assert (found["textgen_prefix_cache_hits_total"], found["textgen_preemptions_total"]) == (3, 6)


def test_levels_are_read_at_the_scrape() -> None:
    metrics = Metrics()
    metrics.levels = lambda: (3, 2, 0.5)
    assert samples(metrics)["textgen_kv_blocks_used_ratio"] == 0.5


def test_tokens_that_come_together_share_the_time() -> None:
    metrics = Metrics()
    metrics.on_tokens(4, 0.4, is_first=False)
    found = samples(metrics)
    assert found["textgen_inter_token_latency_seconds_count"] == 4
    assert found["textgen_inter_token_latency_seconds_sum"] == pytest.approx(0.4)


def test_buckets_start_low_and_grow_by_half() -> None:
    assert SECONDS[0] == 0.00015
    assert all(b / a == pytest.approx(1.5, rel=1e-4) for a, b in itertools.pairwise(SECONDS))


@pytest.mark.parametrize(("value", "bucket"), [(0.5, 0), (1.0, 0), (1.5, 1), (9.0, 2)])
def test_a_value_on_a_bound_is_in_its_bucket(value: float, bucket: int) -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.observe(value)
    assert histogram.counts[bucket] == 1


def test_two_services_share_nothing() -> None:
    one, two = Metrics(), Metrics()
    one.request_received("/qa")
    assert two.num_in_flight == 0


def usage(metrics: Metrics, name: str) -> dict[str, float]:
    """One of the usage counters by tenant."""
    families = {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}
    return {sample.labels["tenant"]: sample.value for sample in families[name].samples}


def test_usage_is_counted_by_the_tenants_names_and_never_by_keys() -> None:
    metrics = Metrics()
    metrics.tenants = {"old-key": "acme", "new-key": "acme", "other-key": ""}
    for key, prompt, output in (("old-key", 5, 2), ("new-key", 3, 1), ("other-key", 7, 7)):
        metrics.on_finish(SimpleNamespace(key=key, num_prompt_tokens=prompt, num_output_tokens=output))
        metrics.request_received("/generate")
        metrics.request_finished("/generate", "ok", 0.1, key)
    assert usage(metrics, "textgen_tenant_prompt_tokens") == {"acme": 8, "unnamed": 7}
    assert usage(metrics, "textgen_tenant_generation_tokens") == {"acme": 3, "unnamed": 7}
    assert usage(metrics, "textgen_tenant_requests") == {"acme": 2, "unnamed": 1}
    assert "-key" not in metrics.render().decode()


def test_without_keys_usage_has_no_tenant() -> None:
    metrics = Metrics()
    metrics.on_finish(SimpleNamespace(key="", num_prompt_tokens=4, num_output_tokens=1))
    assert usage(metrics, "textgen_tenant_prompt_tokens") == {"": 4}


def test_the_process_and_what_it_runs_are_told() -> None:
    found = samples(Metrics("m"))
    assert found["textgen_build_info"] == 1
    assert {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"} <= found.keys()


def test_drafts_are_counted_by_source() -> None:
    metrics = Metrics("m")
    metrics.on_step(STEP)
    text = metrics.render().decode()
    assert 'textgen_draft_tokens_total{model="m",source="prompt"} 1.0' in text
    assert 'textgen_draft_tokens_total{model="m",source="model"} 1.0' in text
    assert 'textgen_accepted_tokens_total{model="m",source="prompt"} 0.0' in text
    assert 'textgen_accepted_tokens_total{model="m",source="model"} 1.0' in text

"""Dashboard, alert rules and scrape configuration: what they name exists, and Prometheus can compute it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from deploy_files import DEPLOY, free_port, tool
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from live_service import Live, expect

from service.metrics import NAMES

GRAFANA = DEPLOY / "grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards" / "textgen.json").read_text(encoding="utf-8"))
QUERIES = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]
OF_THE_PROCESS = {"process_cpu_seconds_total", "process_resident_memory_bytes"}  # of the client library
PANELS = {
    "Requests by outcome": "textgen_requests_finished_total",
    "Refusals by reason": "textgen_requests_finished_total",
    "Time to the first token: half, and 99 of 100": "textgen_time_to_first_token_seconds",
    "Time to the first token: how many": "textgen_time_to_first_token_seconds",
    "Time between tokens: half, and 99 of 100": "textgen_inter_token_latency_seconds",
    "Time between tokens: how many": "textgen_inter_token_latency_seconds",
    "Running and waiting": "textgen_requests_waiting",
    "Tokens a second": "textgen_generation_tokens_total",
    "KV cache in use": "textgen_kv_blocks_used_ratio",
    "Prompt blocks from the prefix cache": "textgen_prefix_cache_hits_total",
    "Draft tokens accepted": "textgen_accepted_tokens_total",
    "Replicas": "textgen_build_info",
}


def provisioned_source() -> dict[str, Any]:
    text = (GRAFANA / "provisioning/datasources/prometheus.yml").read_text(encoding="utf-8")
    [source] = yaml.safe_load(text)["datasources"]
    assert isinstance(source, dict)
    return source


def runnable(query: str) -> str:
    """A query with the dashboard's variables filled in."""
    return query.replace("$__rate_interval", "1m").replace("$model", ".*").replace("$instance", ".*")


@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_every_metric_of_a_panel_is_declared(title: str, query: str) -> None:
    named = set(re.findall(r"\b(?:textgen|process)_[a-z_]+", query)) - {"process_"}
    bases = {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}
    assert bases and bases <= {*NAMES, *OF_THE_PROCESS}


@pytest.mark.parametrize(("title", "metric"), PANELS.items())
def test_what_an_operator_asks_for_has_its_panel(title: str, metric: str) -> None:
    assert any(metric in query for panel, query in QUERIES if panel == title)


def as_grafana_reads_it(dashboard: dict[str, Any]) -> dict[str, Any]:
    """What Grafana's own models keep of a dashboard: what they know."""
    register_default_plugins()
    encoded: dict[str, Any] = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))
    return encoded


def lost(given: Any, kept: Any, path: str = "") -> list[str]:
    """Paths of what is missing or other in `kept`; defaults that it adds are none."""
    if isinstance(given, dict) and isinstance(kept, dict):
        return [each for key in given for each in lost(given[key], kept.get(key), f"{path}.{key}")]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        return [each for at, item in enumerate(given) for each in lost(item, kept[at], f"{path}[{at}]")]
    return [] if given == kept else [path]


def test_grafanas_own_models_know_every_field() -> None:
    assert lost(DASHBOARD, as_grafana_reads_it(DASHBOARD)) == []


@pytest.mark.parametrize("place", ["panel", "options", "target", "field"])
def test_grafanas_own_models_know_no_misspelt_field(place: str) -> None:
    wrong = json.loads(json.dumps(DASHBOARD))
    panel = wrong["panels"][0]
    places = {"panel": panel, "options": panel["options"], "target": panel["targets"][0]}
    {**places, "field": panel["fieldConfig"]["defaults"]}[place]["legned"] = "x"
    assert len(lost(wrong, as_grafana_reads_it(wrong))) == 1


def test_panels_do_not_overlap_and_have_numbers_of_their_own() -> None:
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_every_panel_asks_the_data_source_that_the_page_chooses() -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    sources = [target["datasource"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    assert all(source == chosen for source in sources)
    variables = {entry["name"]: entry for entry in DASHBOARD["templating"]["list"]}
    provisioned = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())
    assert [entry["uid"] for entry in provisioned["datasources"]] == [
        variables["datasource"]["current"]["value"]
    ]


def test_compose_mounts_what_grafana_is_provisioned_with() -> None:
    compose = yaml.safe_load((DEPLOY.parent / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    mounted = dict(volume.split(":")[:2] for volume in compose["grafana"]["volumes"])
    assert compose["grafana"]["profiles"] == ["dashboards"]
    assert mounted["./deploy/grafana/provisioning"] == "/etc/grafana/provisioning"
    provider = yaml.safe_load((GRAFANA / "provisioning/dashboards/textgen.yml").read_text())["providers"][0]
    assert mounted["./deploy/grafana/dashboards"] == provider["options"]["path"]
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"][
        0
    ]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in compose


def test_every_alert_rule_is_tested() -> None:
    rules = yaml.safe_load((DEPLOY / "alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
    tests = yaml.safe_load((DEPLOY / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]
    fired = {
        check["alertname"] for test in tests for check in test["alert_rule_test"] if check.get("exp_alerts")
    }
    assert fired == {rule["alert"] for rule in rules}


# ---- with Prometheus itself -----------------------------------------------------------------------------


@pytest.mark.tools
@pytest.mark.parametrize(
    "arguments", [["test", "rules", "alerts_test.yml"], ["check", "config", "prometheus.yml"]]
)
def test_promtool_has_nothing_to_say(arguments: list[str]) -> None:
    done = subprocess.run([tool("promtool"), *arguments], cwd=DEPLOY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def prometheus(live: Live, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Prometheus with our configuration, but for the address it scrapes and how often."""
    program, port = tool("prometheus"), free_port()
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {"scrape_interval": "250ms", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DEPLOY / "alerts.yml")]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{live.port}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    process = subprocess.Popen(
        [*command, f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"], cwd=folder
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            expect(lambda: process.poll() is not None or _is_up(client), "a scrape")
            _ask_much(live)
            expect(lambda: values(client, "rate(textgen_generation_tokens_total[1m]) > 0"), "tokens a second")
            yield client
    finally:
        process.terminate()
        process.wait(60)


def _is_up(client: httpx.Client) -> bool:
    """Whether Prometheus answers queries (it says 503 until it does) and has scraped the service."""
    try:
        return client.get("/-/ready").is_success and values(client, 'up{job="textgen"} == 1') != []
    except httpx.TransportError:
        return False


def _ask_much(live: Live) -> None:
    """Something for every panel: tokens, a prompt twice, a refusal."""
    for _ in range(3):
        live.post("/generate", {"prompt": "one and two and three and four " * 3, "max_new_tokens": 40})
    live.post("/generate", {"prompt": "a", "max_new_tokens": -1})


def values(client: httpx.Client, query: str) -> list[Any]:
    reply = client.get("/api/v1/query", params={"query": query}).json()
    assert reply["status"] == "success", reply
    found: list[Any] = reply["data"]["result"]
    return found


WITHOUT_VALUE = {"Draft tokens accepted"}  # a tiny model's steps are too cheap for drafts to pay


@pytest.mark.tools
@pytest.mark.parametrize(("title", "query"), QUERIES)
def test_every_panel_shows_something_of_a_running_service(
    prometheus: httpx.Client, title: str, query: str
) -> None:
    command = [tool("promtool"), "query", "instant", str(prometheus.base_url), runnable(query)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() or title in WITHOUT_VALUE


@pytest.mark.tools
def test_the_alert_rules_evaluate_and_a_healthy_service_raises_none(prometheus: httpx.Client) -> None:
    def rules() -> list[Any]:
        groups = prometheus.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    expect(lambda: all(rule["health"] == "ok" for rule in rules()), "an evaluation")
    assert [rule["name"] for rule in rules() if rule["state"] != "inactive"] == []


def test_the_configuration_is_where_compose_mounts_it() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    assert all((DEPLOY / Path(name)).exists() for name in config["rule_files"])

"""Two replicas on Ray Serve behind HAProxy: what clients see, and what dying parts cost them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import yaml
from conftest import NUM_GPUS
from live_service import expect
from ray_cluster import STREAM, WAIT_S, Cluster

pytest.importorskip("ray", reason="the extra `scale` is not installed: make test-scale")

pytestmark = [pytest.mark.scale, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
NUM_CLIENTS = 32
GENERATED = "textgen_generation_tokens_total"


def test_a_stream_comes_frame_by_frame(cluster: Cluster) -> None:
    with cluster.http.stream("POST", "/generate", json=STREAM) as reply:
        reads = list(reply.iter_raw())
    num_frames = b"".join(reads).count(b"event: ")
    assert num_frames > 50 and len(reads) > num_frames / 2


def test_refusals_are_ours(cluster: Cluster) -> None:
    wrong = cluster.http.post("/generate", json={"prompt": "a", "max_new_tokens": -1})
    assert (wrong.status_code, wrong.json()["error"]["param"]) == (422, "max_new_tokens")
    missing = cluster.http.get("/nowhere")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")


def test_a_request_id_comes_back(cluster: Cluster) -> None:
    reply = cluster.http.get("/livez", headers={"x-request-id": "mine"})
    assert set(reply.headers.get_list("x-request-id")) == {"mine"}


def test_too_many_sequences_get_our_429(cluster: Cluster) -> None:
    body = {**STREAM, "stream": False, "n": 16}

    def ask(_: int) -> httpx.Response:
        return httpx.post(f"{cluster.url}/generate", json=body, timeout=120)

    with ThreadPoolExecutor(24) as pool:  # 384 sequences, and room for 80 at each replica
        replies = list(pool.map(ask, range(24)))
    refused = [reply for reply in replies if reply.status_code != 200]
    assert {reply.status_code for reply in refused} == {429}
    assert {reply.json()["error"]["code"] for reply in refused} == {"queue_full"}
    assert all(int(reply.headers["retry-after"]) >= 1 for reply in refused)


def test_clients_that_leave_free_their_sequences(cluster: Cluster) -> None:
    before = cluster.total("textgen_requests_finished_total")
    clients = [httpx.Client(base_url=cluster.url, timeout=60) for _ in range(8)]
    for client in clients:
        request = client.build_request("POST", "/generate", json=STREAM)
        next(client.send(request, stream=True).iter_raw())
        client.close()
    expect(lambda: cluster.total("textgen_requests_in_flight") == 0, "the end of all", WAIT_S)
    expect(lambda: cluster.total("textgen_requests_running") == 0, "empty batches", WAIT_S)
    assert cluster.total("textgen_requests_finished_total") >= before + 8


def test_both_replicas_serve_and_ray_exports_their_metrics_apart(cluster: Cluster) -> None:
    cluster.ends_while(lambda: None)
    pages = cluster.own_pages()
    counts = [re.search(rf"^{GENERATED}{{.*}} (\S+)$", page, re.MULTILINE) for page in pages]
    assert [count is not None and float(count[1]) > 0 for count in counts] == [True, True]

    def replicas() -> list[str]:
        return [name for name, value in cluster.exported(GENERATED).items() if value > 0]

    expect(lambda: len(replicas()) == 2 and "" not in replicas(), "both at the exporter", WAIT_S)


def test_compute_threads_are_as_many_as_rays_processors(cluster: Cluster) -> None:
    assert cluster.http.get("/info").json()["model"]["num_threads"] == 1


def test_a_scale_down_loses_no_stream(cluster: Cluster) -> None:
    ends = cluster.ends_while(lambda: cluster.deploy(1), 2 * NUM_CLIENTS)
    cluster.deploy(2)
    assert set(ends) == {"done"} and ends.total() >= 2 * NUM_CLIENTS


def test_replicas_come_and_go_with_the_sequences_and_no_stream_is_lost(cluster: Cluster) -> None:
    cluster.apply({"min_replicas": 1, "max_replicas": 3, "downscale_delay_s": 2})
    expect(lambda: len(cluster.pids()) == 1, "one replica without work", WAIT_S)

    def grown() -> None:  # 32 sequences are two and a half times three quarters of a batch of 16
        expect(lambda: len(cluster.pids()) == 3, "three replicas", WAIT_S)

    ends = cluster.ends_while(grown, NUM_CLIENTS)
    expect(lambda: len(cluster.pids()) == 1, "one replica again", WAIT_S)
    assert set(ends) == {"done"}
    cluster.deploy(2)


def test_each_replica_gets_the_gpus_that_were_asked_for(cluster: Cluster) -> None:
    expect(lambda: cluster.free("GPU") == NUM_GPUS, "GPUs that nobody has", WAIT_S)
    cluster.apply({"min_replicas": 2, "max_replicas": 2, "num_gpus": 0.5})
    expect(lambda: cluster.free("GPU") == NUM_GPUS - 1, "two halves taken", WAIT_S)
    assert len(cluster.pids()) == 2
    cluster.deploy(2)


def test_a_redeploy_loses_no_stream(cluster: Cluster) -> None:
    before = cluster.pids()
    ends = cluster.ends_while(lambda: cluster.deploy(2, TEXTGEN_LOG_LEVEL="warning"), NUM_CLIENTS)
    assert set(ends) == {"done"} and ends.total() >= NUM_CLIENTS
    assert not set(before) & set(cluster.pids())
    cluster.deploy(2)


def test_a_redeploy_of_what_cannot_be_served_fails_and_the_old_version_serves_on(cluster: Cluster) -> None:
    before = cluster.pids()

    def redeploy() -> None:
        with pytest.raises(RuntimeError):
            cluster.deploy(2, TEXTGEN_MODEL="/nowhere/at-all")

    ends = cluster.ends_while(redeploy, NUM_CLIENTS)
    assert set(ends) == {"done"}
    assert set(before) <= set(cluster.pids())
    cluster.deploy(2)


def test_a_replica_that_hangs_is_passed_over_and_replaced(cluster: Cluster) -> None:
    [hung, other] = cluster.pids()
    os.kill(hung, signal.SIGSTOP)
    expect(lambda: cluster.short() == 200, "an answer", WAIT_S)
    expect(lambda: len(set(cluster.pids()) - {hung, other}) == 1, "another in its place", WAIT_S)
    expect(lambda: {cluster.short() for _ in range(20)} == {200}, "answers from all", WAIT_S)
    with suppress(ProcessLookupError):  # Ray may let it stand for minutes yet, and it is no replica any more
        os.kill(hung, signal.SIGKILL)
    expect(lambda: hung not in cluster.pids(), "its end", WAIT_S)
    assert {cluster.short() for _ in range(20)} == {200}


def test_a_replica_that_is_killed_is_replaced_and_only_its_own_streams_end(cluster: Cluster) -> None:
    killed: list[int] = []

    def kill() -> None:
        killed.append(cluster.kill_one())
        expect(lambda: len(set(cluster.pids()) - set(killed)) == 2, "another in its place", WAIT_S)

    ends = cluster.ends_while(kill, NUM_CLIENTS)
    assert ends["done"] > 0 and 0 < ends.total() - ends["done"] <= NUM_CLIENTS
    assert {cluster.short() for _ in range(20)} == {200}


def printed(*options: str) -> str:
    """What `textgen scale --print` prints."""
    command = [sys.executable, "-m", "service.cli", "scale", "--print", *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_command_prints_what_serve_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve.schema import ServeDeploySchema

    monkeypatch.setenv("TEXTGEN_MODEL", "some-model")
    text = printed("--replicas", "2-8", "--cpus", "2", "--gpus", "1")
    [application] = ServeDeploySchema.model_validate(yaml.safe_load(text)).applications
    assert application.args == {
        "min_replicas": 2,
        "max_replicas": 8,
        "num_cpus": 2.0,
        "num_gpus": 1.0,
        "max_surge_percent": 1,
        "downscale_delay_s": 300.0,
    }
    assert application.runtime_env == {"env_vars": {"TEXTGEN_MODEL": "some-model"}}


def test_kuberays_manifest_holds_what_the_command_prints() -> None:
    manifest = yaml.safe_load((ROOT / "deploy/kubernetes/ray/rayservice.yaml").read_text(encoding="utf-8"))
    text = printed("--replicas", "2-8", "--cpus", "4", "--host", "0.0.0.0")
    assert yaml.safe_load(manifest["spec"]["serveConfigV2"]) == yaml.safe_load(text)
    wanted = dict(re.findall(r"^#   (RAY_\w+)=(.*)$", text, re.MULTILINE))
    groups = manifest["spec"]["rayClusterConfig"]
    for group in (groups["headGroupSpec"], *groups["workerGroupSpecs"]):
        [container] = group["template"]["spec"]["containers"]
        given = {entry["name"]: entry["value"] for entry in container["env"]}
        assert wanted and wanted.items() <= given.items()


def test_keys_in_a_variable_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTGEN_API_KEYS", "secret")
    command = [sys.executable, "-m", "service.cli", "scale", "--print"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "use TEXTGEN_API_KEYS_FILE" in done.stderr and "secret" not in done.stderr

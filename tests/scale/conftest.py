"""A real Ray cluster on this machine: a head without room for replicas, and a worker with room for four.

The tests need the extra `scale` (`make test-scale` installs it) and are skipped without it.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from ray_cluster import NUM_PORTS, Cluster, ports

NUM_SLOTS = 4  # replicas of one processor that the worker has room for
NUM_GPUS = 2  # that it says it has; Ray counts them, whatever there is


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests share one cluster, whose start may have to wait for kernels."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(600))
            item.add_marker(pytest.mark.filterwarnings("ignore"))  # Ray's own are none of ours


@contextmanager
def _node(*arguments: str, environment: dict[str, str]) -> Iterator[None]:
    """One `ray start --block`, ended by its own process id with all that it started."""
    ray = str(Path(sys.executable).parent / "ray")
    command = [ray, "start", "--block", "--disable-usage-stats", *arguments]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="session")
def cluster(tiny_model: Path) -> Iterator[Cluster]:
    """Two replicas of the tiny model behind HAProxy."""
    from service.scale import environment
    from service.settings import Settings

    gcs, http, metrics, haproxy_metrics, haproxy_stats, replica_port = ports(6)
    variables = environment(Settings()) | {
        "TEXTGEN_MODEL": str(tiny_model),
        "TEXTGEN_SPECULATION": "0",
        "TEXTGEN_MAX_RUNNING": "16",
        "TEXTGEN_MAX_WAITING": "64",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(haproxy_metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(haproxy_stats),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(replica_port),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(replica_port + NUM_PORTS),
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        "RAY_raylet_start_wait_time_s": "300",  # on a busy machine
        "RAY_AUTH_MODE": "disabled",  # else it depends on what lies in the home folder
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
        given = {**os.environ, **variables}
        head = [f"--port={gcs}", f"--temp-dir={folder}", "--num-cpus=0", "--include-dashboard=false"]
        stack.enter_context(_node("--head", *head, environment=given))
        address = f"{socket.gethostbyname(socket.gethostname())}:{gcs}"
        worker = [f"--address={address}", f"--num-cpus={NUM_SLOTS}", f"--num-gpus={NUM_GPUS}"]
        worker.append(f"--metrics-export-port={metrics}")
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in variables.items():
            patch.setenv(name, value)  # Ray's are read when it is imported
        running = Cluster(address, http, metrics, replica_port, variables)
        running.wait_for_head()
        stack.enter_context(_node(*worker, environment=given))
        stack.enter_context(running.connected())
        running.deploy(2)
        yield running

"""What the tests do to a cluster: deploy, talk to the front, look at each replica, end one."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_service import expect

WAIT_S = 240.0
NUM_PORTS = 100  # that replicas listen on; Ray lets a freed one rest for minutes
STREAM = {"prompt": "go on", "max_new_tokens": 240, "ignore_eos": True, "stream": True}
SHORT = {"prompt": "go on", "max_new_tokens": 2}


def ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return found


class Cluster:
    """See the module's docstring.

    Args:
        address: of the head.
        http, metrics: ports of Serve's front and of Ray's exporter.
        replica_port: the first of `NUM_PORTS` that replicas listen on.
        variables: the environment of whoever deploys.
    """

    def __init__(
        self, address: str, http: int, metrics: int, replica_port: int, variables: dict[str, str]
    ) -> None:
        self.address = address
        self.url = f"http://127.0.0.1:{http}"
        self.http = httpx.Client(base_url=self.url, timeout=60)
        self._http_port, self._metrics, self._replica_port = http, metrics, replica_port
        self._variables = variables

    def wait_for_head(self) -> None:
        """Until the head takes connections."""
        host, _, port = self.address.partition(":")

        def answers() -> bool:
            with socket.socket() as sock:
                return sock.connect_ex((host, int(port))) == 0

        expect(answers, "the head", WAIT_S)

    @contextmanager
    def connected(self) -> Iterator[None]:
        """This process as a driver of the cluster, with Serve started on the head."""
        import ray
        from ray import serve

        def connects() -> bool:
            try:
                ray.init(address=self.address, log_to_driver=False)
            except ConnectionError:  # the head is not quite there yet
                return False
            return True

        expect(connects, "a connection to the head", WAIT_S)
        serve.start(http_options={"host": "127.0.0.1", "port": self._http_port}, proxy_location="HeadOnly")
        try:
            yield
        finally:
            self.http.close()
            ray.shutdown()

    def deploy(self, replicas: int, **more: str) -> None:
        """Run so many replicas; more variables make a new version of all. Returns when it is done."""
        self.apply({"min_replicas": replicas, "max_replicas": replicas}, **more)
        expect(lambda: len(self.pids()) == replicas, f"{replicas} replicas", WAIT_S)
        expect(lambda: self.short() == 200, "an answer", WAIT_S)

    def apply(self, args: dict[str, float], **more: str) -> None:
        """Run what arguments of `app` and variables ask for; returns when Serve calls it running."""
        from ray import serve

        from service.scale import app

        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**self._variables, **more}.items():
                patch.setenv(name, value)
            wanted = app(args)
        serve.run(wanted, name="textgen", route_prefix="/")

    def short(self) -> int:
        """Status of a short request, 0 without an answer within ten seconds."""
        try:
            return httpx.post(f"{self.url}/generate", json=SHORT, timeout=10).status_code
        except httpx.TransportError:
            return 0

    def free(self, resource: str) -> float:
        """How much of what Ray manages is nobody's."""
        import ray

        return float(ray.available_resources().get(resource, 0))

    # ---- replicas ---------------------------------------------------------------------------------------

    def pids(self) -> list[int]:
        """Processes of the replicas that answer."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                title = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::ServeReplica:textgen"):
                found.append(int(folder.name))
        return sorted(found)

    def kill_one(self) -> int:
        """End a replica without a word, once each has streams; returns its process."""
        expect(lambda: min(self.each("textgen_requests_in_flight")) >= 4, "streams on each replica", WAIT_S)
        pid = self.pids()[0]
        os.kill(pid, signal.SIGKILL)
        return pid

    def own_pages(self) -> list[str]:
        """`/metrics` of each replica, from its own port."""
        pages = []
        with httpx.Client(timeout=10) as http:
            for port in range(self._replica_port, self._replica_port + NUM_PORTS):
                try:
                    pages.append(http.get(f"http://127.0.0.1:{port}/metrics").text)
                except httpx.TransportError:
                    continue
        return pages

    def each(self, metric: str) -> list[float]:
        """A number of each replica, its series added up."""
        line = re.compile(rf"^{metric}{{[^}}]*}} (\S+)$", re.MULTILINE)
        return [sum(float(value) for value in line.findall(page)) for page in self.own_pages()]

    def total(self, metric: str) -> float:
        """A number of all replicas together."""
        return sum(self.each(metric))

    def exported(self, metric: str) -> Counter[str]:
        """A metric at Ray's exporter, by replica."""
        text = httpx.get(f"http://127.0.0.1:{self._metrics}/metrics", timeout=30).text
        found: Counter[str] = Counter()
        for labels, value in re.findall(rf"^ray_{metric}{{([^}}]*)}} (\S+)$", text, re.MULTILINE):
            replica = re.search(r'replica="([^"]+)"', labels)
            found[replica[1] if replica else ""] += float(value)  # type: ignore[assignment]
        return found

    # ---- load -------------------------------------------------------------------------------------------

    def stream(self, http: httpx.Client) -> str:
        """How one stream ended: `done`, `error`, or `cut`."""
        try:
            with http.stream("POST", "/generate", json=STREAM) as reply:
                body = b"".join(reply.iter_raw())  # raw, for the clients must not be slower than the replicas
        except httpx.TransportError:
            return "cut"
        last = re.findall(rb"^event: (\w+)$", body, re.MULTILINE)[-1:]
        return last[0].decode() if last in ([b"done"], [b"error"]) else "cut"

    def ends_while(self, work: Callable[[], Any], num_clients: int = 32) -> Counter[str]:
        """Ends of the streams that so many clients ask for, one after the other, while something is done."""
        is_over = threading.Event()

        def ask() -> list[str]:
            no_reuse = httpx.Limits(max_keepalive_connections=0)  # HAProxy closes idle ones at a reload
            with httpx.Client(base_url=self.url, timeout=120, limits=no_reuse) as http:
                ends = [self.stream(http)]
                while not is_over.is_set():
                    ends.append(self.stream(http))
                return ends

        with ThreadPoolExecutor(num_clients) as pool:
            asking = [pool.submit(ask) for _ in range(num_clients)]
            try:
                expect(lambda: self.total("textgen_requests_in_flight") >= num_clients / 2, "load", WAIT_S)
                work()
            finally:
                is_over.set()
            return Counter(end for each in asking for end in each.result())

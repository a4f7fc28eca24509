"""What Ray Serve's front costs: one replica on Ray beside one process, asked in turns by the same clients.

    python bench/front.py [--seconds 5] [--clients 32 8 1]

Starts both with one thread each, and needs the extra `scale`. Every client asks for streams of 64 tokens, one
after the other. Processor time is that of the process, and of all that Ray runs: replica, HAProxy, raylet,
controller.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path

from children import end_with_parent

NUM_TOKENS = 64
BODY = json.dumps(
    {"prompt": "Once upon a time", "max_new_tokens": NUM_TOKENS, "ignore_eos": True, "stream": True}
)
OF_RAY = ("ray::", "haproxy", "gcs_server", "raylet", "/ray/", "ray.serve")
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


def processor_seconds(belongs: Callable[[int, str], bool]) -> float:
    """Of all processes that belong, told by their number and command line."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if belongs(int(folder.name), command):
            total += int(fields[11]) + int(fields[12])
    return total / TICKS_A_SECOND


def ask(port: int, until: float) -> int:
    """One client: streams one after the other on one connection; how many."""
    connection = HTTPConnection("127.0.0.1", port, timeout=120)
    count = 0
    while time.monotonic() < until:
        connection.request("POST", "/generate", BODY, {"Content-Type": "application/json"})
        text = connection.getresponse().read()
        if b"event: done" not in text:
            raise SystemExit(f"a stream ended badly: {text[-300:]!r}")
        count += 1
    connection.close()
    return count


def measure(
    port: int, num_clients: int, seconds: float, belongs: Callable[[int, str], bool]
) -> tuple[float, float]:
    """Tokens a second, and milliseconds of processor a request."""
    with ThreadPoolExecutor(num_clients) as pool:
        before, started = processor_seconds(belongs), time.monotonic()
        count = sum(pool.map(lambda _: ask(port, started + seconds), range(num_clients)))
        taken, used = time.monotonic() - started, processor_seconds(belongs) - before
    return count * NUM_TOKENS / taken, 1000 * used / count


def wait_until_ready(port: int) -> None:
    """Until it answers."""
    while True:
        with suppress(OSError):  # nobody listens yet
            connection = HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.2)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--clients", type=int, nargs="+", default=[32, 8, 1])
    given = parser.parse_args()
    direct, front = free_port(), free_port()
    textgen = [sys.executable, "-m", "service.cli"]
    environment = {**os.environ, "TEXTGEN_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    quiet["preexec_fn"] = end_with_parent
    one = subprocess.Popen([*textgen, "serve", "--port", str(direct)], **quiet)
    ray = subprocess.Popen(
        [*textgen, "scale", "--replicas", "1", "--cpus", "1", "--port", str(front)], **quiet
    )
    try:
        targets = {
            direct: lambda number, command: number == one.pid,
            front: lambda number, command: any(sign in command for sign in OF_RAY),
        }
        for port, belongs in targets.items():
            wait_until_ready(port)
            measure(port, 8, 1.0, belongs)
        print("| clients | tokens/s, direct | Ray | ratio | CPU ms a request, direct | Ray | ratio |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for num_clients in given.clients:
            rates, costs = zip(
                *(measure(port, num_clients, given.seconds, each) for port, each in targets.items()),
                strict=True,
            )
            cells = [rates[0], rates[1], rates[1] / rates[0], costs[0], costs[1], costs[1] / costs[0]]
            print(f"| {num_clients} | " + " | ".join(f"{cell:.4g}" for cell in cells) + " |", flush=True)
    finally:
        for process in (one, ray):
            process.terminate()
            process.wait(60)


if __name__ == "__main__":
    main()

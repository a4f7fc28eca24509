"""Seconds from `textgen serve` to the first 200 of `/readyz`, of one checkout or of several in turns.

    python bench/start.py [CHECKOUT …] [--model FOLDER] [--times 5]

starts each checkout's service (this one's, if none is named) with compiled kernels: a first start, which
compiles them, is not counted. A line for each start: seconds, processor time until then (all threads), memory
(of it anonymous, MB), and the steps that the log tells with their seconds; then medians.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).resolve().parent.parent
_EVERY_S = 0.01
_ASKED = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Start:
    """One start until it was ready."""

    seconds: float
    processor_s: float
    resident_mb: int
    anonymous_mb: int
    steps: str


def is_ready(port: int) -> bool:
    """Whether the service there says so; a listener that does not answer yet is waited for."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(_ASKED)
            return connection.recv(64).startswith(b"HTTP/1.1 200")
    except ConnectionError:
        return False


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def start(checkout: Path, model: str) -> Start:
    """Start a checkout's service, wait until it is ready, and stop it."""
    port = free_port()
    command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port), "--log-format", "json"]
    if model:
        command += ["--model", model]
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=checkout, stderr=subprocess.PIPE, text=True)
    while not is_ready(port):
        if process.poll() is not None:
            raise SystemExit(process.communicate()[1])
        time.sleep(_EVERY_S)
    seconds = time.monotonic() - began
    proc = Path(f"/proc/{process.pid}")
    ticks = sum(map(int, (proc / "stat").read_text().rpartition(")")[2].split()[11:13]))
    lines = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    resident, anonymous = (int(lines[name].split()[0]) // 1000 for name in ("VmRSS", "RssAnon"))
    process.send_signal(signal.SIGTERM)
    log = [json.loads(line) for line in process.communicate()[1].splitlines()]
    steps = "; ".join(f"{line['event']} {line['seconds']}" for line in log if "seconds" in line)
    return Start(seconds, ticks / os.sysconf("SC_CLK_TCK"), resident, anonymous, steps)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("checkouts", nargs="*", type=Path, default=[_HERE])
    parser.add_argument("--model", default="", help="a folder; default: the built-in model")
    parser.add_argument("--times", type=int, default=5)
    given = parser.parse_args()
    starts: dict[Path, list[Start]] = {checkout: [] for checkout in given.checkouts}
    for checkout in starts:
        start(checkout, given.model)  # compiles kernels, and brings files into memory
    for turn in range(given.times):
        for checkout in list(starts) if turn % 2 == 0 else reversed(starts):
            done = start(checkout, given.model)
            starts[checkout].append(done)
            print(
                f"{checkout}: {done.seconds:.2f} s, processor {done.processor_s:.2f} s, "
                f"{done.resident_mb} MB ({done.anonymous_mb}): {done.steps}",
                flush=True,
            )
    for checkout, of_checkout in starts.items():
        seconds = statistics.median(each.seconds for each in of_checkout)
        processor_s = statistics.median(each.processor_s for each in of_checkout)
        print(f"{checkout}: median {seconds:.2f} s, processor {processor_s:.2f} s")


if __name__ == "__main__":
    main()

"""A server of our own for one scenario: `textgen serve` as a subprocess on a free loopback port.

Also what can be seen of it from outside: readiness, metrics, memory, file descriptors, log.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from service.bench.server_view import Series, scrape, total
from service.bench.wire import make_client

_START_S = 300.0  # compiling the kernels for the first time, on a busy machine
_IDLE_S = 20.0


class ServerFailed(RuntimeError):
    """The server did not start, or did not come to rest; says where its log is."""


@dataclass(frozen=True, slots=True)
class ChaosOptions:
    """What the command line says.

    Args:
        model: to serve; empty: the built-in one.
        num_requests: of the conservation scenario.
        num_clients: leaving clients of the disconnect scenario.
        seconds: of each load in the overload scenario.
        seed: of every random choice.
        log_dir: where logs are kept; None: a temporary folder.
    """

    model: str = ""
    num_requests: int = 10_000
    num_clients: int = 200
    seconds: float = 10.0
    seed: int = 0
    log_dir: Path | None = None


class Server:
    """Use as `async with Server(options, {...}) as server`; leaving it ends the process.

    Args:
        options: the model and where the log goes.
        settings: `TEXTGEN_*` variables without the prefix.
        name: of the log file.
    """

    def __init__(self, options: ChaosOptions, settings: Mapping[str, str], name: str) -> None:
        folder = options.log_dir or Path(tempfile.mkdtemp(prefix="textgen-chaos-"))
        folder.mkdir(parents=True, exist_ok=True)
        self.log_path = folder / f"{name}.log"
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = dict(os.environ)
        model = {"MODEL": options.model} if options.model else {}
        wanted = {"HOST": "127.0.0.1", "PORT": str(self.port), "LOG_FORMAT": "json", **model, **settings}
        self._environment |= {f"TEXTGEN_{key}": value for key, value in wanted.items()}

    async def __aenter__(self) -> Self:
        with self.log_path.open("wb") as log:
            command = [sys.executable, "-m", "service.cli", "serve"]
            self.process = await asyncio.create_subprocess_exec(
                *command, env=self._environment, stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL
            )
        self.client = make_client()
        try:
            await self._until_ready()
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.client.aclose()
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def _until_ready(self) -> None:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self.process.returncode is None:
            with contextlib.suppress(httpx.HTTPError):  # not listening yet
                if (await self.client.get(f"{self.url}/readyz")).status_code == 200:
                    return
            await asyncio.sleep(0.1)
        raise ServerFailed(f"not ready; its log: {self.log_path}\n{self.log()[-2000:]}")

    # ---- what can be seen of it -------------------------------------------------------------------------

    async def metrics(self) -> Series:
        """Scrape it."""
        return await scrape(self.client, self.url)

    async def seconds_until_idle(self, within_s: float = _IDLE_S) -> float:
        """Wait until nothing is in flight, running, waiting or held in blocks.

        Args:
            within_s: how long that may take.

        Raises:
            ServerFailed: something is still there after long.
        """
        began_at = time.monotonic()
        while time.monotonic() - began_at < within_s:
            series = await self.metrics()
            if series and not any(leftovers(series).values()):
                return time.monotonic() - began_at
            await asyncio.sleep(0.02)
        raise ServerFailed(f"not idle after {within_s:g} s: {leftovers(series)}; its log: {self.log_path}")

    def log(self) -> str:
        """Everything it has written."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def log_faults(self) -> str:
        """The first line that tells of an exception; empty when there is none."""
        lines = self.log().splitlines()
        bad = [
            line for line in lines if "Traceback" in line or '"level": "error"' in line or "[error" in line
        ]
        return bad[0][:300] if bad else ""

    def rss_bytes(self) -> int:
        """Resident memory; 0 where /proc does not tell."""
        status = Path(f"/proc/{self.process.pid}/status")
        lines = status.read_text().splitlines() if status.exists() else []
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS")), 0)

    def num_descriptors(self) -> int:
        """Open file descriptors; 0 where /proc does not tell."""
        folder = Path(f"/proc/{self.process.pid}/fd")
        return len(list(folder.iterdir())) if folder.exists() else 0

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    async def exit_code(self, within_s: float) -> int | None:
        """Wait for its end; None when it has not come."""
        try:
            return await asyncio.wait_for(self.process.wait(), within_s)
        except TimeoutError:
            return None


def leftovers(series: Series) -> dict[str, float]:
    """What an idle server must have none of."""
    names = ("requests_in_flight", "requests_running", "requests_waiting", "kv_blocks_used_ratio")
    return {name: total(series, f"textgen_{name}") for name in names}


def imbalance(series: Series) -> float:
    """Received minus finished minus in flight: 0 at every scrape."""
    received = total(series, "textgen_requests_received_total")
    finished = total(series, "textgen_requests_finished_total")
    return received - finished - total(series, "textgen_requests_in_flight")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port

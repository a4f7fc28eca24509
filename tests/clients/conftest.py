"""A service for clients that live in an environment of their own: `make test-clients` says which.

Nothing of this project is imported here. The service is a process of the project's own interpreter.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODEL = "textgen-7m"
START_S = 300.0  # a first start compiles kernels


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """Where the built-in model is served."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [os.environ["TEXTGEN_PYTHON"], "-m", "service.cli", "serve", "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TEXTGEN_")}
    with subprocess.Popen(command, cwd=ROOT, env={**environment, "PYTHONPATH": str(ROOT)}) as service:
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}/readyz", service)
            yield f"http://127.0.0.1:{port}"
        finally:
            service.terminate()


def _wait_until_ready(address: str, service: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_S
    while service.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(address):
                return
        except urllib.error.URLError:
            time.sleep(0.2)
    raise RuntimeError("the service did not become ready")

"""What the tests of deploy/ share: where the files are, and a running service with the tiny model.

Tests that need a program from outside (Debian's nginx, Prometheus, systemd) carry the mark `tools`; they
are run by `make test-deploy` and skipped, with the reason, where the program is missing.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_service import COLD_START_S, Live, running

from service.settings import Settings

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def tool(name: str) -> str:
    """Path of a program; skips the test where it is missing."""
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]
    path = shutil.which(name, path=os.pathsep.join(folders))
    if path is None:
        pytest.skip(f"{name} is not installed here (Debian: apt install nginx prometheus systemd)")
    return path


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whichever test starts the first service waits for its kernels."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(COLD_START_S + 60))


@pytest.fixture(scope="module")
def live(tiny_model: Path) -> Iterator[Live]:
    """A service with the tiny model."""
    with running(Settings(model=str(tiny_model), port=0, threads=1, speculation=False)) as service:
        yield service

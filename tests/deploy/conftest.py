"""What the tests of deploy/ share: where the files are, and a running service with the tiny model.

Tests that need a program from outside (Debian's nginx, Prometheus, systemd) carry the mark `tools`; they
are run by `make test-deploy` and skipped, with the reason, where the program is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from live_service import COLD_START_S, Live, running

from service.settings import Settings


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

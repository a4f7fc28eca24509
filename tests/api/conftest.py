"""Running services for the tests of this folder, all with the tiny model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from live_service import Live, running

from service.settings import Settings


@pytest.fixture(scope="session")
def serve(tiny_model: Path) -> Iterator[Callable[..., Live]]:
    """Start services with these settings; they stop when the tests end."""
    with ExitStack() as stack:

        def start(engine: Any = None, is_ready: bool = True, **settings: Any) -> Live:
            chosen = {"model": str(tiny_model), "port": 0, "threads": 1, "speculation": False, **settings}
            return stack.enter_context(running(Settings(**chosen), engine, is_ready))

        yield start


@pytest.fixture(scope="session")
def live(serve: Callable[..., Live]) -> Live:
    """A service with plain settings, shared by the tests that leave no trace."""
    return serve(max_body_bytes=64 * 1024, body_timeout_s=1.0)

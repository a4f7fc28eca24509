"""Running services for the tests of this folder, all with the tiny model and one compute thread.

`serve(**settings)` starts a service on a free port, in a thread of this process; `live` is one that all tests
share. Kernels are compiled once for a machine and kept on disk: only the very first start is slow, so every
test here may take as long as that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from live_service import COLD_START_S, Live, running

from service.settings import Settings

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whichever test starts the first service waits for its kernels."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.timeout(COLD_START_S + 60))


@pytest.fixture(scope="session")
def serve(tiny_model: Path) -> Iterator[Callable[..., Live]]:
    """Start services with these settings; they stop when the tests end."""
    with ExitStack() as stack:

        def start(engine: Any = None, is_ready: bool = True, loop: str = "auto", **settings: Any) -> Live:
            chosen = {"model": str(tiny_model), "port": 0, "threads": 1, "speculation": False, **settings}
            return stack.enter_context(running(Settings(**chosen), engine, is_ready, loop))

        yield start


@pytest.fixture(scope="session")
def live(serve: Callable[..., Live]) -> Live:
    """A service with plain settings, shared by the tests that leave no trace."""
    return serve(max_body_bytes=64 * 1024, body_timeout_s=1.0)


@pytest.fixture(scope="session")
def talkative(serve: Callable[..., Live], tmp_path_factory: pytest.TempPathFactory) -> Live:
    """A service whose model is given a template."""
    file = tmp_path_factory.mktemp("templates") / "chat.jinja"
    file.write_text(TEMPLATE)
    return serve(chat_template=file, model_aliases="gpt-4o=tiny", max_running=8)

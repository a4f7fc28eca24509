"""Real browsers and the built-in model, for the tests of the page. `make test-page` installs what they need.

Without Chromium, its driver or axe-core the tests are skipped, with a line that says so; without Firefox
those in it are.
"""

from __future__ import annotations

import importlib.util
import random
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model_store.chat import ChatFormat
from model_store.task import Task
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
AXE = ROOT / ".page-tools" / "node_modules" / "axe-core" / "axe.min.js"
sys.path.insert(0, str(ROOT / "tests" / "deploy"))

from live_service import COLD_START_S, Live, running  # noqa: E402  the path is known now

BROWSERS = ["chromium", "firefox"]
TABS = ["write", "summarize", "ask", "chat", "tasks"]
LIGHTHOUSE = "The lighthouse was built by two brothers in 1894. It burned down in 1921."
MOOD = Task(
    name="mood",
    kind="choice",
    template="{text}\nMood:",
    labels=("good", "bad", "mixed"),
    description="The mood of a text.",
)


def _missing() -> str:
    """Why there is no browser to test with; "" when there is one."""
    tools = {"chromium": shutil.which("chromium"), "chromedriver": shutil.which("chromedriver")}
    tools["selenium"] = importlib.util.find_spec("selenium")
    tools["axe-core"] = AXE.exists() or None
    return ", ".join(name for name, tool in tools.items() if tool is None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs a browser where there is none."""
    missing = _missing()
    for item in items:
        if item.path.parent != Path(__file__).parent:
            continue
        item.add_marker(pytest.mark.page)
        item.add_marker(pytest.mark.timeout(2 * COLD_START_S))
        if missing:
            item.add_marker(pytest.mark.skip(reason=f"`make test-page` installs what is missing: {missing}"))


@pytest.fixture(scope="session")
def live() -> Iterator[Live]:
    """The built-in model, with one more task: a choice among labels."""
    with running(Settings(port=0, threads=2)) as service:
        served = service.state.served
        assert served is not None
        served.runner.tasks[MOOD.name] = MOOD
        service.state.served = replace(served, tasks={**served.tasks, MOOD.name: MOOD})
        yield service


@pytest.fixture
def hold_engine(live: Live) -> Iterator[Callable[[], None]]:
    """From a call to the end of the test each step takes a quarter of a second more, which is no hang to the
    watchdog: what runs is still running when somebody looks, on however slow a machine.
    """
    assert live.state.served is not None
    commands = live.state.served.engine._commands  # type: ignore[attr-defined]
    is_over = threading.Event()

    def hold(engine: Any) -> None:
        execute = engine.runner.execute

        def late(batch: Any) -> Any:
            is_over.wait(0.25)
            return execute(batch)

        engine.runner.execute = late

    def let_go(engine: Any) -> None:
        vars(engine.runner).pop("execute", None)

    yield lambda: commands.put(hold)
    is_over.set()
    commands.put(let_go)


@pytest.fixture
def talks_by(live: Live) -> Callable[[ChatFormat | None], AbstractContextManager[None]]:
    """Let the model of `live` hold conversations in another way for a while."""

    @contextmanager
    def talks_by(chat_format: ChatFormat | None) -> Iterator[None]:
        assert live.state.served is not None
        runner = live.state.served.runner
        before, runner.chat_format = runner.chat_format, chat_format
        try:
            yield
        finally:
            runner.chat_format = before

    return talks_by


def opening(name: str) -> Callable[..., AbstractContextManager[Any]]:
    """What opens a browser at an address, and ends it; skips the test where it is missing.

    Args:
        name: one of `BROWSERS`.
    """

    @contextmanager
    def start(url: str, **options: Any) -> Iterator[Any]:
        browser = (_chromium if name == "chromium" else _firefox)(**options)
        try:
            browser.open(url)
            yield browser
        finally:
            browser.close()

    return start


def _chromium(**options: Any) -> Any:
    from chromium import Chromium

    return Chromium(**options)


def _firefox() -> Any:
    from firefox import Firefox, program

    if program() is None:
        pytest.skip("there is no Firefox here (Debian: apt install firefox-esr)")
    return Firefox()


@pytest.fixture(scope="session")
def start_browser() -> Callable[..., Any]:
    """Opens Chromium: a context manager that gives a `Browser`."""
    return opening("chromium")


@pytest.fixture(scope="module")
def shared(live: Live, start_browser: Callable[..., Any]) -> Iterator[Any]:
    """One browser at the page of `live` for the tests of a module."""
    with start_browser(live.url) as browser:
        browser.wait_for_state("ready")
        yield browser


@pytest.fixture
def page(shared: Any, live: Live) -> Any:
    """The page, loaded anew."""
    shared.open("about:blank")
    shared.open(live.url)
    shared.wait_for_state("ready")
    shared.complaints(), shared.hosts()  # those of the test before
    return shared


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on, and that the system gives to nobody who asks for any."""
    first_given = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(1024, first_given), 100):
        with socket.socket() as sock, suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port
    raise AssertionError("a hundred ports are taken")

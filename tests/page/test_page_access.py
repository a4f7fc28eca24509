"""Everybody can use the page: by keyboard, with a screen reader, on a phone, in the dark, under a path of
a proxy, with a key, without internet, and over a restart of the service.
"""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from conftest import ROOT, Live, running
from live_service import expect
from selenium.webdriver.common.keys import Keys
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from service.settings import Settings

TABS = ["write", "summarize", "ask", "chat", "tasks"]
PHONE = (390, 844)


def test_nothing_is_loaded_from_elsewhere_and_nothing_breaks_the_policy(page: Any) -> None:
    for name in TABS:
        page.tab(name)
    page.tab("write")
    page.run("write")
    assert page.complaints() == []
    assert page.hosts() == {"127.0.0.1"}


def test_the_page_keeps_no_cookie(page: Any) -> None:
    page.run("write")
    assert page.driver.get_cookies() == []


@pytest.mark.parametrize("is_dark", [False, True])
def test_axe_finds_nothing_serious(live: Live, start_browser: Callable[..., Any], is_dark: bool) -> None:
    with start_browser(live.url, is_dark=is_dark) as page:
        page.wait_for_state("ready")
        found = {}
        for name in TABS:
            page.tab(name)
            fill_and_run(page, name)
            found[name] = page.serious_faults()
        assert found == {name: [] for name in TABS}


def fill_and_run(page: Any, name: str) -> None:
    """A request that fills the panel."""
    document = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    texts = {"summarize textarea": document, "ask textarea": document, "ask-question": "What is a step?"}
    texts |= {"chat-message": "Hello!", "tasks [data-part=task-fields] textarea": "The sea"}
    for selector, text in texts.items():
        if selector.startswith(name):
            page.write(f"#{selector}", text)
    page.run(name)
    assert page.text(f"#{name} .paper > .problem") == ""


def test_the_keyboard_alone_writes_and_stops(page: Any, hold_engine: Callable[[], None]) -> None:
    hold_engine()
    page.tab_to("#write-prompt")
    page.press_with(Keys.CONTROL, "a")
    page.press("Under the sea")
    page.press_with(Keys.CONTROL, Keys.ENTER)
    page.wait(lambda: page.text("#write .status") == "Writing", "the first token")
    page.press(Keys.ESCAPE)
    page.wait_until_done("write")
    assert page.text("#write .status").startswith("Stopped")
    assert page.text("#write .opening") == "Under the sea"


def test_the_keyboard_alone_reaches_every_tab(page: Any) -> None:
    page.tab_to("#tab-write")
    for name in [*TABS[1:], "write"]:
        page.press(Keys.ARROW_RIGHT)
        assert page.focused() == page.one(f"#tab-{name}")
        assert page.one(f"#{name}").is_displayed()
    page.press(Keys.END)
    assert page.one("#tasks").is_displayed()


def test_the_keyboard_alone_looks_at_tokens(page: Any) -> None:
    page.colour_a_text()
    page.tab_to("#write .continuation")
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert page.text("#write .t.current") == page.all("#write .t")[1].get_property("textContent")
    assert page.all("#write .alternatives li")


def test_the_address_keeps_the_tab(live: Live, start_browser: Callable[..., Any]) -> None:
    with start_browser(f"{live.url}/#ask") as page:
        page.wait(lambda: page.one("#ask").is_displayed(), "the tab of the address")


def test_a_phone_shows_it_without_scrolling_sideways(live: Live, start_browser: Callable[..., Any]) -> None:
    with start_browser(live.url, size=PHONE) as page:
        page.wait_for_state("ready")
        widths = {}
        for name in TABS:
            page.tab(name)
            fill_and_run(page, name)
            widths[name] = page.driver.execute_script("return document.documentElement.scrollWidth")
        assert widths == dict.fromkeys(TABS, PHONE[0])


def test_a_key_is_asked_for_and_kept_for_the_tab(tiny_model: Path, start_browser: Callable[..., Any]) -> None:
    settings = Settings(model=str(tiny_model), port=0, threads=1, api_keys="secret-1", ops_require_key=True)
    with running(settings, is_ready=False) as live, start_browser(live.url) as page:
        page.wait_for_state("wants a key")
        page.one("#key").send_keys("secret-1", Keys.ENTER)
        page.wait_for_state("ready")
        page.write("#write [name=seed]", "3")
        page.run("write")
        assert page.text("#write .continuation")
        page.one("#write .code summary").click()
        assert "$KEY" in page.text("#write .code code")
        assert "secret-1" not in page.driver.page_source
        page.driver.refresh()
        page.wait_for_state("ready")


def test_a_wrong_key_is_said(tiny_model: Path, start_browser: Callable[..., Any]) -> None:
    settings = Settings(model=str(tiny_model), port=0, threads=1, api_keys="secret-1")
    with running(settings) as live, start_browser(live.url) as page:
        page.wait_for_state("wants a key")
        page.one("#key").send_keys("wrong", Keys.ENTER)
        page.wait(lambda: "API key" in page.text("#away"), "a word on the key")
        page.wait(lambda: page.one("#key-form").is_displayed(), "the field for the key")


def test_a_page_left_open_goes_on_after_a_restart(
    tiny_model: Path, free_port: int, start_browser: Callable[..., Any]
) -> None:
    settings = Settings(model=str(tiny_model), port=free_port, threads=1)
    with running(settings) as live:
        browser = start_browser(live.url)
        page = browser.__enter__()
        page.wait_for_state("ready")
        page.write("#write-prompt", "kept")
    try:
        page.wait_for_state("away")
        assert page.one("#away").is_displayed()
        with running(settings):
            page.wait_for_state("ready")
            assert not page.one("#away").is_displayed()
            page.write("#write [name=seed]", "3")
            page.run("write")
            assert page.text("#write .opening") == "kept" and page.text("#write .continuation")
    finally:
        browser.__exit__(None, None, None)


@contextmanager
def proxy_under(prefix: str, target: str, kept: tuple[str, ...] = ()) -> Iterator[str]:
    """A reverse proxy that serves `target` below a path, as nginx's `proxy_pass` with a slash does.

    Args:
        prefix: the path, without a slash at its end.
        target: the service's address.
        kept: paths that it does not pass on.
    """
    client = httpx.AsyncClient(base_url=target, timeout=60)

    @asynccontextmanager
    async def closing(app: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    async def forward(request: Request) -> Response:
        path = request.url.path.removeprefix(prefix)
        if path in kept:
            return Response(status_code=403)
        headers = [(name, value) for name, value in request.headers.raw if name != b"host"]
        asked = client.build_request(request.method, path, headers=headers, content=await request.body())
        reply = await client.send(asked, stream=True)
        return StreamingResponse(
            reply.aiter_raw(), reply.status_code, dict(reply.headers), background=BackgroundTask(reply.aclose)
        )

    app = Starlette(
        routes=[Route(prefix + "/{rest:path}", forward, methods=["GET", "POST"])], lifespan=closing
    )
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        expect(lambda: server.started or not thread.is_alive(), "the proxy")
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}{prefix}/"
    finally:
        server.should_exit = True
        thread.join()


def test_the_page_works_under_a_proxys_sub_path(live: Live, start_browser: Callable[..., Any]) -> None:
    with proxy_under("/tools/text", live.url) as url, start_browser(url) as page:
        page.wait_for_state("ready")
        page.run("write")
        assert page.text("#write .continuation")
        page.one("#write .code summary").click()
        assert f"{url}generate" in page.text("#write .code code")
        page.one(".links a").click()
        page.wait(lambda: page.all(".opblock"), "the API's description")
        assert page.driver.current_url == f"{url}docs"


def test_the_page_works_where_a_proxy_keeps_the_pages_of_operations(
    live: Live, start_browser: Callable[..., Any]
) -> None:
    kept = ("/metrics", "/info", "/openapi.json", "/docs", "/readyz")
    with proxy_under("", live.url, kept) as url, start_browser(url) as page:
        page.wait_for_state("ready")
        page.run("write")
        assert page.text("#write .continuation")
        assert not page.one("#write .settings").is_displayed()
        page.wait(lambda: not page.one("#live-running").is_displayed(), "figures that nobody knows to go")


def test_an_outage_is_not_met_with_more_and_more_requests(
    tiny_model: Path, start_browser: Callable[..., Any]
) -> None:
    with running(Settings(model=str(tiny_model), port=0, threads=1)) as live:
        browser = start_browser(live.url)
        page = browser.__enter__()
        page.wait_for_state("ready")
    try:
        page.wait_for_state("away")
        script = """const real = window.fetch; window.asked = 0; window.start = performance.now();
            window.fetch = (...all) => { window.asked += all[0].endsWith("/tasks"); return real(...all); }"""
        page.driver.execute_script(script)
        clock = "return performance.now() - window.start"
        page.wait(lambda: page.driver.execute_script(clock) > 9000, "nine seconds of the page's clock")
        assert 2 <= page.driver.execute_script("return window.asked") <= 6  # one every two seconds
    finally:
        browser.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("path", "sign"), [("docs", ".opblock"), ("redoc", ".redoc-wrap, [data-section-id]")]
)
def test_the_apis_description_needs_no_internet(
    live: Live, start_browser: Callable[..., Any], path: str, sign: str
) -> None:
    with start_browser(f"{live.url}/{path}") as page:
        page.wait(lambda: page.all(sign), sign)
        assert page.hosts() == {"127.0.0.1"}


@pytest.mark.parametrize("route", ["generate", "summarize", "qa"])
def test_an_example_runs_from_the_description(
    live: Live, start_browser: Callable[..., Any], route: str
) -> None:
    status = ".live-responses-table .response .response-col_status"
    with start_browser(f"{live.url}/docs") as page:
        page.wait(lambda: page.all(f"#operations-default-{route}_{route}_post"), "the route")
        page.one(f"#operations-default-{route}_{route}_post .opblock-summary-control").click()
        page.wait(lambda: page.all(".execute"), "its button")
        # the description takes no clicks while it still resolves its references
        page.wait(
            lambda: (
                page.driver.execute_script("document.querySelector('.execute').click()") or page.all(status)
            ),
            "a reply",
        )
        page.wait(lambda: page.text(status).startswith("200"), "a good reply")


@pytest.mark.parametrize(("name", "is_dark"), [("page.png", False), ("page-dark.png", True)])
def test_the_page_can_be_pictured(
    live: Live, start_browser: Callable[..., Any], tmp_path: Path, name: str, is_dark: bool
) -> None:
    folder = ROOT / "docs" if "PICTURES" in os.environ else tmp_path  # for the documents, or for nobody
    with start_browser(live.url, is_dark=is_dark) as page:
        page.wait_for_state("ready")
        for field, value in {"seed": "7", "temperature": "0.7", "top_p": "0.9"}.items():
            page.write(f"#write [name={field}]", value)
        page.run("write")
        page.driver.execute_script("arguments[0].click()", page.all("#write .t")[8])
        page.save(folder / name)
    picture = (folder / name).read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000

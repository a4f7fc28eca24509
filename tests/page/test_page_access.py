"""Everybody can use the page: by keyboard, with a screen reader, on a phone, in the dark, under a path of
a proxy, with a key, without internet, and over a restart of the service.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import ARROW_RIGHT, ENTER
from conftest import ROOT, TABS, Live, running
from nginx_front import nginx

from service.settings import Settings

PHONE = (390, 844)


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


def test_the_keyboard_alone_looks_at_tokens(page: Any) -> None:
    page.colour_a_text()
    page.tab_to("#write .continuation")
    page.press(ARROW_RIGHT, ARROW_RIGHT)
    assert page.text("#write .t.current") == page.all("#write .t")[1].get_property("textContent")
    assert page.all("#write .alternatives li")


def test_the_address_keeps_the_tab(live: Live, start_browser: Callable[..., Any]) -> None:
    with start_browser(f"{live.url}/#ask") as page:
        page.wait(lambda: page.one("#ask").is_displayed(), "the tab of the address")
        assert not page.one("#write").is_displayed()


def test_a_phone_shows_it_without_scrolling_sideways(live: Live, start_browser: Callable[..., Any]) -> None:
    with start_browser(live.url, size=PHONE) as page:
        page.wait_for_state("ready")
        widths = {}
        for name in TABS:
            page.tab(name)
            fill_and_run(page, name)
            widths[name] = page.script("return document.documentElement.scrollWidth")
        assert widths == dict.fromkeys(TABS, PHONE[0])


def test_a_wrong_key_is_said(tiny_model: Path, start_browser: Callable[..., Any]) -> None:
    settings = Settings(model=str(tiny_model), port=0, threads=1, api_keys="secret-1")
    with running(settings) as live, start_browser(live.url) as page:
        page.wait_for_state("wants a key")
        page.one("#key").send_keys("wrong", ENTER)
        page.wait(lambda: "API key" in page.text("#away"), "a word on the key")
        page.wait(lambda: page.one("#key-form").is_displayed(), "the field for the key")
        assert "API key" in page.text("#away")


PREFIX = "/tools/text/"
UNDER_A_PATH = {
    "location / {": f"location {PREFIX} {{",
    "proxy_pass http://textgen;": "proxy_pass http://textgen/;",  # with a slash: the path is taken off
    "deny all;": "allow all;",
}


def test_the_page_works_under_a_path_of_nginx(
    live: Live, start_browser: Callable[..., Any], tmp_path: Path
) -> None:
    with nginx(tmp_path, live, changes=UNDER_A_PATH) as front:
        url = f"{str(front.base_url).rstrip('/')}{PREFIX}"
        with start_browser(url) as page:
            page.wait_for_state("ready")
            page.run("write")
            assert page.text("#write .continuation")
            page.one("#write .code summary").click()
            assert f"{url}generate" in page.text("#write .code code")
            page.one(".links a").click()
            page.wait(lambda: page.all(".opblock"), "the API's description")
            assert page.driver.current_url == f"{url}docs"


def test_the_page_works_behind_nginx_which_keeps_the_pages_of_operations(
    live: Live, start_browser: Callable[..., Any], tmp_path: Path
) -> None:
    with nginx(tmp_path, live) as front, start_browser(str(front.base_url)) as page:
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
        page.script(script)
        clock = "return performance.now() - window.start"
        page.wait(lambda: page.script(clock) > 9000, "nine seconds of the page's clock")
        assert 2 <= page.script("return window.asked") <= 6  # one every two seconds
    finally:
        browser.__exit__(None, None, None)


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
            lambda: page.script("document.querySelector('.execute').click()") or page.all(status),
            "a reply",
        )
        page.wait(lambda: page.text(status), "its status")
        assert page.text(status).startswith("200")


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
        page.script("arguments[0].click()", page.all("#write .t")[8])
        page.save(folder / name)
    picture = (folder / name).read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000

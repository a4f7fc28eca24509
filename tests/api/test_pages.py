"""The pages for people, without a browser: who gets which, with what policy, and from where they load."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from live_service import Live

from service.api.page import STATIC

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
OURS = sorted(path for path in STATIC.iterdir() if path.suffix in (".html", ".js", ".css", ".svg"))


@pytest.mark.parametrize("accept", ["*/*", "application/json", ""])
def test_a_program_gets_json_at_the_root(live: Live, accept: str) -> None:
    reply = live.http.get("/", headers={"Accept": accept})
    assert reply.json()["service"] == "textgen"
    assert reply.headers["vary"] == "Accept"


def test_a_browser_gets_the_page_at_the_root(live: Live) -> None:
    reply = live.http.get("/", headers=BROWSER)
    assert reply.headers["content-type"].startswith("text/html")
    assert reply.headers["vary"] == "Accept"
    assert 'role="tablist"' in reply.text


def test_the_page_runs_nothing_but_its_own_scripts(live: Live) -> None:
    policy = live.http.get("/", headers=BROWSER).headers["content-security-policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert "unsafe" not in policy and "http" not in policy


def test_a_locked_service_shows_its_page_and_nothing_else_without_a_key(
    tiny_model: Path, serve: Callable[..., Live]
) -> None:
    locked = serve(is_ready=False, api_keys="k", ops_require_key=True)
    open_paths = [("/", BROWSER), ("/page/main.js", {}), ("/page/vendor/swagger-ui.css", {})]
    assert [locked.http.get(path, headers=headers).status_code for path, headers in open_paths] == [200] * 3
    shut = ["/", "/info", "/metrics", "/openapi.json", "/tasks", "/page", "/pages/main.js", "/docs"]
    assert {locked.http.get(path).status_code for path in shut} == {401}


def test_a_browsers_wish_opens_nothing_but_the_page(serve: Callable[..., Live]) -> None:
    locked = serve(is_ready=False, api_keys="k", ops_require_key=True)
    assert {locked.http.get(path, headers=BROWSER).status_code for path in ("/info", "/tasks")} == {401}


@pytest.mark.parametrize("path", ["/page/../gate.py", "/page/%2e%2e/__init__.py", "/page/none.js", "/page/"])
def test_nothing_else_is_served_as_a_file(live: Live, path: str) -> None:
    reply = live.http.get(path)
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")


def test_files_are_asked_for_again_and_sent_once(live: Live) -> None:
    first = live.http.get("/page/main.js")
    again = live.http.get("/page/main.js", headers={"If-None-Match": first.headers["etag"]})
    assert (first.headers["cache-control"], again.status_code, again.content) == ("no-cache", 304, b"")


@pytest.mark.parametrize("file", OURS, ids=lambda path: path.name)
def test_a_file_of_the_page_is_short_and_names_no_other_host(file: Path) -> None:
    text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")  # a name, no address
    assert text.count("\n") < 300
    assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]", text)


@pytest.mark.parametrize(
    "file", [path for path in OURS if path.suffix == ".html"], ids=lambda path: path.name
)
def test_every_file_that_a_page_names_is_there(live: Live, file: Path) -> None:
    named = re.findall(r'(?:src|href)="([^"#][^"]*)"', file.read_text(encoding="utf-8"))
    assert not [name for name in named if name.startswith("/")]
    assert {live.http.get(f"/{name}").status_code for name in named} == {200}


def test_every_module_that_a_module_names_is_there() -> None:
    scripts = [path for path in OURS if path.suffix == ".js"]
    named = {name for path in scripts for name in re.findall(r'from "\./([^"]+)"', path.read_text())}
    assert named <= {path.name for path in scripts}

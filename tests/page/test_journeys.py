"""What people do most, in every browser: write, stop, be refused, give a key, open each tab, use the
keyboard alone, leave the page open over a restart.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import ARROW_RIGHT, CONTROL, END, ENTER, ESCAPE
from conftest import BROWSERS, LIGHTHOUSE, ROOT, TABS, Live, opening, running

from service.settings import Settings


@pytest.fixture(scope="module", params=BROWSERS)
def start_browser(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Opens each browser in turn."""
    return opening(request.param)


def test_a_text_streams_and_its_time_is_told(page: Any) -> None:
    page.run("write")
    assert page.text("#write .continuation").strip()
    assert re.search(
        r"first token [\d.]+ m?s · [\d,]+ tokens/s · [\d,]+ tokens · .* in all", page.text("#write .status")
    )


def test_an_answer_can_be_stopped_and_what_came_is_kept(page: Any, hold_engine: Callable[[], None]) -> None:
    hold_engine()
    page.start("write")
    page.wait(lambda: page.text("#write .continuation"), "the first text")
    page.start("write")
    page.wait_until_done("write")
    assert page.text("#write .status").startswith("Stopped")
    assert page.text("#write .continuation")


def test_tokens_are_coloured_and_show_their_alternatives(page: Any) -> None:
    page.colour_a_text()
    page.script("arguments[0].click()", page.all("#write .t")[3])
    shares = [float(item.text.split("\n")[1].rstrip(" %")) for item in page.all("#write .alternatives li")]
    assert len(shares) == 5 and shares == sorted(shares, reverse=True)


def test_a_refusal_names_its_field_in_the_apis_words(page: Any, live: Live) -> None:
    page.write("#write [name=top_p]", "0")
    page.run("write")
    message = live.post("/generate", {"prompt": "a", "top_p": 0}).json()["error"]["message"]
    assert page.text("#write .paper > .problem") == message
    assert page.one("#write [name=top_p]").get_attribute("aria-invalid") == "true"
    assert page.focused() == page.one("#write [name=top_p]")


def test_a_summary_leads_back_to_its_document(page: Any) -> None:
    page.tab("summarize")
    page.write("#summarize textarea", (ROOT / "docs" / "harbour.txt").read_text(encoding="utf-8"))
    page.run("summarize")
    sentence = page.one("#summarize .sentence")
    sentence.click()
    marked = page.text("#summarize mark.current")
    assert marked.split() == page.text("#summarize .sentence").split()
    assert page.all("#summarize .bar-map .current")


def test_an_answer_is_marked_and_its_rivals_have_scores(page: Any, live: Live) -> None:
    page.tab("ask")
    page.write("#ask textarea", LIGHTHOUSE)
    page.write("#ask-question", "Who built the lighthouse?")
    page.run("ask")
    body = {"question": "Who built the lighthouse?", "context": LIGHTHOUSE, "num_answers": 5}
    answers = live.post("/qa", body).json()["answers"]
    rows = [row.text.split("\n") for row in page.all("#ask .candidates li")]
    assert rows == [[each["answer"] or "no answer", f"{each['score']:.1f}"] for each in answers]
    assert page.text("#ask mark.best") == answers[0]["answer"]


def test_a_text_file_can_be_opened(page: Any, tmp_path: Path) -> None:
    file = tmp_path / "report.txt"
    file.write_text(LIGHTHOUSE, encoding="utf-8")
    page.tab("ask")
    page.one("#ask input[type=file]").send_keys(str(file))
    page.wait(lambda: page.one("#ask textarea").get_property("value") == LIGHTHOUSE, "the file's text")
    assert "report.txt, 73 characters" in page.text("#ask [data-part=document] .hint")


def test_a_conversation_goes_on(page: Any) -> None:
    page.tab("chat")
    for message in ("Hello, how are you?", "What did you do today?"):
        page.one("#chat-message").send_keys(message, ENTER)
        page.wait_until_done("chat")
    who = [turn.get_attribute("class") for turn in page.all("#chat .turn")]
    assert who == ["turn you", "turn model"] * 2
    page.one("#chat .code summary").click()
    code = page.text("#chat .code code")
    assert code.count('"role":"user"') == 2 and code.count('"role":"assistant"') == 1
    page.one("#chat .new").click()
    assert page.all("#chat .turn") == []


def test_a_choice_has_a_bar_for_each_label(page: Any, live: Live) -> None:
    page.tab("tasks")
    page.one("#tasks-name option[value=mood]").click()
    page.write("#tasks [data-part=task-fields] textarea", "What a day!")
    page.run("tasks")
    scores = live.post("/tasks/mood", {"text": "What a day!"}).json()["scores"]
    rows = {row.find_element("tag name", "th").text: row for row in page.all("#tasks .bars tr")}
    best = page.text("#tasks .bars .best th")
    assert list(rows) == list(scores) and best == max(scores, key=lambda label: scores[label])


def test_nothing_is_loaded_from_elsewhere_and_nothing_breaks_the_policy(page: Any) -> None:
    for name in TABS:
        page.tab(name)
    page.tab("write")
    page.run("write")
    assert page.complaints() == []
    assert page.hosts() == {"127.0.0.1"}


def test_the_keyboard_alone_writes_and_stops(page: Any, hold_engine: Callable[[], None]) -> None:
    hold_engine()
    page.tab_to("#write-prompt")
    page.press_with(CONTROL, "a")
    page.press("Under the sea")
    page.press_with(CONTROL, ENTER)
    page.wait(lambda: page.text("#write .status") == "Writing", "the first token")
    page.press(ESCAPE)
    page.wait_until_done("write")
    assert page.text("#write .status").startswith("Stopped")
    assert page.text("#write .opening") == "Under the sea"


def test_the_keyboard_alone_reaches_every_tab(page: Any) -> None:
    page.tab_to("#tab-write")
    for name in [*TABS[1:], "write"]:
        page.press(ARROW_RIGHT)
        assert page.focused() == page.one(f"#tab-{name}")
        assert page.one(f"#{name}").is_displayed()
    page.press(END)
    assert page.one("#tasks").is_displayed()


def test_a_key_is_asked_for_and_kept_for_the_tab(tiny_model: Path, start_browser: Callable[..., Any]) -> None:
    settings = Settings(model=str(tiny_model), port=0, threads=1, api_keys="secret-1", ops_require_key=True)
    with running(settings, is_ready=False) as live, start_browser(live.url) as page:
        page.wait_for_state("wants a key")
        page.one("#key").send_keys("secret-1", ENTER)
        page.wait_for_state("ready")
        page.write("#write [name=seed]", "3")
        page.run("write")
        assert page.text("#write .continuation")
        page.one("#write .code summary").click()
        assert "$KEY" in page.text("#write .code code")
        assert "secret-1" not in page.script("return document.documentElement.outerHTML")
        page.reload()
        page.wait_for_state("ready")


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


@pytest.mark.parametrize(
    ("path", "sign"), [("docs", ".opblock"), ("redoc", ".redoc-wrap, [data-section-id]")]
)
def test_the_apis_description_needs_no_internet(
    live: Live, start_browser: Callable[..., Any], path: str, sign: str
) -> None:
    with start_browser(f"{live.url}/{path}") as page:
        page.wait(lambda: page.all(sign), sign)
        assert page.hosts() == {"127.0.0.1"}

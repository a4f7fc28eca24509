"""Each tab of the page does what it says, in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import ENTER, ESCAPE
from conftest import LIGHTHOUSE, Live

from model_store.chat import TemplateChat
from model_store.chat_template import ChatTemplate


def without_colours(page: Any) -> None:
    if page.one("#write [name=colours]").is_selected():
        page.one("#write [name=colours]").click()


def test_the_page_shows_what_the_api_gives(page: Any, live: Live) -> None:
    without_colours(page)
    page.write("#write [name=seed]", "9223372036854775807")
    page.write("#write [name=max_new_tokens]", "20")
    page.run("write")
    body = {"prompt": "Once upon a time", "max_new_tokens": 20, "seed": 2**63 - 1}
    assert page.text("#write .continuation") == live.post("/generate", body).json()["choices"][0]["text"]


def test_a_stopped_request_frees_the_engine(page: Any, live: Live, hold_engine: Callable[[], None]) -> None:
    hold_engine()
    finished = "textgen_requests_finished_total"
    aborted = live.metric(finished, endpoint="/generate", outcome="abort")
    page.start("write")
    page.wait(lambda: page.text("#write .status") == "Writing", "the first token")
    page.press(ESCAPE)
    page.wait(lambda: live.num_sequences() == 0, "an engine without sequences")
    assert (
        live.metric("textgen_requests_finished_total", endpoint="/generate", outcome="abort") == aborted + 1
    )


def test_coloured_tokens_are_the_text(page: Any) -> None:
    page.write("#write [name=seed]", "5")
    without_colours(page)
    page.run("write")
    plain = page.text("#write .continuation")
    page.one("#write [name=colours]").click()
    page.run("write")
    assert page.all("#write .t") and page.text("#write .continuation") == plain


def test_samples_stand_side_by_side(page: Any) -> None:
    page.write("#write [name=n]", "3")
    page.run("write")
    tops = {card.rect["y"] for card in page.all("#write .card")[:2]}
    assert len(page.all("#write .card")) == 3 and len(tops) == 1


def test_a_seed_repeats_a_text(page: Any) -> None:
    page.run("write")
    first = page.text("#write .continuation")
    page.one("#write .seed button").click()
    page.run("write")
    assert page.text("#write .continuation") == first


def test_ranges_are_the_apis_own(page: Any, live: Live) -> None:
    schema = live.http.get("/openapi.json").json()["components"]["schemas"]["GenerateBody"]["properties"]
    temperature, tokens = page.one("#write [name=temperature]"), page.one("#write [name=max_new_tokens]")
    assert float(temperature.get_attribute("max")) == schema["temperature"]["maximum"]
    assert float(temperature.get_attribute("min")) == schema["temperature"]["minimum"]
    assert int(tokens.get_attribute("max")) == live.http.get("/info").json()["limits"]["n_positions"]


def test_every_field_of_the_api_has_a_control(page: Any, live: Live) -> None:
    schema = live.http.get("/openapi.json").json()["components"]["schemas"]["GenerateBody"]["properties"]
    shown = {control.get_attribute("name") for control in page.all("#write [name]")}
    assert set(schema) - shown == {"stream", "logprobs"}  # the page sets these itself


def test_a_refused_document_is_marked(page: Any) -> None:
    page.tab("summarize")
    page.run("summarize")
    assert page.one("#summarize textarea").get_attribute("aria-invalid") == "true"
    assert "text" in page.text("#summarize .paper > .problem")


def test_offsets_count_characters_outside_the_basic_plane_once(page: Any) -> None:
    page.tab("ask")
    page.write("#ask textarea", "🗼🗼🗼 " + LIGHTHOUSE)
    page.write("#ask-question", "Who built the lighthouse?")
    page.run("ask")
    assert page.text("#ask mark.best") == page.text("#ask .answer-text") == "two brothers"


def test_the_speed_of_an_answer_that_comes_at_once_is_over_all_its_time(page: Any) -> None:
    page.tab("ask")
    page.write("#ask textarea", LIGHTHOUSE)
    page.write("#ask-question", "Who built the lighthouse?")
    page.run("ask")
    told = re.search(r"([\d,]+) tokens/s · (\d+) tokens · ([\d.]+) (m?s) in all", page.text("#ask .status"))
    assert told is not None
    seconds = float(told[3]) / (1000 if told[4] == "ms" else 1)
    assert int(told[1].replace(",", "")) == pytest.approx(int(told[2]) / seconds, rel=0.1, abs=1)


def test_no_answer_is_said_plainly(page: Any) -> None:
    page.tab("ask")
    page.write("#ask textarea", LIGHTHOUSE)
    page.write("#ask-question", "What is the capital of Peru?")
    page.run("ask")
    assert page.text("#ask .card .text") == "The text does not answer this."
    assert page.text("#ask .card footer").startswith("Score -")


def test_a_model_with_a_template_is_talked_to_by_it(
    live: Live, start_browser: Callable[..., Any], talks_by: Callable[..., Any]
) -> None:
    template = "{{ raise_exception('enough') if messages[1:] }}{{ messages[0].content }}"
    with talks_by(TemplateChat(ChatTemplate(template, {}), ())), start_browser(live.url) as page:
        page.wait_for_state("ready")
        page.tab("chat")
        for name, value in {"max_tokens": "8", "temperature": "0"}.items():
            page.write(f"#chat [name={name}]", value)
        for message in ("Once upon a time", "More"):
            page.one("#chat-message").send_keys(message, ENTER)
            page.wait_until_done("chat")
        body = {"prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
        (choice,) = live.post("/v1/completions", body).json()["choices"]
        assert page.one("#chat .turn.model p").get_attribute("textContent") == choice["text"]
        assert page.text("#chat .paper > .problem").endswith("does not take these messages: enough")
        assert len(page.all("#chat .turn")) == 2
        assert page.one("#chat-message").get_attribute("value") == "More"


def test_a_model_that_holds_no_conversation_has_no_tab_for_it(
    live: Live, start_browser: Callable[..., Any], talks_by: Callable[..., Any]
) -> None:
    with talks_by(None), start_browser(live.url) as page:
        page.wait_for_state("ready")
        assert page.one("#tab-write").is_displayed() and not page.one("#tab-chat").is_displayed()


def test_every_declared_task_has_a_form(page: Any, live: Live) -> None:
    page.tab("tasks")
    for task in live.http.get("/tasks").json()["tasks"]:
        page.one(f"#tasks-name option[value='{task['name']}']").click()
        shown = [box.get_attribute("name") for box in page.all("#tasks [data-part=task-fields] textarea")]
        assert shown == task["fields"]


@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript"])
def test_a_request_as_code_runs(page: Any, language: str, tmp_path: Path) -> None:
    page.write("#write-prompt", 'It\'s a "test" of \\ and $HOME,\nand of é')
    page.write("#write [name=seed]", str(2**62))
    page.write("#write [name=max_new_tokens]", "8")
    page.write("#write [name=stop]", "zzz")
    without_colours(page)
    page.run("write")
    text = page.text("#write .continuation")
    page.one("#write .code summary").click()
    (button,) = [each for each in page.all("#write .snippet .row button") if each.text == language]
    button.click()
    code = page.text("#write .code code")
    file = tmp_path / {"curl": "a.sh", "Python": "a.py", "JavaScript": "a.mjs"}[language]
    file.write_text(code, encoding="utf-8")
    program = {"curl": "bash", "Python": sys.executable, "JavaScript": shutil.which("node")}[language]
    if program is None:
        pytest.skip("there is no node here")
    output = subprocess.run([program, str(file)], capture_output=True, text=True, check=True).stdout
    if language == "Python":
        said = [eval(line) for line in output.splitlines()]
    else:
        said = [json.loads(line[6:]) for line in output.splitlines() if line.startswith("data: ")]
    assert "".join(each["text"] for each in said if "text" in each) == text
    assert said[-1]["seed"] == 2**62


def test_ten_thousand_tokens_do_not_freeze_the_page(page: Any) -> None:
    page.script(
        """window.most = 0; window.looks = 0;
        const count = (records) => records.reduce((sum, each) => sum + each.addedNodes.length, 0);
        new MutationObserver((records) => { window.most = Math.max(window.most, count(records)); })
            .observe(document.querySelector("#write"), { childList: true, subtree: true });
        setInterval(() => { window.looks += 1; }, 10);"""
    )
    for name, value in {"n": "16", "max_new_tokens": "640"}.items():
        page.write(f"#write [name={name}]", value)
    page.script("document.querySelector('#write [name=ignore_eos]').checked = true")
    page.run("write", limit_s=240)  # the engine's time for so many tokens, more than the page's
    assert len(page.all("#write .t")) > 10_000
    assert page.script("return window.most") <= 600  # elements made without a pause
    assert page.script("return window.looks") > 50  # a timer had its turn meanwhile


def test_a_megabyte_of_text_can_be_asked(page: Any) -> None:
    page.tab("ask")
    text = "The sea was calm that day and nobody spoke. " * 23_000 + LIGHTHOUSE
    data = f"const data = new DataTransfer(); data.setData('text', {json.dumps(text)});"
    page.script(
        data + "document.querySelector('#ask textarea').dispatchEvent("
        "new ClipboardEvent('paste', {clipboardData: data, cancelable: true, bubbles: true}))"
    )
    assert "1,012,073 characters" in page.text("#ask [data-part=document] .hint")
    page.write("#ask-question", "Who built the lighthouse?")
    page.run("ask")
    assert page.text("#ask .answer-text") == page.text("#ask mark.best") != ""

"""`from service import LLM`: the texts of the service, without the network."""

from __future__ import annotations

import gc
import math
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_service import Live, expect

from service import LLM
from service.errors import InvalidRequest, PromptTooLong, SettingsError

TEXT = "The lighthouse was built by two brothers in 1894. It burned down in 1921. " * 8
QUESTION = {"question": "Who built it?", "context": TEXT}
SAMPLED = {"max_new_tokens": 24, "temperature": 0.9, "seed": 11}


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> Iterator[LLM]:
    with LLM(str(tiny_model), threads=1, speculation=False) as model:
        yield model


def test_importing_the_package_imports_nothing_large() -> None:
    code = "import service, sys; print(sorted({'torch', 'fastapi', 'numpy', 'httpx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_generate_gives_the_texts_of_the_service(llm: LLM, live: Live) -> None:
    prompts = ["One", "Two and more", "é"]
    reply = live.post("/generate", {"prompt": prompts, "n": 2, **SAMPLED}).json()
    choices = llm.generate(prompts, n=2, **SAMPLED)
    assert [choice.model_dump(exclude_none=True) for choice in choices] == reply["choices"]


def test_one_prompt_needs_no_list(llm: LLM) -> None:
    assert llm.generate("One", **SAMPLED) == llm.generate(["One"], **SAMPLED)


def test_a_stream_is_the_same_text(llm: LLM) -> None:
    pieces = list(llm.stream("One", **SAMPLED))
    assert len(pieces) > 1 and "".join(pieces) == llm.generate("One", **SAMPLED)[0].text


def test_leaving_a_stream_frees_the_engine(llm: LLM) -> None:
    engine = llm._service._app.state.service.served.engine
    for _ in llm.stream("One", max_new_tokens=250, ignore_eos=True):
        assert engine.num_in_flight == 1
        break
    expect(lambda: engine.num_in_flight == 0)


def test_summaries_and_answers_are_those_of_the_service(llm: LLM, live: Live) -> None:
    def lasting(reply: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in reply.items() if name not in ("id", "seed", "timings")}
        return {**kept, "usage": reply["usage"]["completion_tokens"]}

    summary = llm.summarize(TEXT, max_new_tokens=8).model_dump(exclude_none=True)
    answer = llm.ask(QUESTION["question"], TEXT, num_answers=3).model_dump()
    assert lasting(summary) == lasting(live.post("/summarize", {"text": TEXT, "max_new_tokens": 8}).json())
    assert lasting(answer) == lasting(live.post("/qa", {**QUESTION, "num_answers": 3}).json())


def test_a_score_is_what_completions_say(llm: LLM, live: Live) -> None:
    body = {"prompt": "One two", "echo": True, "max_tokens": 0, "logprobs": 0}
    logprobs = live.post("/v1/completions", body).json()["choices"][0]["logprobs"]
    score = llm.score("One two")
    assert score.logprobs == tuple(logprobs["token_logprobs"]) and "".join(score.tokens) == "One two"
    assert score.logprob == pytest.approx(sum(logprobs["token_logprobs"][1:]))
    assert score.perplexity == pytest.approx(math.exp(-score.logprob / 6))


def test_a_single_token_has_no_perplexity(llm: LLM) -> None:
    assert math.isnan(llm.score("a").perplexity)


@pytest.mark.parametrize(
    ("fields", "error", "param"),
    [
        ({"temperature": 9}, InvalidRequest, "temperature"),
        ({"temprature": 1}, InvalidRequest, "temprature"),
        ({"max_new_tokens": 255}, PromptTooLong, "max_new_tokens"),
    ],
)
def test_an_error_names_its_field_as_over_http(
    llm: LLM, live: Live, fields: dict[str, Any], error: type[Exception], param: str
) -> None:
    with pytest.raises(error) as caught:
        llm.generate("One two three", **fields)
    refusal = live.post("/generate", {"prompt": "One two three", **fields}).json()["error"]
    assert (str(caught.value), caught.value.param) == (refusal["message"], refusal["param"])  # type: ignore[attr-defined]


def test_a_model_without_a_way_to_talk_says_how_to_give_one(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match=r"TEXTGEN_CHAT_TEMPLATE.*history"):
        llm.chat("Hello")


@pytest.fixture(scope="module")
def talkative(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    template = tmp_path_factory.mktemp("templates") / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:")
    with LLM(str(tiny_model), threads=1, speculation=False, chat_template=template) as model:
        yield model


def test_chat_renders_messages_as_the_service_does(talkative: LLM) -> None:
    prompt = "system: Be brief.\nuser: Hello\nassistant:"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    assert talkative.chat(messages, **SAMPLED) == talkative.generate(prompt, **SAMPLED)[0].text
    assert talkative.chat("Hello", temperature=0, max_new_tokens=3) == talkative.chat(
        [messages[1]], temperature=0, max_tokens=3
    )


def test_chat_refuses_a_field_that_nobody_reads_and_a_history_that_does_not_fit(talkative: LLM) -> None:
    with pytest.raises(InvalidRequest, match="temprature") as refused:
        talkative.chat("Hello", temprature=1, max_new_tokens=2)
    assert refused.value.param == "temprature"
    history = [{"role": "user", "content": "long " * 30}, {"role": "user", "content": "short"}] * 2
    with pytest.raises(PromptTooLong):
        talkative.chat(history)
    fields = {"max_new_tokens": 4, "seed": 1, "overflow": "drop_oldest"}
    assert talkative.chat(history, **fields) == talkative.chat(history[1:], max_new_tokens=4, seed=1)


def test_many_threads_may_ask_at_once(llm: LLM) -> None:
    found: dict[int, str] = {}

    def ask(index: int) -> None:
        found[index] = llm.generate("One", max_new_tokens=16, seed=index)[0].text

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {index: llm.generate("One", max_new_tokens=16, seed=index)[0].text for index in range(8)}


def test_more_prompts_than_a_service_takes_are_one_call(llm: LLM) -> None:
    choices = llm.generate(["One"] * 1000, max_new_tokens=1, temperature=0)
    assert len(choices) == 1000 and len({choice.text for choice in choices}) == 1


def test_leaving_the_block_frees_everything(tiny_model: Path) -> None:
    before = {thread.name for thread in threading.enumerate()}
    with LLM(str(tiny_model), threads=1) as model:
        served = model._service._app.state.service.served
        kept = [weakref.ref(served.engine), weakref.ref(served.runner)]
        model.generate("One", max_new_tokens=2)
        del served
    gc.collect()
    assert [each() for each in kept] == [None, None]
    left = {thread.name for thread in threading.enumerate()} - before
    assert not {name for name in left if not name.startswith("kernel")}


def test_a_closed_model_can_be_closed_again(tiny_model: Path) -> None:
    before = {thread.name for thread in threading.enumerate()}
    model = LLM(str(tiny_model), threads=1)
    model.close()
    model.close()
    left = {thread.name for thread in threading.enumerate()} - before
    assert not {name for name in left if not name.startswith("kernel")}


def test_a_model_that_is_not_there_is_said_in_one_line() -> None:
    with pytest.raises(SettingsError, match="no-such-model"):
        LLM("no-such-model")


def test_the_services_own_guards_do_not_hold_here(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTGEN_API_KEYS", "secret")
    monkeypatch.setenv("TEXTGEN_MODEL", str(tiny_model))
    with LLM(threads=1) as model:
        assert model.generate("One", max_new_tokens=1)
        assert model.info["model"]["name"] == "tiny"

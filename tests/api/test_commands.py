"""`textgen generate | summarize | ask | chat | batch`: against a service, and with a model in the process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live_service import WAIT_S, Live, expect
from typer.testing import CliRunner, Result

from service.cli import app

STORY = "The lighthouse was built by two brothers in 1894. It burned down in 1921. " * 6
LOCAL = ["--max-new-tokens", "12", "--seed", "3"]


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "story.txt"
    path.write_text(STORY, encoding="utf-8")
    return str(path)


@pytest.fixture
def run(live: Live) -> Callable[..., Result]:
    """Run a command against `live`."""

    def run(*arguments: str | Path, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(app, [*map(str, arguments), "--url", live.url], input=stdin)

    return run


def test_generate_prints_the_text_and_nothing_else(run: Callable[..., Result], live: Live) -> None:
    result = run("generate", "Once", *LOCAL)
    (choice,) = live.post("/generate", {"prompt": "Once", "max_new_tokens": 12, "seed": 3}).json()["choices"]
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.removesuffix("\n") == choice["text"].removesuffix("\n")


def test_generate_reads_what_is_piped_in_without_its_last_line_break(run: Callable[..., Result]) -> None:
    assert run("generate", *LOCAL, stdin="Once\n").stdout == run("generate", "Once", *LOCAL).stdout


def test_generate_prints_samples_and_json(run: Callable[..., Result]) -> None:
    reply = json.loads(run("generate", "Once", "--n", "3", *LOCAL, "--json").stdout)
    lines = run("generate", "Once", "--n", "3", "--set", 'stop=["\\n"]', *LOCAL).stdout
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2] and reply["seed"] == 3
    assert [f"[{number}]" in lines for number in range(1, 5)] == [True] * 3 + [False]


def test_any_field_of_the_api_can_be_set(run: Callable[..., Result], live: Live) -> None:
    fields = {"min_p": 0.5, "stop": ["e"], "temperature": 1.5}
    sets = [f"--set={name}={json.dumps(value)}" for name, value in fields.items()]
    reply = json.loads(run("generate", "Once", *LOCAL, *sets, "--json").stdout)
    body = {"prompt": "Once", "max_new_tokens": 12, "seed": 3, **fields}
    assert reply["choices"] == live.post("/generate", body).json()["choices"]


def test_summarize_prints_the_summary(run: Callable[..., Result], live: Live, file: str) -> None:
    body = {"text": STORY, "max_new_tokens": 12, "seed": 3}
    summary = live.post("/summarize", body).json()["summary"]
    assert run("summarize", file, *LOCAL).stdout.strip() == summary.strip() != ""
    assert run("summarize", *LOCAL, stdin=STORY).stdout.strip() == summary.strip()


def test_ask_prints_the_answer_or_says_that_there_is_none(
    run: Callable[..., Result], live: Live, file: str
) -> None:
    answer = live.post("/qa", {"context": STORY, "question": "Who?"}).json()["answer"]
    result = run("ask", file, "Who?")
    assert result.exit_code == 0
    assert result.stdout == (f"{answer}\n" if answer else "")
    assert ("does not answer" in result.stderr) == (answer == "")


def test_ask_lists_candidates_with_scores(run: Callable[..., Result], live: Live, file: str) -> None:
    body = {"context": STORY, "question": "Who?", "num_answers": 3, "no_answer": False}
    answers = live.post("/qa", body).json()["answers"]
    lines = run("ask", file, "Who?", "--num-answers", "3", "--set", "no_answer=false").stdout.splitlines()
    assert lines == [f"{each['score']:6.1f}  {each['answer']}" for each in answers]


def test_chat_says_when_the_model_cannot(run: Callable[..., Result]) -> None:
    result = run("chat", stdin="Hello\n")
    assert result.exit_code == 2 and "TEXTGEN_CHAT_TEMPLATE" in result.stderr


def test_chat_speaks_as_the_models_template_has_it(serve: Callable[..., Live], tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:")
    live = serve(chat_template=template)
    fields = {"max_tokens": 20, "temperature": 0, "stop": ["\n"]}
    lines, messages, told = ["Hello", "x" * 150, "And " * 20], list[dict[str, str]](), list[str]()
    for line in lines:
        messages.append({"role": "user", "content": line.strip()})
        body = {"messages": messages, "overflow": "drop_oldest", **fields}
        reply = live.post("/v1/chat/completions", body).json()
        told.append(reply["choices"][0]["message"]["content"])
        messages.append({"role": "assistant", "content": told[-1]})
    arguments = ["--max-new-tokens", "20", "--temperature", "0", "--set", 'stop=["\n"]', "--url", live.url]
    result = CliRunner().invoke(app, ["chat", *arguments], input="\n\n".join(lines))
    assert (result.exit_code, result.stdout) == (0, "".join(f"{text}\n" for text in told))
    dropped = reply["usage"]["dropped_messages"]
    assert f"{dropped} messages at the beginning no longer fit" in result.stderr and dropped > 0


def test_chat_refuses_a_field_that_nobody_reads(serve: Callable[..., Live], tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages[-1].content }}")
    url = serve(chat_template=template).url
    result = CliRunner().invoke(app, ["chat", "--set", "temprature=1", "--url", url], input="Hello\n")
    assert (result.exit_code, result.stdout) == (2, "") and "no such field: temprature" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["generate", "x", "--temperature", "9"], 2, "temperature has a value that is not legal"),
        (["generate", "x", "--set", "temprature=1"], 2, "did you mean temperature"),
        (["generate", "x", "--set", "temperature"], 2, "FIELD=VALUE"),
        (["generate", "x", "--model", "m"], 2, "contradict"),
        (["ask", "/no/such/file", "Who?"], 2, "/no/such/file cannot be read: No such file"),
        (["batch", "/no/such/file", "--out", "/dev/null"], 2, "cannot be read"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_with_exit_code_2(
    run: Callable[..., Result], arguments: list[str], code: int, said: str
) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (code, "") and said in result.stderr


def test_bytes_that_are_no_text_are_refused(run: Callable[..., Result]) -> None:
    result = run("summarize", stdin=b"\xff\xfe\x00")
    assert result.exit_code == 2 and "UTF-8" in result.stderr


def test_nobody_at_the_address_is_exit_code_1() -> None:
    result = CliRunner().invoke(app, ["generate", "x", "--url", "http://127.0.0.1:1"])
    assert (result.exit_code, result.stderr) == (1, "textgen: nobody answers at http://127.0.0.1:1\n")


def test_a_key_is_read_from_a_file(serve: Callable[..., Live], tmp_path: Path) -> None:
    locked = serve(api_keys="secret-key")
    key = tmp_path / "key"
    key.write_text("secret-key\n")
    command = ["generate", "x", *LOCAL, "--url", locked.url]
    assert CliRunner().invoke(app, command).exit_code == 1
    assert CliRunner().invoke(app, [*command, "--key-file", str(key)]).exit_code == 0


# ---- batches -----------------------------------------------------------------------------------------------


def openai_line(number: int, **body: Any) -> dict[str, Any]:
    filled = {"model": "tiny", "prompt": f"Number {number}", "max_tokens": 4, "temperature": 0, **body}
    return {"custom_id": f"n{number}", "method": "POST", "url": "/v1/completions", "body": filled}


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_batch_answers_in_order(run: Callable[..., Result], live: Live, tmp_path: Path) -> None:
    lines = [openai_line(number, max_tokens=1 + number % 7) for number in range(100)]
    out = tmp_path / "out.jsonl"
    result = run("batch", write_lines(tmp_path / "in.jsonl", lines), "--out", out)
    replies = [json.loads(line) for line in out.read_text().splitlines()]
    assert (result.exit_code, result.stdout) == (0, "")
    assert [reply["custom_id"] for reply in replies] == [line["custom_id"] for line in lines]
    texts = [reply["response"]["body"]["choices"][0]["text"] for reply in replies]
    alone = [live.post("/v1/completions", line["body"]).json()["choices"][0]["text"] for line in lines[:9]]
    assert texts[:9] == alone


def test_a_batch_takes_our_bodies(run: Callable[..., Result], tmp_path: Path) -> None:
    lines = [
        {"prompt": "One", "max_new_tokens": 3},
        {"question": "Who?", "context": STORY},
        {"text": STORY, "max_new_tokens": 3},
    ]
    out = tmp_path / "out.jsonl"
    assert run("batch", write_lines(tmp_path / "in.jsonl", lines), "--out", out).exit_code == 0
    replies = [json.loads(line) for line in out.read_text().splitlines()]
    assert [next(iter({"choices", "answer", "summary"} & set(each))) for each in replies] == [
        "choices",
        "answer",
        "summary",
    ]


def test_a_refused_line_holds_its_error_and_the_exit_code_is_1(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    lines = [openai_line(0), openai_line(1, temperature=9), {"prompt": "One", "top_p": 5}]
    out = tmp_path / "out.jsonl"
    result = run("batch", write_lines(tmp_path / "in.jsonl", lines), "--out", out)
    replies = [json.loads(line) for line in out.read_text().splitlines()]
    assert result.exit_code == 1 and "2 of 3 failed" in result.stderr
    assert [reply["response"]["status_code"] for reply in replies[:2]] == [200, 400]
    assert replies[2]["error"]["param"] == "top_p"
    assert run("batch", tmp_path / "in.jsonl", "--out", out).exit_code == 1  # they still are


def test_an_interrupted_batch_goes_on_where_it_stopped(run: Callable[..., Result], tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [openai_line(number) for number in range(20)])
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    run("batch", source, "--out", whole)
    data = whole.read_bytes()
    end = data.index(b"\n", len(data) // 2) + 1
    cut.write_bytes(data[: end + 10])  # the process ended in the middle of a line
    result = run("batch", source, "--out", cut)
    assert result.exit_code == 0 and "of 20 are done already" in result.stderr
    texts = [
        [json.loads(line)["response"]["body"]["choices"] for line in path.read_text().splitlines()]
        for path in (whole, cut)
    ]
    assert texts[0] == texts[1] and cut.read_bytes().startswith(data[:end])


def test_replies_to_other_requests_are_not_taken_for_these(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    run("batch", write_lines(tmp_path / "a.jsonl", [openai_line(1)]), "--out", out)
    result = run("batch", write_lines(tmp_path / "b.jsonl", [openai_line(2), openai_line(3)]), "--out", out)
    assert result.exit_code == 2 and "other requests: see line 1" in result.stderr
    result = run("batch", write_lines(tmp_path / "c.jsonl", []), "--out", out)
    assert result.exit_code == 2 and "more than requests" in result.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [("{", "line 1 is not JSON"), ("[]", "must be a JSON object"), ('{"a": 1}', "prompt, question, text")],
)
def test_a_line_that_is_no_request_is_named(
    run: Callable[..., Result], tmp_path: Path, line: str, said: str
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text(line)
    result = run("batch", source, "--out", tmp_path / "out.jsonl")
    assert result.exit_code == 2 and said in result.stderr


def test_a_full_queue_is_waited_for(serve: Callable[..., Live], tmp_path: Path) -> None:
    small = serve(max_running=1, max_waiting=1)
    lines = [{"prompt": "One", "max_new_tokens": 30, "ignore_eos": True}] * 12
    out = tmp_path / "out.jsonl"
    command = ["batch", str(write_lines(tmp_path / "in.jsonl", lines)), "--out", str(out), "--url", small.url]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert len(out.read_text().splitlines()) == 12
    assert small.metric("textgen_requests_finished_total", outcome="queue_full") > 0


# ---- without a server --------------------------------------------------------------------------------------


def command(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    env = {**os.environ, "TEXTGEN_THREADS": "1", "TEXTGEN_SPECULATION": "0"}
    return subprocess.Popen(
        [sys.executable, "-m", "service.cli", *arguments],
        env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE, **options,
    )  # fmt: skip


def test_without_a_server_the_text_is_the_same(run: Callable[..., Result], tiny_model: Path) -> None:
    process = command("generate", "Once", *LOCAL, "--model", str(tiny_model))
    output, errors = process.communicate(timeout=WAIT_S)
    assert (process.returncode, errors) == (0, "")
    assert output == run("generate", "Once", *LOCAL).stdout


def test_an_unknown_model_is_one_line_and_exit_code_2() -> None:
    process = command("generate", "Once", "--model", "no-such-model")
    output, errors = process.communicate(timeout=WAIT_S)
    assert (process.returncode, output, len(errors.splitlines())) == (2, "", 1)


def test_ctrl_c_ends_a_batch_at_once_and_keeps_what_is_done(tiny_model: Path, tmp_path: Path) -> None:
    lines = [{"prompt": "One", "max_new_tokens": 200, "ignore_eos": True}] * 20_000  # far more than get done
    source, out = write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"
    process = command("batch", str(source), "--out", str(out), "--model", str(tiny_model))
    expect(lambda: out.exists() and out.read_bytes().count(b"\n") > 3, "the first replies")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=WAIT_S)
    assert process.returncode == 130
    *whole, _ = out.read_bytes().split(b"\n")
    assert 3 < len(whole) < 2000 and all(json.loads(line)["choices"] for line in whole)


def test_serve_takes_its_model_as_an_argument(tiny_model: Path) -> None:
    process = command("serve", str(tiny_model), "--port", "0", "--log-format", "json")
    assert process.stderr is not None
    try:
        log = [json.loads(process.stderr.readline())]
        while log[-1]["event"] != "ready":
            log.append(json.loads(process.stderr.readline()))
    finally:
        process.kill()
        process.communicate()
    assert log[-1]["model"].startswith("tiny")


def test_serve_wants_one_model() -> None:
    process = command("serve", "one", "--model", "two")
    assert process.communicate(timeout=WAIT_S)[1].count("name two models") == 1
    assert process.returncode == 2

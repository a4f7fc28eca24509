"""Special tokens in prompts and in texts, through the API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from live_service import Live, events

EOS = "<|endoftext|>"
GREEDY = {"temperature": 0, "seed": 1}


def num_tokens(live: Live, path: str, **body: Any) -> int:
    reply = live.post(path, {"prompt": f"Hello{EOS}Hi", **body})
    assert reply.status_code == 200, reply.text
    return int(reply.json()["usage"]["prompt_tokens"])


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_special_tokens_in_a_whole_prompt_are_parsed(live: Live, path: str) -> None:
    assert num_tokens(live, path) == len("HelloHi") + 1


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_a_request_may_read_them_as_text(live: Live, path: str) -> None:
    assert num_tokens(live, path, parse_special_tokens=False) == len("HelloHi") + len(EOS)


def test_the_service_may_read_them_as_text_unless_a_request_says_otherwise(
    serve: Callable[..., Live],
) -> None:
    plain = serve(parse_special_tokens=False)
    assert num_tokens(plain, "/generate") == len("HelloHi") + len(EOS)
    assert num_tokens(plain, "/generate", parse_special_tokens=True) == len("HelloHi") + 1


def test_the_fields_of_a_task_are_never_parsed(live: Live) -> None:
    assert num_tokens(live, "/tasks/generate", max_new_tokens=1) == len("HelloHi") + len(EOS)


def complete(live: Live, **body: Any) -> str:
    """A text that ends with the end of text, which is all that the model may say after four tokens."""
    fields = {"prompt": "a", "max_tokens": 9, "logit_bias": {"256": 100}, "min_tokens": 4, **GREEDY, **body}
    choice = live.post("/v1/completions", fields).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    return str(choice["text"])


def test_the_end_of_text_is_shown_where_it_is_asked_for(live: Live) -> None:
    said = complete(live)
    assert EOS not in said
    assert complete(live, skip_special_tokens=False) == said
    assert complete(live, skip_special_tokens=False, include_stop_str_in_output=True) == said + EOS
    assert complete(live, include_stop_str_in_output=True) == said


def test_special_tokens_within_a_text_are_shown_where_they_are_asked_for(live: Live) -> None:
    body = {"prompt": "a", "max_tokens": 3, "logit_bias": {"256": 100}, "ignore_eos": True, **GREEDY}
    shown = live.post("/v1/completions", {**body, "skip_special_tokens": False}).json()
    assert shown["choices"][0]["text"] == 3 * EOS
    assert live.post("/v1/completions", body).json()["choices"][0]["text"] == ""


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_is_shown_where_it_is_asked_for(live: Live, stream: bool) -> None:
    body = {"prompt": "the sea", "max_new_tokens": 20, "ignore_eos": True, **GREEDY}
    text = live.post("/generate", body).json()["choices"][0]["text"]
    stop = text[3:5]
    asked = {**body, "stop": stop, "include_stop_str_in_output": True, "stream": stream}
    reply = live.post("/generate", asked)
    shown = text[: text.index(stop) + 2]
    if stream:
        assert "".join(data["text"] for kind, data in events(reply.text) if kind == "token") == shown
    else:
        assert reply.json()["choices"][0]["text"] == shown


def test_without_its_own_special_tokens_a_prompt_is_what_stands_there(live: Live) -> None:
    assert num_tokens(live, "/v1/completions", add_special_tokens=False) == len("HelloHi") + 1


def test_an_echo_leaves_special_tokens_out(live: Live) -> None:
    body = {"prompt": f"Hello{EOS}Hi", "echo": True, "max_tokens": 0, "logprobs": 0}
    choice = live.post("/v1/completions", body).json()["choices"][0]
    assert choice["text"] == "HelloHi"
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3, 4, 5, 5, 6]

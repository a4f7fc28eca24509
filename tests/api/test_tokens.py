"""vLLM's shapes for tokens, and the paths that others probe a service by."""

from __future__ import annotations

from typing import Any

import pytest
from live_service import Live

EOS = "<|endoftext|>"


def test_a_prompt_has_its_tokens(live: Live) -> None:
    reply = live.post("/tokenize", {"model": "tiny", "prompt": f"ab{EOS}", "return_token_strs": True}).json()
    assert reply == {
        "count": 3,
        "max_model_len": 256,
        "tokens": reply["tokens"],
        "token_strs": ["a", "b", EOS],
    }
    assert reply["tokens"][2] == 256


def test_tokens_have_their_text(live: Live) -> None:
    text = f"the sea 海{EOS}!"
    tokens = live.post("/tokenize", {"prompt": text, "add_special_tokens": False}).json()["tokens"]
    assert live.post("/detokenize", {"tokens": tokens}).json() == {"prompt": text}


def test_a_large_prompt_is_tokenised_too(live: Live) -> None:
    assert live.post("/tokenize", {"prompt": "a " * 12000}).json()["count"] == 24000


def test_the_tokenizer_tells_its_special_tokens(live: Live) -> None:
    info = live.http.get("/tokenizer_info").json()
    assert (info["eos_token"], info["eos_token_id"], info["vocab_size"]) == (EOS, 256, 257)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}, "prompt"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [257]}, "tokens"),
        ("/detokenize", {"tokens": ["a"]}, "tokens"),
        ("/tokenize", {"prompt": "a", "model": "other"}, "model"),
    ],
)
def test_what_cannot_be_tokenised_is_refused_by_name(live: Live, path: str, body: Any, param: str) -> None:
    reply = live.post(path, body)
    assert reply.status_code in (404, 422) and reply.json()["error"]["param"] == param


@pytest.mark.parametrize("path", ["/health", "/ping"])
def test_a_service_that_is_ready_is_healthy(live: Live, path: str) -> None:
    assert live.http.get(path).status_code == 200


IGNORED = {
    "metadata": {"a": "b"},
    "store": True,
    "priority": 1,
    "stream_options": {"include_usage": True, "x": 1},
}


def test_what_v1_does_not_know_is_ignored_and_named(live: Live, log_lines: list[str]) -> None:
    for _ in range(2):
        reply = live.post("/v1/completions", {"prompt": "a", "stream": True, **IGNORED})
    assert reply.status_code == 200
    assert reply.headers["x-ignored-fields"] == "metadata, store, priority, stream_options.x"
    told = [line for line in log_lines if "endpoint=/v1/completions field=priority" in line]
    assert len(told) == 1


def test_a_name_that_is_none_is_not_repeated(live: Live) -> None:
    reply = live.post("/v1/completions", {"prompt": "a", "max_tokens": 1, "ev\nil: x": 1})
    assert reply.headers["x-ignored-fields"] == "?"


@pytest.mark.parametrize(
    "field",
    [
        {"top_k": -1},
        {"max_tokens": -1, "logit_bias": {"256": 100}},
        {"max_tokens": None},
        {"logitBias": {"5": 1}},
        {"stream_options": {"continuous_usage_stats": True}, "stream": True},
        {"guided_json": None, "tools": None, "response_format": {"type": "text"}, "use_beam_search": False},
    ],
)
def test_what_other_servers_understand_is_understood(live: Live, field: dict[str, Any]) -> None:
    reply = live.post("/v1/completions", {"prompt": "a", "seed": 1, **field})
    assert reply.status_code == 200 and "x-ignored-fields" not in reply.headers


def test_both_spellings_of_a_bias_do_the_same(live: Live) -> None:
    for name in ("logit_bias", "logitBias"):
        body = {"prompt": "a", "max_tokens": 2, "temperature": 0, name: {"5": 100}}
        reply = live.post("/v1/completions", {**body, "logprobs": 0}).json()
        assert set(reply["choices"][0]["logprobs"]["tokens"]) == {
            live.post("/detokenize", {"tokens": [5]}).json()["prompt"]
        }


def test_of_nothing_but_the_likeliest_is_greedy(live: Live) -> None:
    def text(**fields: Any) -> Any:
        return live.post("/v1/completions", {"prompt": "the sea", **fields}).json()["choices"]

    assert text(top_p=0) == text(temperature=0)


@pytest.mark.parametrize("field", [{"tools": [1]}, {"bad_words": ["a"]}, {"best_of": 2}, {"suffix": "a"}])
def test_what_would_change_the_answer_is_refused_by_name(live: Live, field: dict[str, Any]) -> None:
    error = live.post("/v1/completions", {"prompt": "a", **field}).json()["error"]
    assert error["param"] == next(iter(field)) and error["param"] in error["message"]


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/v1/embeddings", "only generates text"),
        ("/v1/responses", "POST /v1/chat/completions"),
        ("/chat/completions", "put /v1 before it"),
        ("/v1/v1/chat/completions", "once"),
        ("/v1/engines/davinci/completions", "POST /v1/completions"),
        ("/v1/completion", "POST /v1/completions"),
        ("/completion", "POST /v1/completions"),
        ("/v1/chat", "POST /v1/chat/completions"),
        ("/generate/", "slash"),
        ("/nothing", "GET /docs"),
    ],
)
def test_a_path_that_is_not_there_is_named_with_what_to_use(live: Live, path: str, hint: str) -> None:
    message = live.post(path, {}).json()["error"]["message"]
    assert path in message and hint in message


def test_a_path_that_is_none_is_not_repeated(live: Live) -> None:
    assert "nothing at this path" in live.http.get("/%3Cscript%3E").json()["error"]["message"]


def test_a_native_body_names_the_unknown_field_and_the_nearest_one(live: Live) -> None:
    message = live.post("/generate", {"prompt": "a", "temprature": 1}).json()["error"]["message"]
    assert "temprature" in message and "did you mean temperature?" in message

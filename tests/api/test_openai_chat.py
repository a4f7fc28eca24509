"""Conversations with OpenAI's own client, unchanged, against the service on a socket."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from live_service import Live

HELLO: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]


@pytest.fixture
def client(talkative: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{talkative.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, messages: Any = HELLO, **fields: Any) -> Any:
    return client.chat.completions.create(
        **{"model": "tiny", "messages": messages, "max_tokens": 8, "seed": 1, **fields}
    )


def test_a_turn_has_its_text_and_usage(client: openai.OpenAI) -> None:
    reply = ask(client, seed=1)
    assert (reply.object, reply.choices[0].message.role) == ("chat.completion", "assistant")
    assert reply.choices[0].message.content and reply.choices[0].finish_reason == "length"
    assert reply.usage.prompt_tokens == len("system: Be brief.") + len("user: hello") + len("assistant:") + 2
    assert reply.usage.completion_tokens == 8


def test_streamed_pieces_join_to_the_same_text(client: openai.OpenAI) -> None:
    fields = {"seed": 3, "max_tokens": 30, "temperature": 0.9}
    chunks = list(ask(client, **fields, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    whole = ask(client, **fields).choices[0]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.message.content
    assert [c.choices[0].finish_reason for c in chunks][-1] == whole.finish_reason


def test_a_stream_tells_its_usage_if_asked(client: openai.OpenAI) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = list(ask(client, stream=True, stream_options=options))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 8
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts) and counts[0] >= 1


def test_the_limit_has_two_names(client: openai.OpenAI) -> None:
    reply = ask(client, max_tokens=openai.NOT_GIVEN, max_completion_tokens=3)
    assert reply.usage.completion_tokens == 3


def test_without_a_limit_a_turn_may_fill_the_window(client: openai.OpenAI) -> None:
    reply = ask(client, max_tokens=-1, logit_bias={"256": -100})
    assert reply.usage.total_tokens == 256


def test_samples_come_by_index_and_differ(client: openai.OpenAI) -> None:
    reply = ask(client, n=3, seed=5, temperature=1.0)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in reply.choices}) == 3


def test_log_probabilities_have_a_conversations_shape(client: openai.OpenAI) -> None:
    reply = ask(client, logprobs=True, top_logprobs=2, temperature=0)
    content = reply.choices[0].logprobs.content
    assert len(content) == 8 and all(len(each.top_logprobs) == 2 for each in content)
    assert content[0].logprob == content[0].top_logprobs[0].logprob
    assert all(len(each.bytes) == 1 for each in content)  # of a model whose tokens are bytes


def test_a_stop_string_ends_a_turn(client: openai.OpenAI) -> None:
    text = ask(client, max_tokens=20, temperature=0).choices[0].message.content
    cut = ask(client, max_tokens=20, temperature=0, stop=[text[5]]).choices[0]
    assert cut.message.content == text[: text.index(text[5])] and cut.finish_reason == "stop"


def test_parts_of_type_text_are_a_content(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    whole = ask(client, [{"role": "user", "content": "hel\nlo"}], temperature=0)
    assert ask(client, [{"role": "user", "content": parts}], temperature=0).choices == whole.choices


def test_special_tokens_in_a_message_are_text(client: openai.OpenAI) -> None:
    plain = ask(client, [{"role": "user", "content": ""}]).usage.prompt_tokens
    typed = ask(client, [{"role": "user", "content": "<|endoftext|>"}]).usage.prompt_tokens
    assert typed == plain + len("<|endoftext|>")


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [TOOL]),
        ("modalities", ["text", "audio"]),
        ("top_logprobs", 2),
        ("max_completion_tokens", 0),
        ("n", 0),
        ("temperature", 3),
        ("add_generation_prompt", False),
        ("allowed_token_ids", [5]),
        ("best_of", 3),
        ("chat_template", "{{ messages }}"),
        ("continue_final_message", True),
        ("documents", [{"title": "a", "text": "b"}]),
        ("echo", True),
        ("logits_processors", ["a"]),
        ("prompt_logprobs", 1),
        ("truncate_prompt_tokens", 5),
        ("response_format", {"type": "structural_tag"}),
        ("structured_outputs", {"json": {}, "structural_tag": "{}"}),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(client: openai.OpenAI, field: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, extra_body={field: value})
    assert refused.value.param == field and field in refused.value.message


def test_more_alternatives_than_there_may_be_are_refused_by_their_own_name(client: openai.OpenAI) -> None:
    assert len(ask(client, logprobs=True, top_logprobs=20).choices[0].logprobs.content[0].top_logprobs) == 20
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, logprobs=True, top_logprobs=21)
    assert refused.value.param == "top_logprobs" and "from 0 to 20" in refused.value.message


@pytest.mark.parametrize(
    "fields",
    [
        {"add_generation_prompt": True, "continue_final_message": False, "echo": False},
        {"tools": [], "tool_choice": "none", "functions": [], "function_call": "none"},
        {"logit_bias": {}, "stop": [], "response_format": {"type": "text"}, "modalities": ["text"]},
        {"best_of": 1, "documents": [], "bad_words": [], "prompt_logprobs": None, "user": "me"},
        {"top_k": -1, "max_completion_tokens": None, "stream_options": None},
    ],
)
def test_what_asks_for_nothing_changes_nothing_and_is_not_told(
    talkative: Live, fields: dict[str, Any]
) -> None:
    body = {"messages": HELLO, "max_tokens": 8, "seed": 1}
    plain, reply = (talkative.post("/v1/chat/completions", {**body, **more}) for more in ({}, fields))
    assert reply.json()["choices"] == plain.json()["choices"]
    assert "X-Ignored-Fields" not in reply.headers


def test_what_nothing_reads_is_told_and_changes_nothing(talkative: Live) -> None:
    fields = {
        **{"metadata": {"a": "b"}, "store": True, "service_tier": "auto", "reasoning_effort": "low"},
        **{"parallel_tool_calls": False, "prompt_cache_key": "x", "safety_identifier": "x", "priority": 1},
        **{"chat_template_kwargs": {"enable_thinking": False}, "guided_decoding_backend": "auto"},
    }
    body = {"messages": HELLO, "max_tokens": 8, "seed": 1}
    plain, reply = (talkative.post("/v1/chat/completions", {**body, **more}) for more in ({}, fields))
    assert reply.json()["choices"] == plain.json()["choices"]
    assert {*reply.headers["X-Ignored-Fields"].split(", ")} == {*fields}


FORMS: list[tuple[dict[str, Any], str]] = [
    ({"guided_json": {"type": "boolean"}}, "true|false"),
    ({"guided_regex": "[ab]{3}"}, "[ab]{3}"),
    ({"guided_choice": ["yes", "no"]}, "yes|no"),
    ({"guided_grammar": 'start: "x" "y"'}, "xy"),
    ({"structured_outputs": {"json": {"type": "boolean"}, "disable_any_whitespace": True}}, "true|false"),
    ({"response_format": {"type": "json_object", "schema": {"type": "boolean"}}}, "true|false"),
    ({"response_format": {"type": "json", "value": {"type": "boolean"}}}, "true|false"),
    ({"response_format": {"type": "regex", "value": "[ab]{3}"}}, "[ab]{3}"),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "strict": True, "schema": {"type": "boolean"}},
            }
        },
        "true|false",
    ),
    ({"json_schema": {"type": "boolean"}}, "true|false"),
    ({"json_schema": '{"type": "boolean"}'}, "true|false"),
    ({"regex": "[ab]{3}"}, "[ab]{3}"),
    ({"grammar": 'root ::= "x" "y"'}, "xy"),
    ({"ebnf": 'root ::= "x" "y"'}, "xy"),
]


@pytest.mark.parametrize(("fields", "pattern"), FORMS, ids=str)
def test_every_spelling_of_a_form_is_followed(
    client: openai.OpenAI, fields: dict[str, Any], pattern: str
) -> None:
    [choice] = ask(client, max_tokens=20, extra_body=fields).choices
    assert re.fullmatch(pattern, choice.message.content) and choice.finish_reason == "stop"


def test_a_developers_message_is_the_systems(client: openai.OpenAI) -> None:
    as_developer = [{"role": "developer", "content": "Be brief."}, HELLO[1]]
    assert ask(client, as_developer).choices == ask(client).choices


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_a_part_that_is_no_text_is_refused_by_its_place(client: openai.OpenAI, kind: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, [{"role": "user", "content": [{"type": kind, kind: {"url": "x"}}]}])
    assert refused.value.param == "messages.0.content.0" and kind in refused.value.message


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hello", "messages"),
        ([{"role": "tool", "content": "x"}], "messages.0.role"),
        ([{"role": "user"}], "messages.0.content"),
        ([{"role": "user", "content": 5}], "messages.0.content"),
        (["x"], "messages"),
    ],
)
def test_messages_that_are_none_are_refused_by_their_place(
    client: openai.OpenAI, messages: Any, param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, messages)
    assert refused.value.param == param and refused.value.code == "invalid_request"


LONG = [
    {"role": "system", "content": "Be brief."},
    *({"role": role, "content": str(at) * 40} for at in range(5) for role in ("user", "assistant")),
    {"role": "user", "content": "the end"},
]


def test_a_history_longer_than_the_window_is_an_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, LONG)
    assert refused.value.code == "context_length_exceeded" and refused.value.param == "messages"
    assert 'overflow: "drop_oldest"' in refused.value.message


def test_the_oldest_turns_are_dropped_whole_and_the_system_message_stays(client: openai.OpenAI) -> None:
    kept = [LONG[0], *LONG[-5:]]  # two turns of 99 tokens; a third would not fit
    dropped = ask(client, LONG, temperature=0, extra_body={"overflow": "drop_oldest"})
    assert dropped.choices == ask(client, kept, temperature=0).choices
    assert dropped.usage.prompt_tokens == ask(client, kept).usage.prompt_tokens
    assert dropped.usage.dropped_messages == len(LONG) - len(kept)
    assert not hasattr(ask(client, kept, extra_body={"overflow": "drop_oldest"}).usage, "dropped_messages")


def test_a_last_turn_that_does_not_fit_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(client, [{"role": "user", "content": "x" * 9000}], extra_body={"overflow": "drop_oldest"})
    assert refused.value.code == "context_length_exceeded"


def test_a_model_without_a_way_to_talk_says_how_to_give_one(live: Live) -> None:
    reply = live.post("/v1/chat/completions", {"messages": HELLO})
    assert reply.status_code == 400
    assert "TEXTGEN_CHAT_TEMPLATE" in reply.json()["error"]["message"]


def test_an_alias_is_the_model(client: openai.OpenAI) -> None:
    assert ask(client, model="gpt-4o").model == "tiny"
    with pytest.raises(openai.NotFoundError):
        ask(client, model="gpt-5")


def test_the_built_in_model_talks(serve: Callable[..., Live]) -> None:
    built_in = serve(model="")
    reply = built_in.post("/v1/chat/completions", {"messages": HELLO, "seed": 1}).json()
    said = reply["choices"][0]["message"]["content"]
    assert said and said == said.lstrip() and "\n" not in said


def test_a_turn_has_the_form_that_is_asked_for(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = {
        "type": "json_schema",
        "json_schema": {"name": "f", "schema": {**schema, "additionalProperties": False}},
    }
    said = ask(client, max_tokens=60, response_format=form, seed=1).choices[0].message.content
    assert json.loads(said)["ok"] in (True, False)

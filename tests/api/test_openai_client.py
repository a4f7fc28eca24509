"""OpenAI's own client, unchanged, against the service on a socket."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from live_service import Live


@pytest.fixture
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def complete(client: openai.OpenAI, **fields: object) -> openai.types.Completion:
    return client.completions.create(model="tiny", **fields)  # type: ignore[call-overload,no-any-return]


def test_a_completion_has_its_text_and_usage(client: openai.OpenAI) -> None:
    reply = complete(client, prompt="hello", max_tokens=5, seed=1)
    assert reply.id.startswith("cmpl-") and reply.object == "text_completion"
    assert reply.usage is not None and reply.usage.prompt_tokens == 5


def test_streamed_chunks_join_to_the_same_text(client: openai.OpenAI) -> None:
    fields = {"prompt": "hello", "max_tokens": 30, "seed": 1, "temperature": 0.9}
    chunks = complete(client, **fields, stream=True)
    streamed = "".join(chunk.choices[0].text for chunk in chunks)  # type: ignore[attr-defined]
    assert streamed == complete(client, **fields).choices[0].text


def test_a_stream_ends_with_its_usage_if_asked(client: openai.OpenAI) -> None:
    options = {"include_usage": True}
    chunks = list(complete(client, prompt="hello", max_tokens=5, stream=True, stream_options=options))
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens > 5  # type: ignore[attr-defined]
    assert all(chunk.usage is None for chunk in chunks[:-1])  # type: ignore[attr-defined]


def test_samples_of_several_prompts_come_by_index(client: openai.OpenAI) -> None:
    reply = complete(client, prompt=["a", "b"], n=2, echo=True, max_tokens=1)
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert [choice.text[0] for choice in reply.choices] == ["a", "a", "b", "b"]
    assert reply.usage is not None and reply.usage.prompt_tokens == 2


def test_token_ids_are_a_prompt(client: openai.OpenAI) -> None:
    one = complete(client, prompt=[39, 72], max_tokens=4, seed=1)
    two = complete(client, prompt=[[39, 72], [40]], max_tokens=4, seed=1)
    assert one.choices[0].text == two.choices[0].text


def test_log_probabilities_are_parallel_lists(client: openai.OpenAI) -> None:
    found = complete(
        client, prompt="ab", max_tokens=3, logprobs=2, echo=True, extra_body={"ignore_eos": True}
    )
    scores = found.choices[0].logprobs
    assert scores is not None and scores.tokens is not None and len(scores.tokens) == 5
    assert scores.token_logprobs is not None and scores.token_logprobs[0] is None
    assert scores.top_logprobs is not None and scores.top_logprobs[0] is None
    assert scores.top_logprobs[-1][scores.tokens[-1]] == scores.token_logprobs[-1]
    assert scores.text_offset is not None and scores.text_offset[:2] == [0, 1]


def test_echo_without_new_tokens_scores_the_prompt(client: openai.OpenAI) -> None:
    found = complete(client, prompt="abc", max_tokens=0, logprobs=0, echo=True).choices[0]
    assert found.text == "abc" and found.logprobs is not None
    assert found.logprobs.token_logprobs is not None and len(found.logprobs.token_logprobs) == 3


def test_our_own_fields_go_in_the_extra_body(client: openai.OpenAI) -> None:
    extra = {"top_k": 1, "min_tokens": 3, "repetition_penalty": 1.1, "min_p": 0.1, "stop_token_ids": [5]}
    assert complete(client, prompt="a", max_tokens=4, extra_body=extra).choices


def test_a_bias_decides_the_token(client: openai.OpenAI) -> None:
    found = complete(client, prompt="a", max_tokens=3, temperature=0, logit_bias={"39": 100})
    assert len(set(found.choices[0].text)) == 1


def test_nulls_are_absent(client: openai.OpenAI) -> None:
    extra = {"stop": None, "logprobs": None, "suffix": None, "best_of": None, "user": None, "n": None}
    assert len(complete(client, prompt="a", max_tokens=1, extra_body=extra).choices) == 1


def test_a_prompt_too_long_has_openais_code(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, prompt="a" * 300)
    assert caught.value.code == "context_length_exceeded"


def test_a_model_that_is_not_served_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-4", prompt="a")


def test_the_served_model_is_listed_and_can_be_looked_up(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "textgen"

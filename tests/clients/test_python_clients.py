"""Python clients, unchanged, at the versions of requirements.txt. Each says one thing it is used for."""

from __future__ import annotations

import os
from typing import Any

import pytest
from conftest import MODEL

os.environ.setdefault("OPENAI_API_KEY", "unused")
HELLO: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello! Who are you?"}]
STORY = "The ship left the harbour at dawn. The captain was Anna. The sea was calm and the wind was cold."


@pytest.fixture(scope="module")
def openai_client(url: str) -> Any:
    import openai

    return openai.OpenAI(base_url=f"{url}/v1")


def test_openai_completions(openai_client: Any) -> None:
    fields = {"model": MODEL, "prompt": "The sea", "max_tokens": 12, "seed": 1}
    whole = openai_client.completions.create(**fields).choices[0].text
    chunks = openai_client.completions.create(**fields, stream=True)
    assert whole and "".join(chunk.choices[0].text for chunk in chunks) == whole


def test_openai_chat(openai_client: Any) -> None:
    fields = {"model": MODEL, "messages": HELLO, "max_completion_tokens": 12, "seed": 1}
    whole = openai_client.chat.completions.create(**fields).choices[0].message.content
    chunks = openai_client.chat.completions.create(**fields, stream=True)
    assert whole and "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole


def test_huggingface_hub(url: str) -> None:
    from huggingface_hub import InferenceClient

    client = InferenceClient(model=url)
    whole = client.text_generation("The sea", max_new_tokens=12)
    assert whole and "".join(client.text_generation("The sea", max_new_tokens=12, stream=True)) == whole
    assert client.question_answering(question="Who was the captain?", context=STORY).answer in STORY
    assert InferenceClient(model=f"{url}/summarize").summarization(STORY).summary_text in STORY
    assert InferenceClient(base_url=url).chat_completion(HELLO, max_tokens=8).choices[0].message.content


def test_langchain_openai(url: str) -> None:
    from langchain_openai import ChatOpenAI, OpenAI

    chat = ChatOpenAI(base_url=f"{url}/v1", model=MODEL, max_tokens=12, seed=1)
    assert chat.invoke("Hello!").content
    assert "".join(str(chunk.content) for chunk in chat.stream("Hello!")) == chat.invoke("Hello!").content
    assert OpenAI(base_url=f"{url}/v1", model=MODEL, max_tokens=8).invoke("The sea")


def test_langchain_huggingface(url: str) -> None:
    from langchain_huggingface import HuggingFaceEndpoint

    endpoint = HuggingFaceEndpoint(
        endpoint_url=url, max_new_tokens=8, seed=1, huggingfacehub_api_token="unused"
    )
    assert endpoint.invoke("The sea")
    assert "".join(endpoint.stream("The sea")) == endpoint.invoke("The sea")


def test_litellm(url: str) -> None:
    import litellm

    where = {"api_base": f"{url}/v1", "api_key": "unused", "max_tokens": 8, "seed": 1}
    reply = litellm.completion(model=f"openai/{MODEL}", messages=HELLO, **where)
    assert reply.choices[0].message.content
    chunks = litellm.completion(model=f"openai/{MODEL}", messages=HELLO, stream=True, **where)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == reply.choices[0].message.content
    assert (
        litellm.text_completion(model=f"text-completion-openai/{MODEL}", prompt="The sea", **where)
        .choices[0]
        .text
    )


def test_llama_index(url: str) -> None:
    from llama_index.core.llms import ChatMessage
    from llama_index.llms.openai_like import OpenAILike

    where = {"api_base": f"{url}/v1", "api_key": "unused", "model": MODEL, "max_tokens": 8}
    chat = OpenAILike(is_chat_model=True, **where)
    assert chat.chat([ChatMessage(role="user", content="Hello!")]).message.content
    assert "".join(r.delta or "" for r in chat.stream_chat([ChatMessage(role="user", content="Hello!")]))
    assert OpenAILike(is_chat_model=False, **where).complete("The sea").text


def test_lm_eval_scores_what_the_service_scores(url: str, openai_client: Any) -> None:
    """Its log likelihood of a continuation, tokenised by the service, is that of the prompt's echo."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    model = LocalCompletionsAPI(
        model=MODEL, base_url=f"{url}/v1/completions", tokenizer_backend="remote", num_concurrent=1
    )
    context, continuation = "Once upon a time there was a", " king"
    asked = Instance("loglikelihood", {}, (context, continuation), 0)
    (found,) = model.loglikelihood([asked], disable_tqdm=True)
    echo = openai_client.completions.create(
        model=MODEL, prompt=context + continuation, echo=True, max_tokens=0, logprobs=1
    )
    scores = echo.choices[0].logprobs.token_logprobs
    num_context = len(
        openai_client.completions.create(model=MODEL, prompt=context, echo=True, max_tokens=0, logprobs=1)
        .choices[0]
        .logprobs.tokens
    )
    assert found[0] == pytest.approx(sum(scores[num_context:]), abs=1e-4)

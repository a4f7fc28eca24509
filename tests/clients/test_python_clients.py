"""Python clients, unchanged, at the versions of requirements.txt. Each says one thing it is used for."""

from __future__ import annotations

import os
from typing import Any, Literal

import pytest
from conftest import MODEL
from pydantic import BaseModel

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


class Mood(BaseModel):
    """What structured answers are asked for."""

    mood: Literal["good", "bad"]
    is_sure: bool


LIKES: Any = [{"role": "user", "content": "I like it."}]


def test_openai_parses_what_a_schema_asks_for(openai_client: Any) -> None:
    fields = {"model": MODEL, "messages": LIKES, "response_format": Mood, "max_tokens": 60, "seed": 1}
    parsed = openai_client.chat.completions.parse(**fields).choices[0].message.parsed
    assert isinstance(parsed, Mood)
    with openai_client.chat.completions.stream(**fields) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == parsed


def test_instructor(openai_client: Any) -> None:
    import instructor

    client = instructor.from_openai(openai_client, mode=instructor.Mode.JSON_SCHEMA)
    asked: Any = {"model": MODEL, "messages": LIKES, "max_tokens": 60, "max_retries": 0}
    assert isinstance(client.chat.completions.create(response_model=Mood, **asked), Mood)


def test_outlines(url: str, openai_client: Any) -> None:
    import huggingface_hub
    import outlines

    chat = outlines.from_vllm(openai_client, MODEL)
    Mood.model_validate_json(chat("I like it.", Mood, max_tokens=60))
    assert chat("Hello!", Literal["yes", "no"], max_tokens=8) in ("yes", "no")
    tgi = outlines.from_tgi(huggingface_hub.InferenceClient(url))
    Mood.model_validate_json(tgi("I like it.", Mood, max_new_tokens=60))
    assert "".join(tgi.stream("The sea", max_new_tokens=8)) == tgi("The sea", max_new_tokens=8)


def test_pydantic_ai(url: str) -> None:
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{url}/v1", api_key="unused"))
    assert Agent(model, system_prompt="Be brief.").run_sync("Hello!").output
    assert isinstance(Agent(model, output_type=NativeOutput(Mood)).run_sync("I like it.").output, Mood)


def test_openai_agents(url: str) -> None:
    import openai
    from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, set_tracing_disabled

    set_tracing_disabled(True)
    model = OpenAIChatCompletionsModel(MODEL, openai.AsyncOpenAI(base_url=f"{url}/v1"))
    settings = ModelSettings(max_tokens=60)
    common: Any = {"name": "A", "instructions": "Be brief.", "model": model, "model_settings": settings}
    assert Runner.run_sync(Agent(**common), "Hello!").final_output
    assert isinstance(Runner.run_sync(Agent(**common, output_type=Mood), "I like it.").final_output, Mood)


def test_haystack(url: str) -> None:
    from haystack.components.generators.chat import OpenAIChatGenerator
    from haystack.dataclasses import ChatMessage

    fields: Any = {"model": MODEL, "api_base_url": f"{url}/v1", "generation_kwargs": {"max_tokens": 8}}
    pieces: list[str] = []
    for callback in (None, lambda chunk: pieces.append(chunk.content)):
        generator = OpenAIChatGenerator(**fields, streaming_callback=callback)
        [reply] = generator.run([ChatMessage.from_user("Hello!")])["replies"]
        assert reply.text
    assert "".join(pieces) == reply.text


def test_dspy(url: str) -> None:
    import dspy

    where: Any = {"api_base": f"{url}/v1", "api_key": "unused", "max_tokens": 8, "cache": False}
    assert dspy.LM(f"openai/{MODEL}", **where)("Hello!")[0]
    assert dspy.LM(f"text-completion-openai/{MODEL}", **where)("The sea")[0]


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

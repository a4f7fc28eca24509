"""huggingface_hub's own client, unchanged, against the service on a socket."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import ValidationError
from live_service import Live

PARAMETERS: dict[str, Any] = {"max_new_tokens": 12, "seed": 5}


@pytest.fixture
def client(live: Live) -> InferenceClient:
    return InferenceClient(model=live.url)


def native(live: Live, **fields: Any) -> Any:
    reply = live.post("/generate", {"prompt": "the sea", "seed": 5, "max_new_tokens": 12, **fields})
    return reply.json()["choices"][0]


def test_a_text_is_that_of_generate(client: InferenceClient, live: Live) -> None:
    assert client.text_generation("the sea", **PARAMETERS) == native(live, temperature=0)["text"]


def test_a_draw_is_asked_for_by_any_field_that_draws(client: InferenceClient, live: Live) -> None:
    said = client.text_generation("the sea", temperature=0.9, top_p=0.8, **PARAMETERS)
    assert said == native(live, temperature=0.9, top_p=0.8)["text"]
    assert client.text_generation("the sea", do_sample=True, **PARAMETERS) == native(live)["text"]


def test_the_prompt_stands_before_the_text_where_it_is_asked_for(client: InferenceClient) -> None:
    said = client.text_generation("the sea", **PARAMETERS)
    assert client.text_generation("the sea", return_full_text=True, **PARAMETERS) == "the sea" + said


def test_streamed_tokens_join_to_the_same_text(client: InferenceClient) -> None:
    whole = client.text_generation("the sea", **PARAMETERS)
    assert "".join(client.text_generation("the sea", stream=True, **PARAMETERS)) == whole


def test_details_tell_each_token(client: InferenceClient) -> None:
    found = client.text_generation(
        "the sea", details=True, decoder_input_details=True, top_n_tokens=2, **PARAMETERS
    )
    details = found.details
    assert details is not None and details.finish_reason == "eos_token"
    assert len(details.tokens) == details.generated_tokens and details.tokens[-1].special
    assert len(details.prefill) == 7 and details.prefill[0].logprob is None
    assert details.seed == 5 and all(token.logprob <= 0 for token in details.tokens)
    raw: Any = details.top_tokens  # the client leaves these as they come
    assert [top[0]["id"] for top in raw] == [token.id for token in details.tokens]
    assert found.generated_text == client.text_generation("the sea", **PARAMETERS)


def test_details_of_a_stream_come_with_its_last_token(client: InferenceClient) -> None:
    frames = list(client.text_generation("the sea", stream=True, details=True, **PARAMETERS))
    assert [frame.index for frame in frames] == list(range(1, len(frames) + 1))
    assert all(frame.generated_text is None for frame in frames[:-1])
    assert frames[-1].details is not None and frames[-1].details.generated_tokens == len(frames)
    assert frames[-1].generated_text == "".join(frame.token.text for frame in frames)


def test_a_stop_string_and_the_end_of_text_are_told_apart(live: Live) -> None:
    text = native(live, temperature=0, ignore_eos=True)["text"]

    def reason(**parameters: Any) -> str:
        body = {"inputs": "the sea", "parameters": {**PARAMETERS, "details": True, **parameters}}
        return str(live.post("/generate", body).json()["details"]["finish_reason"])

    assert reason(stop=[text[3:5]], ignore_eos=True) == "stop_sequence"
    ends = {reason(do_sample=True, seed=seed, max_new_tokens=200, temperature=2.0) for seed in range(8)}
    assert "eos_token" in ends


def test_the_best_of_several_is_the_likeliest(client: InferenceClient) -> None:
    found = client.text_generation("the sea", best_of=4, do_sample=True, details=True, **PARAMETERS)
    assert found.details is not None and found.details.best_of_sequences is not None

    def likelihood(sequence: Any) -> float:
        return math.fsum(token.logprob for token in sequence.tokens)

    others = [likelihood(each) for each in found.details.best_of_sequences]
    assert len(others) == 3 and likelihood(found.details) >= max(others)


def test_only_the_last_tokens_of_a_prompt_are_read_where_so_many_are_asked_for(
    client: InferenceClient,
) -> None:
    short = client.text_generation("sea", **PARAMETERS)
    assert client.text_generation("the sea", truncate=3, **PARAMETERS) == short


@pytest.fixture(scope="module")
def built_in(serve: Callable[..., Live]) -> Live:
    return serve(model="")


STORY = "The ship left the harbour at dawn. The captain was Anna. The sea was calm and the wind was cold."


def test_a_question_is_answered_at_the_bare_address_and_at_its_own(built_in: Live) -> None:
    for url in (built_in.url, f"{built_in.url}/qa"):
        found = InferenceClient(model=url).question_answering(question="Who was the captain?", context=STORY)
        assert found.answer == STORY[found.start : found.end] and 0 <= found.score <= 1


def test_the_best_answers_come_in_a_list(built_in: Live) -> None:
    found = InferenceClient(model=built_in.url).question_answering(
        question="Who was the captain?", context=STORY, top_k=3
    )
    assert isinstance(found, list) and len(found) > 1


def test_a_text_is_summarized(built_in: Live) -> None:
    found = InferenceClient(model=f"{built_in.url}/summarize").summarization(STORY)
    assert found.summary_text == built_in.post("/summarize", {"text": STORY}).json()["summary"]


def test_a_conversation_is_held(built_in: Live) -> None:
    client = InferenceClient(base_url=built_in.url)
    found = client.chat_completion([{"role": "user", "content": "Hello!"}], max_tokens=8)
    assert found.choices[0].message.content


def test_a_refusal_is_in_the_words_of_tgi(live: Live, client: InferenceClient) -> None:
    reply = live.post("/generate", {"inputs": "a", "parameters": {"temperature": -1}})
    assert reply.status_code == 422
    assert set(reply.json()) == {"error", "error_type"} and "temperature" in reply.json()["error"]
    with pytest.raises(ValidationError, match="temperature"):
        client.text_generation("a", temperature=-1.0)


@pytest.mark.parametrize("path", ["/", "/generate", "/generate_stream", "/invocations"])
@pytest.mark.parametrize(
    "parameters",
    [
        *({"watermark": True}, {"adapter_id": "x"}, {"best_of": 0}, {"truncate": 0}),
        *({"top_n_tokens": 21}, {"max_length": 20}, {"min_length": 2}),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(live: Live, path: str, parameters: dict[str, Any]) -> None:
    reply = live.post(path, {"inputs": "a", "parameters": parameters})
    assert reply.status_code == 422 and next(iter(parameters)) in reply.json()["error"]


def test_what_nothing_reads_is_ignored_and_told(live: Live) -> None:
    reply = live.post("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 1, "typical_p": 0.9}})
    assert reply.headers["x-ignored-fields"] == "parameters.typical_p"


def test_stop_sequences_are_stop_strings(live: Live) -> None:
    parameters = [{**PARAMETERS, name: ["e"]} for name in ("stop", "stop_sequences")]
    stop, sequences = (live.post("/", {"inputs": "the sea", "parameters": p}) for p in parameters)
    assert sequences.json() == stop.json() and "x-ignored-fields" not in sequences.headers


def test_a_stream_of_tgi_has_its_frames(live: Live) -> None:
    text = live.post("/generate_stream", {"inputs": "the sea", "parameters": PARAMETERS}).text
    frames = [json.loads(line[5:]) for line in text.splitlines() if line.startswith("data:")]
    assert set(frames[0]) == {"index", "token", "top_tokens", "generated_text", "details"}
    assert set(frames[0]["token"]) == {"id", "text", "logprob", "special"}


@pytest.mark.parametrize(
    ("body", "key"),
    [
        ({"inputs": "a", "parameters": {"max_new_tokens": 1}}, None),
        ({"prompt": "a", "max_tokens": 1}, "choices"),
    ],
)
def test_sagemakers_path_takes_every_dialect(live: Live, body: Any, key: str | None) -> None:
    reply = live.post("/invocations", body).json()
    assert reply[key] if key else reply[0]["generated_text"] is not None


def test_a_prompt_that_speaks_of_inputs_is_a_native_one(live: Live) -> None:
    reply = live.post("/generate", {"prompt": "inputs", "stop": "inputs", "max_new_tokens": 1})
    assert reply.status_code == 200 and "choices" in reply.json()


def test_the_bare_address_asks_for_a_key_to_take_work(serve: Callable[..., Live]) -> None:
    guarded = serve(api_keys="secret")
    body = {"inputs": "a", "parameters": {"max_new_tokens": 1}}
    assert guarded.post("/", body).status_code == 401
    assert guarded.post("/", body, headers={"Accept": "text/html"}).status_code == 401
    assert guarded.post("/", body, headers={"Authorization": "Bearer secret"}).status_code == 200
    assert guarded.http.get("/").status_code == 200


def test_a_grammar_gives_the_text_its_form(client: InferenceClient, live: Live) -> None:
    said = client.text_generation("the sea", grammar={"type": "regex", "value": "[ab]{3}"}, **PARAMETERS)
    assert len(said) == 3 and set(said) <= {"a", "b"}
    body = {"inputs": "The sea rose.", "parameters": {"grammar": {"type": "regex", "value": "a"}}}
    reply = live.post("/summarize", body)
    assert reply.status_code in (400, 422) and "grammar must be left out" in reply.text

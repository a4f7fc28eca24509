"""Beam search over a socket: every door that takes it, and what it refuses."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from live_service import WAIT_S, Live, Stuck, expect, running

from service.engine.async_engine import AsyncEngine
from service.settings import Settings

PROMPT = {"prompt": "Once upon a time", "max_new_tokens": 12}


@pytest.fixture
def client(live: Live) -> httpx.Client:
    """Asks the shared service."""
    return live.http


def answer(client: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The reply to a body that is legal."""
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_the_best_texts_come_first_with_their_scores(client: httpx.Client) -> None:
    body = {**PROMPT, "num_beams": 4, "num_return_sequences": 3}
    choices = answer(client, "/generate", body)["choices"]
    scores = [choice["score"] for choice in choices]
    assert scores == sorted(scores, reverse=True)
    assert len({choice["text"] for choice in choices}) == 3
    assert [choice["index"] for choice in choices] == [0, 1, 2]


def test_several_prompts_have_their_texts_side_by_side(client: httpx.Client) -> None:
    prompts = ["The sea", "The sky", "The sea"]
    body = {"prompt": prompts, "num_beams": 3, "n": 2, "max_new_tokens": 8}
    reply = answer(client, "/generate", body)
    told = [(choice["text"], choice["score"]) for choice in reply["choices"]]
    assert told[:2] == told[4:]
    assert told[:2] == [
        (choice["text"], choice["score"])
        for choice in answer(client, "/generate", {**body, "prompt": "The sea"})["choices"]
    ]


def test_a_prompt_counts_once(client: httpx.Client) -> None:
    one = answer(client, "/generate", {**PROMPT, "temperature": 0})["usage"]["prompt_tokens"]
    many = answer(client, "/generate", {**PROMPT, "num_beams": 4, "n": 4})["usage"]["prompt_tokens"]
    assert many == one
    body = {"prompt": PROMPT["prompt"], "max_tokens": 12, "n": 4, "use_beam_search": True}
    assert answer(client, "/v1/completions", body)["usage"]["prompt_tokens"] == one


def test_every_door_finds_the_same_texts(client: httpx.Client) -> None:
    native = answer(client, "/generate", {**PROMPT, "num_beams": 4, "n": 4})["choices"]
    texts = [choice["text"] for choice in native]
    body = {"prompt": PROMPT["prompt"], "max_tokens": 12, "n": 4, "use_beam_search": True}
    assert [choice["text"] for choice in answer(client, "/v1/completions", body)["choices"]] == texts
    fewer = {**body, "n": 1, "best_of": 4, "temperature": 0}
    assert [choice["text"] for choice in answer(client, "/v1/completions", fewer)["choices"]] == texts[:1]
    named = {**body, "use_beam_search": False, "num_beams": 4}
    assert [choice["text"] for choice in answer(client, "/v1/completions", named)["choices"]] == texts
    parameters = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 12}
    found = client.post("/", json={"inputs": PROMPT["prompt"], "parameters": parameters}).json()
    assert [each["generated_text"] for each in found] == texts


def test_summaries_of_a_search_are_told_with_their_scores(client: httpx.Client) -> None:
    text = "The ship left at dawn. The sea was calm and grey. Nobody slept that night."
    body = {"text": text, "num_beams": 3, "num_return_sequences": 2}
    reply = answer(client, "/summarize", body)
    assert reply["summaries"][0]["summary"] == reply["summary"]
    assert len(reply["summaries"]) == 2
    assert reply["summaries"][0]["score"] >= reply["summaries"][1]["score"]


def test_log_probabilities_are_those_of_the_texts_tokens(client: httpx.Client) -> None:
    body = {**PROMPT, "num_beams": 3, "logprobs": 2, "length_penalty": 0}
    [choice] = answer(client, "/generate", body)["choices"]
    assert sum(token["logprob"] for token in choice["logprobs"]) == pytest.approx(choice["score"], abs=1e-3)
    told = "".join(
        token["token"] for token in choice["logprobs"]
    )  # a part of a character has no text of its own
    assert [c for c in told if c.isascii()] == [c for c in choice["text"] if c.isascii()]


def test_a_constraint_holds_for_every_beam(client: httpx.Client) -> None:
    body = {**PROMPT, "num_beams": 4, "n": 4, "constraint": {"choice": ["red", "green", "blue"]}}
    texts = [choice["text"] for choice in answer(client, "/generate", body)["choices"]]
    assert sorted(texts) == ["blue", "green", "red"]  # there are no more


def test_where_nothing_is_generated_a_search_counts_as_one_sequence(client: httpx.Client) -> None:
    body = {"prompt": ["The sea"] * 100, "max_tokens": 0, "echo": True, "num_beams": 4}
    choices = answer(client, "/v1/completions", body)["choices"]
    assert [choice["text"] for choice in choices] == ["The sea"] * 100


REFUSED = [
    ("/generate", {**PROMPT, "num_beams": 4, "stream": True}, "stream"),
    ("/generate", {**PROMPT, "num_beams": 17}, "num_beams"),
    ("/generate", {**PROMPT, "num_beams": 0}, "num_beams"),
    ("/generate", {**PROMPT, "num_beams": 2, "num_return_sequences": 3}, "num_return_sequences"),
    ("/generate", {**PROMPT, "num_beams": 4, "n": 2, "num_return_sequences": 3}, "n"),
    ("/generate", {**PROMPT, "num_beams": 4, "temperature": 0.7}, "temperature"),
    ("/generate", {**PROMPT, "num_beams": 4, "top_k": 5}, "top_k"),
    ("/generate", {**PROMPT, "length_penalty": 2}, "length_penalty"),
    ("/generate", {**PROMPT, "early_stopping": "never"}, "early_stopping"),
    ("/generate", {**PROMPT, "num_beams": 4, "early_stopping": "soon"}, "early_stopping"),
    ("/summarize", {"text": "The ship left.", "num_return_sequences": 2}, "num_return_sequences"),
    ("/qa", {"question": "Who left?", "context": "The ship left.", "num_beams": 2}, "num_beams"),
    ("/v1/completions", {"prompt": "a", "use_beam_search": True, "n": 2, "temperature": 0.5}, "temperature"),
    ("/v1/completions", {"prompt": "a", "use_beam_search": True, "n": 2, "stream": True}, "stream"),
]


@pytest.mark.parametrize(("path", "body", "param"), REFUSED)
def test_what_a_search_cannot_do_is_refused_by_name(
    client: httpx.Client, path: str, body: dict[str, Any], param: str
) -> None:
    response = client.post(path, json=body)
    assert response.status_code == (400 if path.startswith("/v1") else 422)
    error = response.json()["error"]
    assert error["param"] == param
    assert param in error["message"]


@pytest.mark.parametrize("given", [{"do_sample": True}, {"best_of": 2}])
def test_hugging_faces_parameters_that_draw_are_refused(client: httpx.Client, given: dict[str, Any]) -> None:
    response = client.post("/generate", json={"inputs": "a", "parameters": {"num_beams": 2, **given}})
    assert response.status_code == 422
    assert next(iter(given)) in response.text


def test_a_completion_says_nothing_of_messages(client: httpx.Client) -> None:
    body = {"prompt": "a", "max_tokens": 2}
    for more in ({}, {"use_beam_search": True, "n": 3}):
        usage = client.post("/v1/completions", json={**body, **more}).json()["usage"]
        assert "dropped_messages" not in usage


SEARCH = {**PROMPT, "num_beams": 4, "n": 2}


def test_a_search_ends_with_its_deadline_or_its_client(serve: Callable[..., Live], tiny_model: Path) -> None:
    stuck = Stuck(tiny_model)
    live = serve(AsyncEngine(stuck.make, hung_after_s=WAIT_S))
    assert live.post("/generate", {**SEARCH, "timeout_s": 0.05}).status_code == 504
    expect(lambda: live.num_sequences() == 0, "the end of the search")
    with live.connect() as sock:
        body = json.dumps(SEARCH).encode()
        length = f"Content-Length: {len(body)}"
        lines = ["POST /generate HTTP/1.1", "Host: x", "Content-Type: application/json", length, "", ""]
        sock.sendall("\r\n".join(lines).encode() + body)
        expect(lambda: live.num_sequences() == 4, "the search to begin")
    expect(lambda: live.num_sequences() == 0, "the client's leaving to be seen")
    stuck.gate.set()
    assert len(live.post("/generate", SEARCH).json()["choices"]) == 2


def test_a_search_that_runs_finishes_while_the_service_drains(tiny_model: Path) -> None:
    stuck = Stuck(tiny_model)
    found: list[int] = []
    with running(
        Settings(model=str(tiny_model), port=0), AsyncEngine(stuck.make, hung_after_s=WAIT_S)
    ) as live:
        asking = threading.Thread(target=lambda: found.append(live.post("/generate", SEARCH).status_code))
        asking.start()
        expect(lambda: live.num_sequences() == 4, "the search to begin")
        live.server._loop.call_soon_threadsafe(live.server._begin_drain, "SIGTERM")
        expect(lambda: live.state.is_draining, "the drain")
        stuck.gate.set()
        asking.join(WAIT_S)
    assert found == [200]

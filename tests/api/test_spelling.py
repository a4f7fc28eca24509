"""Every error names the field as its caller wrote it, whichever dialect it is and wherever it was noticed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from live_service import Live

from model_store.sampling import SAMPLING, Field
from service.api.chat_schemas import ChatBody
from service.api.hugging_face_schemas import Parameters
from service.api.openai_fields import OURS, SPELLINGS, OpenAIBody
from service.api.openai_schemas import CompletionBody
from service.api.structured import StructuredFields

TURNS = [{"role": "user", "content": "the sea"}]
OPENAI: dict[str, tuple[type[OpenAIBody], dict[str, Any]]] = {
    "/v1/completions": (CompletionBody, {"prompt": "the sea"}),
    "/v1/chat/completions": (ChatBody, {"messages": TURNS}),
}
TWO = {"num_beams": 2, "max_new_tokens": 4}
QUESTION = {"question": "Who?", "context": "The king."}
NO_FORM = {"type": "nope"}
FORMS: dict[str, Any] = {
    "response_format": {"type": "json_schema", "json_schema": {"schema": NO_FORM}},
    "structured_outputs": {"regex": "("},
    "guided_json": NO_FORM,
    "guided_regex": "(",
    "guided_choice": ["a" * 70_000],
    "guided_grammar": "start: (",
    "json_schema": NO_FORM,
    "regex": "(",
    "grammar": "start: (",
    "ebnf": "start: (",
    "constraint": {"regex": "("},
}


def bad_values(name: str, field: Field) -> Iterator[Any]:
    """One of a wrong type, and one that only the task's runner refuses."""
    yield {"no": "value"}
    if name in ("stop", "stop_token_ids", "logit_bias"):
        yield {"stop": [""], "stop_token_ids": [10**6], "logit_bias": {"999999": 1}}[name]
    elif field.type is not bool:
        yield field.type(field.max + 1)


def walk(spelled: str) -> Iterator[tuple[str, Any]]:
    """The sampling field of that name and bad values."""
    for ours, field in SAMPLING.items():
        if spelled in (ours, OURS[ours]):
            yield from ((spelled, value) for value in bad_values(ours, field))


def names_of(body: type[OpenAIBody]) -> Iterator[tuple[str, str]]:
    """Names that a caller may use and the one that the body has."""
    yield from ((name, name) for name in {*OURS.values()} & {*body.model_fields})
    yield from ((theirs, ours) for theirs, ours in SPELLINGS.items() if ours in body.model_fields)


@pytest.mark.parametrize(
    ("path", "written", "field"),
    [(path, *pair) for path, (body, _) in OPENAI.items() for pair in sorted(names_of(body))],
)
def test_a_sampling_field_at_v1(talkative: Live, path: str, written: str, field: str) -> None:
    for _, value in walk(field):
        reply = talkative.post(path, {**OPENAI[path][1], written: value})
        error = reply.json()["error"]
        assert (reply.status_code, error["param"]) == (400, written), (value, error)
        assert error["message"].startswith(f"{written} "), error


@pytest.mark.parametrize(("written", "field"), sorted(names_of(Parameters)))
def test_a_parameter_of_hugging_face(talkative: Live, written: str, field: str) -> None:
    for _, value in walk(field):
        reply = talkative.post("/generate", {"inputs": "the sea", "parameters": {written: value}})
        assert reply.status_code == 422
        name = reply.json()["error"].split()[0].removeprefix("parameters.")
        assert name == written, (value, reply.text)


@pytest.mark.parametrize("path", OPENAI)
@pytest.mark.parametrize("form", FORMS)
def test_a_form_that_cannot_be_followed(talkative: Live, path: str, form: str) -> None:
    error = talkative.post(path, {**OPENAI[path][1], form: FORMS[form]}).json()["error"]
    assert error["param"] == form and error["message"].startswith(f"{form} "), error


def test_all_ways_to_ask_for_a_form_are_tried() -> None:
    assert FORMS.keys() == StructuredFields.model_fields.keys()


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (
            "/v1/chat/completions",
            {"messages": TURNS, "max_completion_tokens": 10**5},
            "max_completion_tokens",
        ),
        ("/v1/chat/completions", {"messages": TURNS, "max_tokens": 10**5}, "max_tokens"),
        ("/v1/chat/completions", {"messages": TURNS, "max_new_tokens": 10**5}, "max_new_tokens"),
        ("/v1/chat/completions", {"messages": TURNS, "use_beam_search": True, "n": 16}, "n"),
        ("/v1/completions", {"prompt": "a", "use_beam_search": True, "n": 16}, "n"),
        ("/v1/completions", {"prompt": "a", "use_beam_search": True, "best_of": 16}, "best_of"),
        ("/v1/completions", {"prompt": "a", "num_beams": 2, "n": 3}, "n"),
        (
            "/v1/completions",
            {"prompt": "a", "num_beams": 2, "num_return_sequences": 3},
            "num_return_sequences",
        ),
        ("/v1/completions", {"prompt": "a", "max_tokens": 2, "min_tokens": 3}, "min_tokens"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 2, "min_new_tokens": 3}, "min_new_tokens"),
        ("/generate", {"prompt": "a", "max_new_tokens": 2, "min_new_tokens": 3}, "min_new_tokens"),
    ],
    ids=str,
)
def test_a_field_that_contradicts_another(
    talkative: Live, path: str, body: dict[str, Any], param: str
) -> None:
    error = talkative.post(path, body).json()["error"]
    assert error["param"] == param and error["message"].startswith(f"{param} "), error
    known = {*body, "n", "num_beams", "window"}
    assert not {"max_new_tokens", "min_new_tokens"} & {*error["message"].split()} - known, error


@pytest.mark.parametrize(
    ("path", "inputs", "parameters", "name"),
    [
        ("/generate", "the sea " * 5000, {}, "inputs"),
        ("/generate", "a", {"best_of": 17}, "best_of"),
        ("/generate", "a", {"num_return_sequences": 17}, "num_return_sequences"),
        ("/generate", "a", {"top_n_tokens": 21}, "top_n_tokens"),
        ("/generate", "a", {"grammar": {"type": "regex", "value": "("}}, "grammar"),
        ("/generate", "a", {**TWO, "num_return_sequences": 3}, "num_return_sequences"),
        ("/summarize", " ", {}, "inputs"),
        ("/summarize", "The king.", {"max_length": 10**5}, "max_length"),
        ("/summarize", "The king.", {"max_new_tokens": 10**5}, "max_new_tokens"),
        ("/summarize", "The king.", {"min_length": 10**5}, "min_length"),
        ("/summarize", "The king.", {"min_new_tokens": 10**5}, "min_new_tokens"),
        ("/qa", {**QUESTION, "question": " "}, {}, "inputs.question"),
        ("/qa", {**QUESTION, "context": " "}, {}, "inputs.context"),
        ("/qa", QUESTION, {"top_k": 0}, "top_k"),
        ("/qa", QUESTION, {"top_k": "x"}, "parameters.top_k"),
    ],
    ids=lambda value: str(value)[:40].encode("ascii", "replace").decode(),
)
def test_what_else_hugging_face_calls_otherwise(
    talkative: Live, path: str, inputs: Any, parameters: dict[str, Any], name: str
) -> None:
    reply = talkative.post(path, {"inputs": inputs, "parameters": parameters})
    assert reply.status_code == 422
    assert reply.json()["error"].split()[0].rstrip(":") == name, reply.text

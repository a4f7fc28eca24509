"""Texts of a given form over HTTP, in every dialect's words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from live_service import Live

from service.api.structured import of_tgi_grammar
from service.errors import InvalidRequest
from service.tasks.calls import Constraint

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "size": {"enum": ["S", "M", "L"]}},
    "required": ["ok", "size"],
    "additionalProperties": False,
}
OWN = [
    {"json_schema": SCHEMA},
    {"regex": "[ab]{3}"},
    {"choice": ["yes", "no"]},
    {"grammar": 'start: "x" "y"+ "z"'},
]
THEIRS: list[dict[str, Any]] = [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}},
    {"structured_outputs": {"json": SCHEMA}},
    {"guided_json": SCHEMA},
    {"guided_json": json.dumps(SCHEMA)},
    {"constraint": {"json_schema": SCHEMA}},
]


def is_right(constraint: dict[str, Any], text: str) -> bool:
    if "json_schema" in constraint:
        jsonschema.validate(json.loads(text), SCHEMA)
        return True
    pattern = {"regex": "[ab]{3}", "choice": "yes|no", "grammar": "xy+z"}[next(iter(constraint))]
    return re.fullmatch(pattern, text) is not None


@pytest.mark.parametrize("path", ["/generate", "/tasks/generate"])
@pytest.mark.parametrize("constraint", OWN, ids=lambda c: next(iter(c)))
def test_a_native_text_has_its_form(live: Live, path: str, constraint: dict[str, Any]) -> None:
    body = {"prompt": "hello", "n": 4, "seed": 1, "max_new_tokens": 120, "constraint": constraint}
    for choice in live.post(path, body).json()["choices"]:
        assert choice["finish_reason"] == "length" or is_right(constraint, choice["text"])


@pytest.mark.parametrize("fields", THEIRS, ids=lambda f: next(iter(f)))
def test_openais_and_vllms_fields_ask_for_a_form(live: Live, fields: dict[str, Any]) -> None:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        reply = client.completions.create(
            model="tiny", prompt="hello", max_tokens=120, seed=1, n=4, extra_body=fields
        )
    ended = [choice.text for choice in reply.choices if choice.finish_reason == "stop"]
    assert ended and all(is_right({"json_schema": 0}, text) for text in ended)


SPELLINGS: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/completions", {"response_format": {"type": "json_object"}}, r"(?s)\{.*\}"),
    ("/v1/completions", {"structured_outputs": {"regex": "[ab]{3}"}}, "[ab]{3}"),
    ("/v1/completions", {"structured_outputs": {"choice": ["yes", "no"]}}, "yes|no"),
    ("/v1/completions", {"structured_outputs": {"grammar": 'start: "x" "y"+'}}, "xy+"),
    ("/v1/completions", {"structured_outputs": {"json_object": True}}, r"(?s)\{.*\}"),
    ("/v1/completions", {"guided_regex": "[ab]{3}"}, "[ab]{3}"),
    ("/v1/completions", {"guided_choice": ["yes", "no"]}, "yes|no"),
    ("/v1/completions", {"guided_grammar": 'start: "x" "y"+'}, "xy+"),
    ("/v1/completions", {"constraint": {"json_object": True}}, r"(?s)\{.*\}"),
    ("/", {"grammar": {"type": "regex", "value": "[ab]{3}"}}, "[ab]{3}"),
    ("/generate", {"grammar": {"type": "json", "value": {"type": "boolean"}}}, "true|false"),
]


@pytest.mark.parametrize(("path", "fields", "pattern"), SPELLINGS, ids=str)
def test_every_dialects_spelling_is_followed(
    live: Live, path: str, fields: dict[str, Any], pattern: str
) -> None:
    if path == "/v1/completions":
        body = {"prompt": "hello", "max_tokens": 200, "seed": 5, **fields}
        choice = live.post(path, body).json()["choices"][0]
        text, reason = choice["text"], choice["finish_reason"]
    else:
        parameters = {"max_new_tokens": 60, "seed": 5, "details": True, **fields}
        reply = live.post(path, {"inputs": "hello", "parameters": parameters}).json()
        reply = reply[0] if isinstance(reply, list) else reply
        text, reason = reply["generated_text"], reply["details"]["finish_reason"]
    assert re.fullmatch(pattern, text) or (reason == "length" and text[:1] == "{")


def test_a_text_that_ends_inside_its_form_says_length(live: Live) -> None:
    body = {"prompt": "a", "max_tokens": 3, "guided_regex": "[a-z]{50}"}
    [choice] = live.post("/v1/completions", body).json()["choices"]
    assert choice["finish_reason"] == "length" and re.fullmatch("[a-z]{1,49}", choice["text"])


def test_drafts_change_no_text_with_a_form(live: Live, serve: Callable[..., Live]) -> None:
    """The names are in the prompt, so what is copied from there can be right."""
    names = {"type": "array", "items": {"enum": ["Anna", "Bertha"]}, "minItems": 12, "maxItems": 12}
    fields = {"prompt": json.dumps(["Anna", "Bertha"] * 8), "seed": 3, "max_new_tokens": 60}
    bodies = [{**fields, "temperature": t, "constraint": {"json_schema": names}} for t in (0, 0.7)]
    drafting = serve(speculation=True)
    for body in bodies:
        plain, drafted = (each.post("/generate", body).json()["choices"] for each in (live, drafting))
        assert drafted == plain
    assert drafting.metric("textgen_draft_tokens_total") > 0


def test_a_draft_model_changes_no_text_with_a_form(
    live: Live, serve: Callable[..., Live], tiny_model: Path
) -> None:
    """The model is its own draft: what it proposes is right wherever the form does not forbid it."""
    drafting = serve(speculation=True, draft_model=str(tiny_model))
    for constraint in OWN:
        body = {"prompt": "hello", "n": 2, "seed": 3, "max_new_tokens": 40, "constraint": constraint}
        for temperature in (0, 0.7):
            plain, drafted = (
                each.post("/generate", {**body, "temperature": temperature}).json()["choices"]
                for each in (live, drafting)
            )
            assert drafted == plain
    assert drafting.metric("textgen_draft_tokens_total") > 0


@pytest.mark.parametrize(
    "constraint",
    [{}, {"regex": "a", "choice": ["b"]}, {"choice": []}, {"regex": "(a"}, {"regex": 5}],
    ids=json.dumps,
)
def test_a_constraint_that_is_none_is_refused_by_name(live: Live, constraint: object) -> None:
    reply = live.post("/generate", {"prompt": "a", "constraint": constraint})
    assert reply.status_code == 422
    assert reply.json()["error"]["param"].startswith("constraint")


def test_two_fields_that_ask_for_a_form_are_refused(live: Live) -> None:
    body = {"prompt": "a", "guided_regex": "a", "guided_choice": ["a"]}
    reply = live.post("/v1/completions", body)
    assert reply.status_code == 400 and reply.json()["error"]["param"] == "guided_choice"


def test_a_text_format_asks_for_nothing(live: Live) -> None:
    body = {"prompt": "a", "max_tokens": 5, "seed": 1}
    plain = live.post("/v1/completions", body).json()["choices"]
    assert (
        live.post("/v1/completions", {**body, "response_format": {"type": "text"}}).json()["choices"] == plain
    )


def test_tgis_grammar_is_read() -> None:
    assert of_tgi_grammar({"type": "regex", "value": "a+"}) == Constraint("regex", "a+")
    schema = Constraint("json_schema", '{"type": "null"}')
    assert of_tgi_grammar({"type": "json", "value": {"type": "null"}}) == schema
    assert (
        of_tgi_grammar({"type": "json_schema", "value": {"name": "n", "schema": {"type": "null"}}}) == schema
    )
    with pytest.raises(InvalidRequest, match="grammar"):
        of_tgi_grammar({"type": "xml", "value": "a"})

"""Bodies become task calls: what was given is passed on, what was not stays open."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from service.api.openai_schemas import CompletionBody
from service.api.schemas import LEGAL, GenerateBody, QaBody, SummarizeBody, TaskBody
from service.errors import InvalidRequest
from service.tasks.calls import Origin, SamplingFields

ORIGIN = Origin()


def test_fields_that_were_not_given_stay_open() -> None:
    call = GenerateBody.model_validate({"prompt": "a"}).to_call(ORIGIN)
    assert call.sampling == SamplingFields()


def test_a_given_default_is_given() -> None:
    call = GenerateBody.model_validate({"prompt": "a", "min_new_tokens": 0}).to_call(ORIGIN)
    assert call.sampling["min_new_tokens"] == 0


@pytest.mark.parametrize(("prompt", "prompts"), [("a", ("a",)), (["a", "b"], ("a", "b")), ("", ("",))])
def test_a_prompt_is_one_or_many(prompt: Any, prompts: tuple[str, ...]) -> None:
    assert GenerateBody.model_validate({"prompt": prompt}).to_call(ORIGIN).prompts == prompts


@pytest.mark.parametrize(("stop", "stops"), [("x", ("x",)), (["x", "y"], ("x", "y")), ([], ())])
def test_stop_is_one_or_many(stop: Any, stops: tuple[str, ...]) -> None:
    body = GenerateBody.model_validate({"prompt": "a", "stop": stop})
    assert body.to_call(ORIGIN).sampling["stop"] == stops


@pytest.mark.parametrize("stop", [[1], {"x": 1}, [["x"]], 5, ["\ud800"]])
def test_stop_is_strings(stop: Any) -> None:
    with pytest.raises(ValidationError):
        GenerateBody.model_validate({"prompt": "a", "stop": stop})


def test_no_log_probabilities_means_none() -> None:
    assert GenerateBody.model_validate({"prompt": "a", "logprobs": 0}).to_call(ORIGIN).logprobs is None


def test_a_whole_number_is_a_number() -> None:
    assert GenerateBody.model_validate({"prompt": "a", "temperature": 1}).temperature == 1.0


def test_a_summary_takes_its_strategy() -> None:
    call = SummarizeBody.model_validate({"text": "a", "strategy": "single"}).to_call(ORIGIN)
    assert (call.text, call.strategy) == ("a", "single")


def test_a_question_takes_its_options() -> None:
    call = QaBody.model_validate({"question": "a", "context": "b", "grounded": False}).to_call(ORIGIN)
    assert (call.grounded, call.no_answer, call.num_answers) == (False, True, 1)


def test_a_task_has_fields_of_its_own() -> None:
    call = TaskBody.model_validate({"text": "a", "tone": "b", "n": 2}).to_call("rewrite", ORIGIN)
    assert (call.name, dict(call.fields), call.n, call.echo) == (
        "rewrite",
        {"text": "a", "tone": "b"},
        2,
        None,
    )


def test_a_field_of_a_task_is_a_string() -> None:
    with pytest.raises(ValidationError):
        TaskBody.model_validate({"text": 5})


@pytest.mark.parametrize("name", LEGAL)
def test_every_field_says_what_is_legal(name: str) -> None:
    assert LEGAL[name]


PROMPTS = [("a", ("a",)), (["a"], ("a",)), ([1, 2], ((1, 2),)), ([[1], [2, 3]], ((1,), (2, 3)))]


@pytest.mark.parametrize(("prompt", "prompts"), PROMPTS)
def test_an_openai_prompt_has_four_forms(prompt: Any, prompts: Any) -> None:
    assert CompletionBody.model_validate({"prompt": prompt}).to_call(ORIGIN).prompts == prompts


@pytest.mark.parametrize("prompt", [[], [True], [1, "a"], [[1], 2], [-1], [1.5], {}, 5])
def test_other_openai_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(ValidationError):
        CompletionBody.model_validate({"prompt": prompt})


def test_openai_defaults_hide_the_tasks_own() -> None:
    sampling = CompletionBody.model_validate({"prompt": "a"}).to_call(ORIGIN).sampling
    assert (sampling["max_new_tokens"], sampling["temperature"], sampling["stop"]) == (16, 1.0, ())


@pytest.mark.parametrize("extra", [{"best_of": 2}, {"suffix": "x"}, {"stream_options": {}}])
def test_what_is_not_supported_is_refused_by_name(extra: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        CompletionBody.model_validate({"prompt": "a", **extra}).to_call(ORIGIN)
    assert caught.value.param == next(iter(extra))


def test_neutral_values_are_accepted() -> None:
    body = {"prompt": "a", "n": 2, "best_of": 2, "suffix": "", "logit_bias": {"5": -100}, "user": "me"}
    assert CompletionBody.model_validate(body).to_call(ORIGIN).sampling["logit_bias"] == ((5, -100.0),)


def test_null_means_absent_within_stream_options_too() -> None:
    body = {"prompt": "a", "stream": True, "stream_options": {"include_usage": None}}
    assert CompletionBody.model_validate(body).stream_options.include_usage is False

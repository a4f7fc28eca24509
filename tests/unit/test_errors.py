"""Every exception has a status; both dialects shape it as the contract says."""

from __future__ import annotations

import inspect

import pytest

from model_store.errors import InvalidText
from service import errors
from service.api.problems import STATUSES, Problem, problem_for

EXPECTED = {
    "InvalidRequest": (422, "invalid_request"),
    "PromptTooLong": (422, "prompt_too_long"),
    "NotFound": (404, "not_found"),
    "QueueFull": (429, "queue_full"),
    "NotReady": (503, "not_ready"),
    "Draining": (503, "draining"),
    "EngineDead": (503, "not_ready"),
    "DeadlineExceeded": (504, "deadline_exceeded"),
    "EngineFault": (500, "internal"),
}


@pytest.mark.parametrize(("name", "expected"), EXPECTED.items())
def test_each_exception_has_its_status_and_code(name: str, expected: tuple[int, str]) -> None:
    problem = problem_for(getattr(errors, name)("why"))
    assert (problem.status("native"), problem.code, problem.message) == (*expected, "why")


def test_no_exception_of_the_tree_is_forgotten() -> None:
    tree = [item for item in vars(errors).values() if inspect.isclass(item)]
    parents = {base for item in tree for base in item.__bases__}
    assert {item.__name__ for item in tree if item not in parents} - {"SettingsError"} == set(EXPECTED)


def test_the_docstring_draws_every_exception() -> None:
    names = [name for name, item in vars(errors).items() if inspect.isclass(item)]
    assert errors.__doc__ is not None and all(name in errors.__doc__ for name in names)


def test_an_unknown_exception_tells_nothing() -> None:
    problem = problem_for(KeyError("secret"))
    assert problem.code == "internal" and "secret" not in problem.message


def test_retry_after_is_a_whole_number_of_seconds_and_never_0() -> None:
    problem = problem_for(errors.QueueFull("full", 0.2))
    assert problem.headers("native")["Retry-After"] == "1"


@pytest.mark.parametrize("code", STATUSES)
def test_the_openai_dialect_has_400_where_we_have_422(code: str) -> None:
    status = STATUSES[code]
    assert Problem(code, "").status("openai") == (400 if status == 422 else status)


def test_a_prompt_too_long_has_openais_code() -> None:
    body = problem_for(errors.PromptTooLong("too long", "prompt")).body("openai", "id")
    assert body["error"] == {
        "message": "too long",
        "type": "invalid_request_error",
        "param": "prompt",
        "code": "context_length_exceeded",
    }


def test_a_text_that_the_vocabulary_cannot_write_is_the_caller_s() -> None:
    problem = problem_for(InvalidText("the model's vocabulary cannot write the text: why"))
    assert (STATUSES[problem.code], problem.message[-3:]) == (422, "why")

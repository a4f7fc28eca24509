"""One table of sampling fields: every body, default, message and page follows it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from model_store.sampling import OPTIONS, SAMPLING, Field
from service.api.openai_fields import OURS
from service.api.openai_schemas import CompletionBody
from service.api.schemas import GenerateBody, QaBody, SummarizeBody, TaskBody
from service.engine.sequence import SamplingParams

ROOT = Path(__file__).parents[2]
NOT_NATIVE = {"stop_token_ids", "logit_bias"}


@pytest.mark.parametrize("body", [GenerateBody, SummarizeBody, QaBody, TaskBody])
def test_every_native_body_has_the_fields_of_the_table(body: type[GenerateBody]) -> None:
    declared = {name: body.model_fields[name].description for name in SAMPLING if name not in NOT_NATIVE}
    assert declared == {name: SAMPLING[name].words for name in declared}


def test_the_openai_body_has_the_fields_of_the_table_under_its_own_names() -> None:
    assert set(OURS.values()) <= set(CompletionBody.model_fields)
    assert set(OURS) == set(SAMPLING)


def test_the_engine_takes_every_field_of_the_table() -> None:
    assert set(SAMPLING) <= set(SamplingParams.__dataclass_fields__)


@pytest.mark.parametrize("name", SAMPLING)
def test_the_neutral_value_is_the_engines_default(name: str) -> None:
    if SAMPLING[name].neutral is not None:
        assert getattr(SamplingParams(), name) == SAMPLING[name].neutral


@pytest.mark.parametrize("name", [*SAMPLING, *OPTIONS])
def test_a_neutral_value_is_legal(name: str) -> None:
    field = {**SAMPLING, **OPTIONS}[name]
    assert field.neutral is None or field.problem(field.neutral) == ""


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        (Field(int, min=1, max=4), 0, "must be at least 1 and at most 4"),
        (Field(int, min=1, max=4), 5, "must be at least 1 and at most 4"),
        (Field(int, min=1, max=4), 2.0, "must be an integer"),
        (Field(int, min=1, max=4), True, "must be an integer"),
        (Field(int, min=1, max=4), 4, ""),
        (Field(float, max=1, min_is_legal=False), 0, "must be more than 0 and at most 1"),
        (Field(float, max=1), float("nan"), "must be at least 0 and at most 1"),
        (Field(float, max=1), "1", "must be a number"),
        (Field(float, max=1), 1, ""),
        (Field(bool), 1, "must be true or false"),
        (Field(bool), True, ""),
        (Field(tuple, max_items=1), "a", "must be a list"),
        (Field(tuple, max_items=1), ("a",), ""),
        (Field(tuple, max_items=1), (1, 2), "must have at most 1 items"),
        (Field(tuple, max_items=1, max_chars=2), ("",), "must be of strings of 1 to 2 characters"),
        (Field(tuple, max_items=1, max_chars=2), (5,), "must be of strings of 1 to 2 characters"),
        (Field(tuple, max_items=1, max_chars=2), ("abc",), "must be of strings of 1 to 2 characters"),
    ],
)
def test_a_field_says_what_is_wrong(field: Field, value: object, problem: str) -> None:
    assert field.problem(value) == problem


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (Field(int, max=9, note="off"), "an integer from 0 (off) to 9"),
        (Field(float, min=-2, max=2), "a number from -2 to 2"),
        (Field(float, max=1, min_is_legal=False), "a number above 0, up to 1"),
        (Field(bool), "true or false"),
        (Field(tuple, text="strings"), "strings"),
    ],
)
def test_a_field_says_what_is_legal(field: Field, words: str) -> None:
    assert field.words == words


# ---- a new field ------------------------------------------------------------------------------------------

EDITS = {  # in each file, a line and what stands before it afterwards
    "model_store/sampling.py": (
        '    "min_p": Field(',
        '    "dummy_penalty": Field(float, 0, min=-3, max=3),',
    ),
    "service/engine/sequence.py": ("    min_p: float = 0.0", "    dummy_penalty: float = 0.0"),
    "service/tasks/sampling.py": (
        "DRAWN_SEEDS = ",
        "def penalised(logit: float, params: SamplingParams) -> float:\n"
        "    return logit - params.dummy_penalty\n",
    ),
}
USE = """
import json
from pydantic import ValidationError
from model_store.task import Task
from service.api.openai_schemas import CompletionBody
from service.api.problems import validation_problem
from service.api.schemas import LEGAL, GenerateBody
from service.errors import InvalidRequest
from service.tasks.calls import Origin
from service.tasks.sampling import penalised, decoding_for

class Tokenizer:
    vocab_size, eos_token_ids = 10, (0,)

def resolved(body, task_default=0):
    task = Task("t", "generate", "{prompt}", sampling={"dummy_penalty": task_default})
    return -penalised(0, decoding_for(body.to_call(Origin()).sampling, task, Tokenizer()).params)

def refusal(value):
    try:
        return validation_problem(GenerateBody.model_validate({"prompt": "a", "dummy_penalty": value}), LEGAL)
    except ValidationError as error:
        return validation_problem(error.errors(), LEGAL).message

def out_of_range():
    try:
        resolved(GenerateBody(prompt="a", dummy_penalty=4))
    except InvalidRequest as error:
        return error.message

print(json.dumps([
    resolved(GenerateBody(prompt="a", dummy_penalty=2)),
    resolved(GenerateBody(prompt="a"), task_default=1),
    resolved(CompletionBody(prompt="a", dummy_penalty=-1)),
    resolved(CompletionBody(prompt="a"), task_default=1),
    out_of_range(),
    refusal("x"),
]))
"""


def test_a_new_field_takes_the_table_one_dataclass_and_its_use(tmp_path: Path) -> None:
    """Added to a copy of the sources, it goes from every body through a task's default to the engine."""
    skipped = shutil.ignore_patterns("models", "__pycache__", "bench")
    for package in ("service", "model_store"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=skipped)
    for path, (line, added) in EDITS.items():
        text = (tmp_path / path).read_text()
        assert line in text
        (tmp_path / path).write_text(text.replace(line, f"{added}\n{line}", 1))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        2,
        1,
        -1,
        0,
        "dummy_penalty has a value that is not legal; legal: a number from -3 to 3",
        "dummy_penalty must be a number; legal: a number from -3 to 3",
    ]
    assert len(EDITS) <= 3

"""Whatever the schema: each text that ends by itself is JSON and valid."""

from __future__ import annotations

import asyncio
import datetime
import json

import jsonschema
import pytest
from random_schemas import Schema, schemas
from toy_engine import babbling, make_tokenizer, result_of, running

from service.tasks.calls import Choice, Constraint, GenerateCall, GenerateResult, ModelLimits

FORMATS = jsonschema.FormatChecker(
    ["date", "uuid", "ipv4", "email"]
)  # "time" would be that of the third draft


@FORMATS.checks("time", ValueError)
def _is_time(text: object) -> bool:
    return not isinstance(text, str) or datetime.time.fromisoformat(text).tzinfo is not None


@FORMATS.checks("date-time", ValueError)
def _is_date_time(text: object) -> bool:
    return not isinstance(text, str) or datetime.datetime.fromisoformat(text).tzinfo is not None


async def _answers(made: list[Schema], n: int) -> list[tuple[Schema, Choice]]:
    """So many texts for each schema."""
    tokenizer = make_tokenizer()

    async def ask(schema: Schema, seed: int) -> GenerateResult:
        constraint = Constraint("json_schema", json.dumps(schema))
        sampling = {"max_new_tokens": 250, "seed": seed, "temperature": 0.7}
        result = await result_of(
            runner.generate(GenerateCall(("a",), n, constraint=constraint, sampling=sampling))
        )
        assert isinstance(result, GenerateResult)
        return result

    found = []
    async with running(babbling(tokenizer.vocab_size), tokenizer, limits=ModelLimits(256, 64)) as (runner, _):
        for start in range(0, len(made), 16):
            group = made[start : start + 16]
            results = await asyncio.gather(*(ask(schema, start + at) for at, schema in enumerate(group)))
            found += [(schema, each) for schema, r in zip(group, results, strict=True) for each in r.choices]
    return found


def _check(answers: list[tuple[Schema, Choice]], least_finished: int) -> None:
    finished = [(schema, choice.text) for schema, choice in answers if choice.finish_reason == "stop"]
    for schema, text in finished:
        validator = jsonschema.Draft202012Validator(schema, format_checker=FORMATS)
        assert not [*validator.iter_errors(json.loads(text))], (schema, text)
    assert len(finished) >= least_finished, f"{len(finished)} of {len(answers)} finished"


@pytest.mark.asyncio
async def test_finished_texts_are_valid_against_random_schemas() -> None:
    _check(await _answers(schemas(16), n=2), least_finished=16)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.asyncio
async def test_two_thousand_texts_over_two_hundred_schemas_are_valid() -> None:
    _check(await _answers(schemas(200, seed=1), n=10), least_finished=1000)

"""The same request gives the same ids and log probabilities, bit for bit, whatever runs beside it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    Outcome,
    Watch,
    ask,
    checkpoint,
    real_engine,
    run_all,
    run_alone,
    separate,
    sequences,
    wide_checkpoint,
)
from transformers import GPT2LMHeadModel

from service.engine.engine import Engine
from service.engine.sequence import FinishReason, Job, SequenceRequest

NUMERICS: dict[str, dict[str, Any]] = {
    "reference float32": {"precision": "float32", "backend": "reference"},
    "reference int8": {"precision": "int8", "backend": "reference"},
    "cpu float32": {"precision": "float32", "backend": "cpu", "is_deterministic": False},
    "cpu bfloat16": {"precision": "bfloat16", "backend": "cpu", "is_deterministic": False},
    "cpu int8": {"precision": "int8", "backend": "cpu", "is_deterministic": False},
}
MODELS: dict[str, Callable[[], Path]] = {"tiny": functools.partial(checkpoint, 3), "wide": wide_checkpoint}
CASES = [("tiny", name) for name in NUMERICS]


@functools.cache
def why_not(numerics: str) -> str:
    """Why this machine cannot compute so; empty when it can."""
    try:
        real_engine(checkpoint(3), **NUMERICS[numerics])
    except (ImportError, ValueError, NotImplementedError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


class Case:
    """A model, its numerics, requests, and what each gives alone."""

    def __init__(self, model: str, numerics: str) -> None:
        self.folder, self.numerics = MODELS[model](), NUMERICS[numerics]
        self.requests = requests(6 if model == "wide" else 12)
        engine = self.engine()
        self.alone = [run_alone(engine, r).said for r in self.requests]

    def engine(self, **config: Any) -> Engine:
        """A new engine with an empty cache."""
        return real_engine(self.folder, **{**self.numerics, **config})

    def check(self, outcomes: list[Outcome]) -> None:
        """Compare with what each request gives alone."""
        assert [o.said for o in outcomes] == self.alone[: len(outcomes)]


def requests(count: int) -> list[SequenceRequest]:
    """Greedy and drawn, short and long, with and without penalties, logprobs, scored prompts; prompts share
    beginnings longer than a block."""
    shared = [(7 * i) % 250 for i in range(40)]
    kinds: list[dict[str, Any]] = [
        {},
        {"temperature": 0.9, "seed": 5},
        {"temperature": 1.0, "top_k": 20, "seed": 1, "repetition_penalty": 1.2},
        {"temperature": 0.7, "top_p": 0.8, "seed": 2**53 - 1, "logprobs": 3},
        {"logprobs": 0, "score_from": 0},
        {"temperature": 1.0, "min_p": 0.05, "seed": 9, "no_repeat_ngram_size": 2, "presence_penalty": 0.5},
    ]
    return [
        ask(
            [*shared[: (0, 17, 40, 33)[i % 4]], i + 1, 2 * i, 3],
            ordinal=i,
            **{"max_new_tokens": 8 + 3 * (i % 5), "ignore_eos": True, "logprobs": 1, **kinds[i % len(kinds)]},
        )
        for i in range(count)
    ]


@pytest.fixture(scope="module", params=CASES, ids=" ".join)
def case(request: pytest.FixtureRequest) -> Case:
    reason = why_not(request.param[1])
    if reason:
        pytest.skip(reason)
    return Case(*request.param)


def test_in_a_full_batch(case: Case) -> None:
    case.check(run_all(case.engine(), separate(case.requests)))


def test_joining_late(case: Case) -> None:
    watch = Watch(case.engine())
    outcomes = []
    for one in separate(case.requests):
        outcomes += watch.add([one])
        watch.step()
        watch.step()
    watch.finish()
    case.check(outcomes)


def test_after_a_neighbour_aborts(case: Case) -> None:
    watch, wanted, others = Watch(case.engine()), separate(case.requests), separate(case.requests)
    outcomes = watch.add(wanted)
    watch.add(others)
    for one in others:
        watch.step()
        watch.engine.abort([one])
    watch.finish()
    case.check(outcomes)


def test_with_prefix_cache_hits(case: Case) -> None:
    engine = case.engine()
    run_all(engine, separate(case.requests))
    outcomes = run_all(engine, separate(case.requests))
    assert sum(o.stats.num_cached_tokens for o in outcomes if o.stats) > 0
    case.check(outcomes)


def test_after_preemption(case: Case) -> None:
    engine = case.engine(num_blocks=7)
    outcomes = run_all(engine, separate(case.requests))
    assert engine.scheduler.num_preemptions > 0
    case.check(outcomes)


@pytest.mark.parametrize("max_batch_tokens", [5, 16, 23, 512])
def test_with_other_chunk_borders(case: Case, max_batch_tokens: int) -> None:
    case.check(run_all(case.engine(max_batch_tokens=max_batch_tokens), separate(case.requests)))


def test_with_speculation(case: Case) -> None:
    engine = case.engine(speculation=True)
    draft_always(engine)
    outcomes = run_all(engine, separate(case.requests))
    assert engine.scheduler.speculator is not None and engine.scheduler.speculator.num_drafted > 0
    case.check(outcomes)


@pytest.mark.parametrize("logprobs", [1, None], ids=["drawn", "taken as it is"])
def test_what_a_constraint_forces_is_drafted_and_changes_no_text(case: Case, logprobs: int | None) -> None:
    def forced(output_ids: Any) -> list[int]:
        behind = len(output_ids) % 5
        return [101, 102, 103, 104][behind - 1 :] if behind else []

    def allowed(output_ids: Any) -> list[int]:
        return forced(output_ids)[:1] or list(range(0, 250, 3))

    fields: dict[str, Any] = {"allowed_next": allowed, "logprobs": logprobs}

    def bound(request: SequenceRequest, **more: Any) -> SequenceRequest:
        return replace(request, params=replace(request.params, **fields, **more))

    plain = [run_alone(case.engine(), bound(request)).said for request in case.requests]
    engine = case.engine(speculation=True)
    speculator: Any = engine.scheduler.speculator
    speculator._lookup = lambda sequence: []
    speculator._best_length = lambda sequence, available, step: (available, 1.0)
    outcomes = run_all(engine, separate([bound(request, forced_next=forced) for request in case.requests]))
    assert [outcome.said for outcome in outcomes] == plain
    assert speculator.num_drafted == speculator.num_accepted > 0


def draft_always(engine: Engine) -> None:
    """Draft whenever there is something to draft, whether it pays or not: guess the prompt again."""
    assert engine.scheduler.speculator is not None
    speculator = engine.scheduler.speculator
    lookup = speculator._lookup

    def guess(sequence: Any) -> list[int]:
        return lookup(sequence) or list(sequence.request.prompt_ids[:3])

    speculator._lookup = guess  # type: ignore[method-assign]
    speculator._best_length = lambda s, available, step: (min(available, 4), 1.0)  # type: ignore[method-assign]


def test_as_one_job_or_as_many(case: Case) -> None:
    case.check(run_all(case.engine(), sequences(case.requests, Job("t", salt="s"))))


@pytest.mark.parametrize("numerics", NUMERICS)
def test_a_wide_model_under_everything_at_once(numerics: str) -> None:
    if reason := why_not(numerics):
        pytest.skip(reason)
    case = Case("wide", numerics)
    engine = case.engine(num_blocks=7, max_batch_tokens=23, speculation=True)
    draft_always(engine)
    watch = Watch(engine)
    outcomes = []
    for one in separate(case.requests):
        outcomes += watch.add([one])
        watch.step()
    watch.finish()
    case.check(outcomes)


# ---- the reference itself -------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", [[1], [5, 6, 7], list(range(60))], ids=len)
def test_greedy_ids_are_those_of_transformers_generate(prompt: list[int]) -> None:
    folder = checkpoint(3)
    outcome = run_alone(real_engine(folder), ask(prompt, max_new_tokens=30, ignore_eos=True))
    model = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager")
    model.generation_config.eos_token_id = None
    found = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt)),
        do_sample=False,
        max_new_tokens=30,
        pad_token_id=0,
    )
    assert outcome.token_ids == found[0, len(prompt) :].tolist()


def test_five_ordinals_of_one_prompt_give_five_texts() -> None:
    asked = [ask([1, 2, 3], ordinal=i, temperature=1.0, seed=42, max_new_tokens=12) for i in range(5)]
    assert len({tuple(o.token_ids) for o in run_all(real_engine(checkpoint(3)), sequences(asked))}) == 5


def test_a_seed_reproduces_its_texts_and_another_does_not() -> None:
    engine = real_engine(checkpoint(3))
    texts = [
        [
            tuple(o.token_ids)
            for o in run_all(engine, sequences([ask([1], i, temperature=1.0, seed=s) for i in range(3)]))
        ]
        for s in (7, 7, 8)
    ]
    assert (texts[0] == texts[1], texts[0] == texts[2]) == (True, False)


def test_generation_that_reaches_the_last_position_ends_with_length() -> None:
    outcome = run_alone(real_engine(checkpoint(3)), ask(range(1, 91), max_new_tokens=6, ignore_eos=True))
    assert (outcome.finish_reason, len(outcome.token_ids)) == (FinishReason.LENGTH, 6)

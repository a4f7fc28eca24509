"""A draft model changes no text: the same ids and log probabilities as without, whatever runs beside it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from test_same_text import NUMERICS, Case, why_not
from tiny import Outcome, Watch, ask, checkpoint, draw_model, real_engine, run_all, run_alone, separate

from model_store.errors import UnsupportedCheckpoint
from service.engine.draft_model import DraftModel
from service.engine.engine import Engine

CASES = ["reference float32", "cpu bfloat16", "cpu int8"]


@functools.cache
def relative(tmp: str) -> Path:
    """A draft that is often right: the model itself, with some noise on its weights."""
    folder = Path(tmp) / "draft"
    model = draw_model(3)
    torch.manual_seed(1)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor += torch.randn_like(tensor) * 0.15 * tensor.std()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def draft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return relative(str(tmp_path_factory.mktemp("draft")))


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    if reason := why_not(request.param):
        pytest.skip(reason)
    return Case("tiny", request.param)


def drafter_of(engine: Engine) -> DraftModel:
    drafter = engine.scheduler.speculator
    assert isinstance(drafter, DraftModel)
    return drafter


def eager(engine: Engine, length: int = 3) -> Engine:
    """Draft whenever there is room, whether it pays or not."""
    drafter = drafter_of(engine)
    drafter._best_length = lambda candidates, *rest: (length if candidates else 0, 0.0)  # type: ignore[method-assign]
    drafter._is_worth = lambda pair, seconds: True  # type: ignore[method-assign]
    drafter._lookup._best_length = lambda s, available, step: (0, 0.0)  # type: ignore[method-assign]
    drafter._earn = lambda seconds: setattr(drafter, "account_s", 1e9)  # type: ignore[method-assign]
    return engine


def check_counts(engine: Engine, outcomes: list[Outcome]) -> None:
    drafter = drafter_of(engine)
    drafter.twins.check()
    assert drafter.num_model_drafted > drafter.num_model_accepted > 0
    assert drafter.num_drafted == drafter.num_model_drafted
    assert all(not outcome.error for outcome in outcomes)


def test_in_a_full_batch(case: Case, draft: Path) -> None:
    engine = eager(case.engine(speculation=True, draft_folder=draft))
    outcomes = run_all(engine, separate(case.requests))
    case.check(outcomes)
    check_counts(engine, outcomes)


def test_joining_late_in_small_steps(case: Case, draft: Path) -> None:
    watch = Watch(eager(case.engine(speculation=True, draft_folder=draft, max_batch_tokens=23)))
    outcomes = []
    for one in separate(case.requests):
        outcomes += watch.add([one])
        watch.step()
        watch.step()
        drafter_of(watch.engine).twins.check()
    watch.finish()
    case.check(outcomes)
    check_counts(watch.engine, outcomes)


def test_after_preemption(case: Case, draft: Path) -> None:
    engine = eager(case.engine(speculation=True, draft_folder=draft, num_blocks=7))
    outcomes = run_all(engine, separate(case.requests))
    assert engine.scheduler.num_preemptions > 0
    case.check(outcomes)
    check_counts(engine, outcomes)


def test_a_draft_that_knows_nothing(case: Case) -> None:
    engine = eager(case.engine(speculation=True, draft_folder=checkpoint(11)), length=7)
    case.check(run_all(engine, separate(case.requests)))
    assert drafter_of(engine).num_model_drafted > 0


def test_with_a_constraint(draft: Path) -> None:
    def evens(output_ids: Any) -> list[int]:
        return list(range(len(output_ids) % 2, 250, 2))

    plain = real_engine(checkpoint(3))
    engine = eager(real_engine(checkpoint(3), speculation=True, draft_folder=draft))
    request = ask([5, 6, 7], max_new_tokens=30, ignore_eos=True, temperature=0.9, allowed_next=evens)
    outcome = run_alone(engine, request)
    assert outcome.said == run_alone(plain, request).said
    assert [i % 2 for i in outcome.token_ids] == [0, 1] * 15
    check_counts(engine, [outcome])


def test_a_drawn_text_is_drafted_with_its_own_random_numbers() -> None:
    engine = eager(real_engine(checkpoint(3), speculation=True, draft_folder=checkpoint(3)))
    run_alone(engine, ask([5, 6, 7], max_new_tokens=40, ignore_eos=True, temperature=1.5, seed=3))
    drafter = drafter_of(engine)
    assert drafter.num_model_accepted == drafter.num_model_drafted > 0


def test_a_pass_that_fails_ends_drafts_and_no_text(draft: Path) -> None:
    faults: list[BaseException] = []
    plain = real_engine(checkpoint(3))
    engine = eager(real_engine(checkpoint(3), speculation=True, draft_folder=draft))
    twins = drafter_of(engine).twins

    def fail(batch: object) -> Any:
        raise MemoryError("no")

    twins._execute, twins._on_fault = fail, faults.append
    request = ask([5, 6, 7], max_new_tokens=20, ignore_eos=True)
    assert run_alone(engine, request).said == run_alone(plain, request).said
    assert len(faults) == 1
    twins.check()


def test_a_draft_that_is_never_right_is_left_alone() -> None:
    engine = real_engine(checkpoint(3), speculation=True, draft_folder=checkpoint(11))
    drafter = drafter_of(engine)
    run_all(engine, separate([ask([i], max_new_tokens=80, ignore_eos=True) for i in range(1, 9)]))
    assert drafter.num_model_drafted < 8 * 80 // 4


@pytest.mark.parametrize(
    ("config", "line"), [({"vocab_size": 300}, "same vocabulary"), ({"n_positions": 64}, "window of 64")]
)
def test_a_draft_that_does_not_go_with_the_model_is_refused(config: dict[str, int], line: str) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=f"`draft_model`.*{line}"):
        real_engine(checkpoint(3), speculation=True, draft_folder=checkpoint(3, **config))


def test_numerics_are_those_of_the_other_tests() -> None:
    assert set(CASES) <= NUMERICS.keys()

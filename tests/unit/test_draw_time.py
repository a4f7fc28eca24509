"""What comes behind the forward pass has a budget in time: a toy clock says what rows cost, and the engine
has to find out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from tiny import (
    Clock,
    FakeRunner,
    Watch,
    ask,
    checkpoint,
    fake_engine,
    real_engine,
    run_all,
    separate,
    sequences,
)

from service.engine.batch import Batch, Scheduled, StepOutput
from service.engine.engine import Engine
from service.engine.observer import NullObserver
from service.engine.pulse import Pulse
from service.engine.sequence import FinishReason, Job, SamplingParams, Sequence, SequenceRequest, TokenLogprob
from service.engine.speculator import Speculator
from service.engine.step_cost import StepCost

FLAT: dict[str, Any] = {"temperature": 2.0, "top_p": 0.9999}
WIDE: dict[str, Any] = {"temperature": 2.0, "top_k": 2000}
DRAW_S = {"greedy": 0.00006, "drawn top_p": 0.023, "drawn top_k<2048": 0.005}
SCORE_S = 0.0005


class TimedRunner(FakeRunner):
    """Takes 10 ms for a forward pass and 1 ms for each of its rows; for draws and scores, see above."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.score_s = SCORE_S
        self.behind_s: list[float] = []  # of each step
        self.given_s: Counter[str] = Counter()  # by tenant

    def execute(self, batch: Batch) -> list[StepOutput]:
        """See `Runner`."""
        self.clock.now += 0.01 + 0.001 * batch.num_rows
        results = []
        for item, result in zip(batch.items, super().execute(batch), strict=True):
            scores = self.scores(item)
            draw_s = item.num_drawn * DRAW_S[item.sequence.kind_of_draw]
            row_s = (0.01 + 0.001 * batch.num_rows) / batch.num_rows
            self.given_s[item.sequence.job.tenant] += item.num_rows * row_s + draw_s
            score_s = len(scores) * self.score_s
            self.clock.now += draw_s + score_s
            results.append(replace(result, prompt_logprobs=scores, draw_s=draw_s, score_s=score_s))
        self.behind_s.append(sum(result.draw_s + result.score_s for result in results))
        return results

    def scores(self, item: Scheduled) -> tuple[TokenLogprob, ...]:
        """The prompt's log probabilities that an item's rows give."""
        sequence, first = item.sequence, item.sequence.next_scored
        if first is None:
            return ()
        end = min(sequence.num_computed_tokens + item.num_tokens + 1, sequence.num_prompt_tokens)
        return tuple(TokenLogprob(token_id, -1.0) for token_id in sequence.token_ids[first:end])


def timed(
    max_running: int = 64, max_rows: int = 256, runner_type: type[TimedRunner] = TimedRunner
) -> tuple[Watch, TimedRunner]:
    """An engine on a toy clock that has seen a few greedy steps."""
    runner = runner_type(Clock(tick_s=0.0))
    engine = fake_engine(num_blocks=4000, max_rows=max_rows, max_running=max_running, runner=runner)
    engine.clock = engine.pulse._clock = engine.reporter._clock = runner.clock
    watch = Watch(engine)
    for count in (1, 2, 4, 8, 16, 32, 64):
        watch.add(separate([ask([9, 9], max_new_tokens=4, ignore_eos=True)] * count))
        watch.finish()
    runner.behind_s.clear()
    runner.given_s.clear()
    return watch, runner


def job(count: int, tenant: str = "", num_tokens: int = 60, **params: Any) -> list[Sequence]:
    """A job whose prompts share nothing."""
    asked = [
        ask([i % 12, i // 12, 1], max_new_tokens=num_tokens, ignore_eos=True, **params) for i in range(count)
    ]
    return sequences(asked, Job(tenant))


def seconds_until_done(watch: Watch, sequence: Sequence, clock: Clock) -> float:
    """How long until a sequence has finished."""
    started = clock.now
    while watch.outcomes[sequence].finish_reason is None:
        watch.step()
    return clock.now - started


def steps(watch: Watch, count: int) -> None:
    """Do some steps."""
    for _ in range(count):
        watch.step()


# 0.1 s alone; 8.8 and 2.4 if all rows drew in each step
@pytest.mark.parametrize(("params", "limit_s"), [(FLAT, 0.25), (WIDE, 0.35)], ids=["top_p", "top_k"])
def test_a_neighbour_of_many_costly_rows_waits_for_few_of_them(
    params: dict[str, Any], limit_s: float
) -> None:
    watch, runner = timed()
    watch.add(job(48, **params))
    steps(watch, 10)
    [neighbour] = job(1, num_tokens=8)
    watch.add([neighbour])
    assert seconds_until_done(watch, neighbour, runner.clock) < limit_s


def test_no_step_draws_longer_than_its_share_and_one_row() -> None:
    watch, runner = timed()
    asked = [*job(48, num_tokens=8, **FLAT), *job(8, num_tokens=200)]
    watch.add(asked)
    while not all(s.num_output_tokens for s in asked):
        watch.step()
    runner.behind_s.clear()
    runner.batches.clear()
    watch.finish()
    forward_s = [0.01 + 0.001 * batch.num_rows for batch in runner.batches]
    limits = [max(1.5 * seconds, 0.02) + 0.023 for seconds in forward_s]
    assert all(behind_s <= limit for behind_s, limit in zip(runner.behind_s, limits, strict=True))
    assert max(runner.behind_s) > 0.02


def test_cheap_rows_are_drawn_in_every_step() -> None:
    watch, _ = timed()
    watch.add(job(48, **FLAT))
    steps(watch, 5)
    cheap = job(4, num_tokens=40)
    watch.add(cheap)
    steps(watch, 2)
    before = [s.num_output_tokens for s in cheap]
    steps(watch, 20)
    assert [s.num_output_tokens for s in cheap] == [count + 20 for count in before]


def test_no_costly_row_starves_beside_many_cheap_ones() -> None:
    watch, _ = timed()
    costly = job(10, num_tokens=1000, **FLAT)
    watch.add([*job(20, num_tokens=1000), *costly])
    steps(watch, 200)
    drawn = [s.num_output_tokens for s in costly]
    assert min(drawn) >= 15 and max(drawn) - min(drawn) <= 2


def given(watch: Watch, runner: TimedRunner, count: int) -> Counter[str]:
    """Seconds that tenants were given in the next steps."""
    runner.given_s.clear()
    steps(watch, count)
    return runner.given_s


def test_two_jobs_get_the_same_time_whatever_their_rows_cost() -> None:
    watch, runner = timed()
    watch.add([*job(24, "flat", 1000, **FLAT), *job(24, "wide", 1000, **WIDE)])
    steps(watch, 30)
    shares = given(watch, runner, 100)
    assert shares["flat"] == pytest.approx(shares["wide"], rel=0.05)


def test_a_tenant_with_many_jobs_gets_the_time_of_a_tenant_with_one() -> None:
    watch, runner = timed()
    for _ in range(5):
        watch.add(job(6, "many", 1000, **FLAT))
    watch.add(job(6, "one", 1000, **FLAT))
    steps(watch, 30)
    shares = given(watch, runner, 100)
    assert shares["many"] == pytest.approx(shares["one"], rel=0.05)


def test_jobs_of_nobody_share_the_time_evenly() -> None:
    watch, _ = timed()
    large, small = job(30, num_tokens=1000, **FLAT), job(6, num_tokens=1000, **FLAT)
    watch.add([*large, *small])
    steps(watch, 110)
    tokens = [sum(s.num_output_tokens for s in line) for line in (large, small)]
    assert tokens[0] == pytest.approx(tokens[1], rel=0.25)  # the first steps had nobody to be fair to


def test_a_newcomer_neither_waits_for_the_past_nor_takes_it_back() -> None:
    watch, runner = timed()
    watch.add(job(24, "old", 1000, **FLAT))
    steps(watch, 200)
    watch.add(job(24, "new", 1000, **FLAT))
    steps(watch, 30)
    shares = given(watch, runner, 100)
    assert shares["old"] == pytest.approx(shares["new"], rel=0.05)


def test_a_kind_of_row_that_was_never_drawn_is_tried_with_one() -> None:
    watch, runner = timed()
    watch.add(job(20, **FLAT))
    steps(watch, 2)
    assert runner.behind_s == [0.0, pytest.approx(0.023)]


def test_a_prompt_whose_draw_does_not_fit_is_computed_up_to_its_last_token() -> None:
    watch, _ = timed()
    waiting = job(20, **FLAT)
    watch.add(waiting)
    watch.step()
    assert [(s.num_uncomputed_tokens, s.num_output_tokens) for s in waiting] == [(1, 0)] * 20
    watch.step()
    assert sum(s.num_output_tokens for s in waiting) == 1


class Starts(NullObserver):
    """Counts the sequences that started."""

    count = 0

    def on_start(self, queue_s: float) -> None:
        """See `Observer`."""
        self.count += 1


def test_prompts_of_one_token_whose_draws_do_not_fit_fail_nobody() -> None:
    watch, _ = timed(max_running=4)
    watch.engine.reporter.observer = starts = Starts()
    outcomes = watch.add(separate([ask([i], max_new_tokens=2, ignore_eos=True, **FLAT) for i in range(9)]))
    watch.finish()
    assert {o.finish_reason for o in outcomes} == {FinishReason.LENGTH}
    assert starts.count == 9


def test_scores_of_a_prompt_have_their_share_of_a_step() -> None:
    watch, runner = timed()
    watch.add(job(4, num_tokens=1000))
    steps(watch, 3)
    scored = ask([1, 2, 3] * 300, max_new_tokens=0, score_from=0, logprobs=0)
    watch.add(separate([scored] * 2))
    steps(watch, 3)
    runner.behind_s.clear()
    steps(watch, 20)
    assert 0.01 < max(runner.behind_s) <= 1.5 * (0.01 + 0.001 * 4) + SCORE_S


class AttentiveRunner(TimedRunner):
    """Whose passes take 10 us more for each pair of a row and a token before it."""

    def execute(self, batch: Batch) -> list[StepOutput]:
        """See `Runner`."""
        for item in batch.items:
            first, rows = item.sequence.num_computed_tokens, item.num_rows
            self.clock.now += 1e-5 * rows * (first + rows / 2)
        return super().execute(batch)


def test_what_long_prompts_take_is_foreseen_and_never_more_than_it_takes() -> None:
    watch, runner = timed(runner_type=AttentiveRunner)
    for _ in range(5):
        scored = ask([1, 2, 3] * 300, max_new_tokens=0, score_from=0, logprobs=0)
        [sequence] = separate([scored])
        watch.add([sequence])
        taken_s = seconds_until_done(watch, sequence, runner.clock)
    foreseen_s = watch.engine.scheduler.cost.min_scoring_s(0, 900)
    assert 4.05 + 0.45 <= foreseen_s <= taken_s  # attention alone, and the scores
    assert watch.engine.scheduler.cost.min_scoring_s(0, 90) < taken_s / 10


def test_prompts_that_wait_to_be_scored_hold_no_places_and_no_blocks() -> None:
    watch, runner = timed()
    runner.score_s = 0.01  # 256 rows take 0.27 s, and their scores 2.6: a step scores 40 of them
    asked = [ask([i, 1, 2, *[3] * 200], max_new_tokens=1, score_from=0, logprobs=0) for i in range(12)]
    outcomes = watch.add(sequences(asked, Job("large")))
    for _ in range(30):
        watch.step()
        assert sum(s.next_scored is not None for s in watch.engine.scheduler.running) <= 2
    [neighbour] = job(1, "small", num_tokens=8)
    watch.add([neighbour])
    assert seconds_until_done(watch, neighbour, runner.clock) < 1.0  # 13 s if it waited for the others
    watch.finish()
    assert {outcome.finish_reason for outcome in outcomes} == {FinishReason.LENGTH}


def test_everything_comes_to_an_end_however_it_is_drawn() -> None:
    watch, _ = timed(max_running=12)
    mixed = [*job(20, "a", 5, **FLAT), *job(20, "b", 5, **WIDE), *job(20, "c", 5)]
    outcomes = watch.add(mixed)
    watch.finish()
    assert {(o.finish_reason, len(o.token_ids)) for o in outcomes} == {(FinishReason.LENGTH, 5)}
    assert (
        not watch.engine.scheduler.time_share._jobs and not watch.engine.scheduler.time_share._tenants.given_s
    )


def test_drafts_stop_where_their_draws_cost_more_than_they_bring() -> None:
    cost = StepCost()
    cost.note(1, 0.01)
    cost.note(8, 0.01)
    [sequence] = separate([ask([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3], max_new_tokens=50, **FLAT)])
    speculator = Speculator(cost, 64)
    assert len(speculator.draft([sequence])[sequence]) == 7
    cost.note_draws(sequence.kind_of_draw, 1, 0.1)
    assert sequence not in speculator.draft([sequence])


# ---- kinds of rows --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "kind"),
    [
        ({"temperature": 0.0, "top_k": 5, "top_p": 0.5}, "greedy"),
        ({}, "drawn"),
        ({"top_k": 40}, "drawn top_k<64"),
        ({"top_k": 2000, "top_p": 0.9}, "drawn top_k<2048 top_p"),
        ({"presence_penalty": 1.0, "no_repeat_ngram_size": 3}, "drawn penalised no_repeat_ngram"),
        ({"logit_bias": ((1, 1.0),), "allowed_next": lambda ids: [1]}, "drawn biased constrained"),
    ],
)
def test_rows_that_cost_alike_are_of_one_kind(params: dict[str, Any], kind: str) -> None:
    assert SamplingParams(**params).kind_of_draw() == kind


# ---- signs of life --------------------------------------------------------------------------------------


def beats_of(engine: Engine, asked: Iterable[SequenceRequest]) -> tuple[int, list[Any]]:
    """How many signs of life a runner gives, and what the sequences say."""
    count = 0

    def beat() -> None:
        nonlocal count
        count += 1

    engine.runner.on_progress = beat  # type: ignore[attr-defined]
    outcomes = run_all(engine, separate(asked))
    return count, [outcome.said for outcome in outcomes]


def test_rows_drawn_one_by_one_are_those_drawn_together_with_more_signs_of_life() -> None:
    asked = [ask([i, 1], temperature=1.5, top_p=0.9, seed=i, logprobs=1, max_new_tokens=6) for i in range(8)]
    asked += [ask([i, 1], temperature=1.5, top_k=5 * i, seed=i, max_new_tokens=6) for i in range(4)]
    together, apart = real_engine(checkpoint(3)), real_engine(checkpoint(3))
    apart.runner._cost.rows_at_once = lambda kind: 1  # type: ignore[attr-defined]
    apart.scheduler.cost.draw_s = lambda sequence: 0.0  # type: ignore[method-assign]
    together.runner._cost.rows_at_once = lambda kind: 1000  # type: ignore[attr-defined]
    together.scheduler.cost.draw_s = lambda sequence: 0.0  # type: ignore[method-assign]
    few, said = beats_of(together, asked)
    many, said_apart = beats_of(apart, asked)
    assert said_apart == said and many > 2 * few


def test_a_pulse_knows_the_longest_wait_for_a_sign_of_life() -> None:
    clock = Clock(tick_s=0.0)
    pulse = Pulse(clock)
    for waits in ([1.0, 5.0, 2.0], [3.0]):
        pulse.begin()
        for wait in waits:
            clock.now += wait
            pulse.beat()
        pulse.end()
        clock.now += 100  # nothing to do
    assert (pulse.slowest_s, pulse.last_at) == (5.0, None)


@pytest.mark.parametrize(("row_s", "rows"), [(0.0001, 200), (0.023, 1), (1.0, 1)])
def test_a_part_of_the_draws_is_about_twenty_milliseconds(row_s: float, rows: int) -> None:
    cost = StepCost()
    [sequence] = separate([ask([1])])
    cost.note_draws(sequence.kind_of_draw, 1, row_s)
    assert cost.rows_at_once("greedy") == pytest.approx(rows, abs=1)

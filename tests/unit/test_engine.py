"""One engine by hand: ends of texts, log probabilities, injected faults, accounts, and what speculator and
step cost learn."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import (
    FakeRunner,
    Guesses,
    Outcome,
    Watch,
    ask,
    checkpoint,
    fake_engine,
    real_engine,
    reference_logits,
    run_all,
    run_alone,
    separate,
    sequences,
)

from service.engine.batch import Batch, Scheduled
from service.engine.observer import NullObserver, StepStats
from service.engine.sequence import (
    FinishReason,
    Job,
    Sequence,
    SequenceOutput,
    SequenceRequest,
    SequenceStats,
)
from service.engine.speculator import Speculator, is_undrawn
from service.engine.step_cost import StepCost


class Script(FakeRunner):
    """A runner whose sequences all say the same ids, by output position."""

    def __init__(self, says: list[int]) -> None:
        super().__init__()
        self.says, self.prompt = says, 3

    def next_id(self, ids: Any) -> int:
        """See `FakeRunner`."""
        return self.says[len(ids) - self.prompt]


def said(says: list[int], **params: Any) -> Outcome:
    """What a sequence with a scripted output shows; id 12 ends a text, others are letters."""
    return run_alone(fake_engine(runner=Script(says)), ask([1, 2, 3], **params))


# ---- ends -----------------------------------------------------------------------------------------------


def test_the_end_token_ends_the_text_and_is_not_shown() -> None:
    outcome = said([0, 1, 12, 2])
    assert (outcome.text, outcome.token_ids, outcome.finish_reason) == ("ab", [0, 1, 12], FinishReason.STOP)


def test_an_ignored_end_token_is_just_empty() -> None:
    outcome = said([0, 12, 1], ignore_eos=True, max_new_tokens=3)
    assert (outcome.text, outcome.finish_reason) == ("ab", FinishReason.LENGTH)


def test_a_stop_token_ends_the_text_and_is_not_shown() -> None:
    outcome = said([0, 1, 2], stop_token_ids=(1,))
    assert (outcome.text, outcome.finish_reason) == ("a", FinishReason.STOP)


def test_a_stop_token_works_where_the_end_is_ignored() -> None:
    assert said([12, 1], stop_token_ids=(1,), ignore_eos=True).token_ids == [12, 1]


def test_a_stop_string_across_tokens_ends_the_text_before_it() -> None:
    outcome = said([0, 1, 2, 3], stop=("bc",))
    assert (outcome.text, outcome.finish_reason) == ("a", FinishReason.STOP)


def test_text_held_back_for_a_stop_string_is_shown_at_the_end() -> None:
    assert said([0, 1, 0, 1], stop=("abc",), max_new_tokens=4).text == "abab"


def test_the_length_limit_ends_the_text() -> None:
    assert said([0, 1, 2], max_new_tokens=2).finish_reason is FinishReason.LENGTH


def test_the_end_token_at_the_length_limit_is_an_end_and_no_cut() -> None:
    assert said([0, 12], max_new_tokens=2).finish_reason is FinishReason.STOP


def test_tokens_verified_behind_the_end_never_were() -> None:
    engine = fake_engine(runner=Script([0, 1, 12, 2, 3, 4]))
    engine.scheduler.speculator = Guesses(
        lambda decoding: {s: (1, 12, 2, 3) for s in decoding if s.num_output_tokens == 1}
    )
    assert run_alone(engine, ask([1, 2, 3])).token_ids == [0, 1, 12]


def test_drafts_that_are_right_come_in_one_step() -> None:
    runner = Script([0, 1, 2, 3, 4, 5])
    engine = fake_engine(runner=runner)
    engine.scheduler.speculator = Guesses(
        lambda decoding: {s: (1, 2, 9) for s in decoding if s.num_output_tokens == 1}
    )
    run_alone(engine, ask([1, 2, 3], max_new_tokens=6))
    assert len(runner.batches) == 4  # 0 | 1 2 3 | 4 | 5


def test_an_empty_prompt_is_refused_before_it_is_queued() -> None:
    with pytest.raises(ValueError, match="prompt_ids"):
        SequenceRequest((), ask([1]).params)


@pytest.mark.parametrize("least", [1, 5, 9])
def test_no_text_is_shorter_than_its_least_length(least: int) -> None:
    bias = ((258, 50.0),)  # the end token all but certain
    asked = ask([1, 2], min_new_tokens=least, max_new_tokens=20, logit_bias=bias)
    assert len(run_alone(real_engine(checkpoint(3)), asked).token_ids) == least + 1


# ---- told once, at the end ------------------------------------------------------------------------------


def told_once(asked: SequenceRequest) -> tuple[Outcome, int]:
    """What a sequence that is not streamed gives, and in how many outputs."""
    engine, outcome, count = real_engine(checkpoint(3), max_batch_tokens=19), Outcome(), 0
    [sequence] = separate([replace(asked, is_streamed=False)])
    engine.add(sequence)
    while engine.has_work:
        for _, output in engine.step():
            outcome.note(output)
            count += 1
    return outcome, count


@pytest.mark.parametrize(
    "params",
    [
        {"max_new_tokens": 30, "ignore_eos": True},
        {"max_new_tokens": 30, "temperature": 1.0, "seed": 5, "logprobs": 2, "score_from": 0},
        {"max_new_tokens": 0, "logprobs": 0, "score_from": 3},
        {"max_new_tokens": 40, "ignore_eos": True, "temperature": 1.5, "seed": 2, "stop": ("e", "\n")},
    ],
)
def test_a_text_told_once_at_its_end_is_the_text_told_step_by_step(params: dict[str, Any]) -> None:
    asked = ask(PROMPT, **params)
    stepwise = run_alone(real_engine(checkpoint(3), max_batch_tokens=19), asked)
    once, num_outputs = told_once(asked)
    assert (once.said, num_outputs) == (stepwise.said, 1)


# ---- log probabilities ----------------------------------------------------------------------------------

PROMPT = [(11 * i) % 250 for i in range(45)]


def expected_scores(prompt: list[int], start: int) -> list[float | None]:
    """transformers' log probabilities of the prompt's tokens from a position on."""
    logprobs = reference_logits(checkpoint(3), prompt).log_softmax(-1)
    return [None if at == 0 else float(logprobs[at - 1, prompt[at]]) for at in range(start, len(prompt))]


def scores(outcome: Outcome) -> list[float | None]:
    """The prompt's log probabilities as the engine gave them."""
    return [p.logprob for p in outcome.prompt_logprobs]


def near(values: list[float | None]) -> list[Any]:
    """Equal to so many digits."""
    return [None if value is None else pytest.approx(value, abs=1e-4) for value in values]


@pytest.mark.parametrize("start", [0, 1, 2, 16, 17, 40, 44, 45])
@pytest.mark.parametrize("new", [0, 3])
def test_scores_of_a_prompt_equal_those_of_transformers(start: int, new: int) -> None:
    outcome = run_alone(
        real_engine(checkpoint(3), max_batch_tokens=19), ask(PROMPT, max_new_tokens=new, score_from=start)
    )
    assert scores(outcome) == near(expected_scores(PROMPT, start))


def test_scores_are_the_same_with_a_cached_prefix() -> None:
    engine = real_engine(checkpoint(3))
    outcomes = [run_alone(engine, ask(PROMPT, max_new_tokens=0, score_from=36)) for _ in range(2)]
    assert outcomes[1].stats is not None and outcomes[1].stats.num_cached_tokens == 32
    assert scores(outcomes[0]) == scores(outcomes[1])


def test_scores_are_whole_after_preemption_in_the_middle() -> None:
    engine = real_engine(checkpoint(3), max_batch_tokens=10)
    watch, asked = Watch(engine), separate([ask(PROMPT, max_new_tokens=4, score_from=5)])
    [outcome] = watch.add(asked)
    watch.step()
    watch.step()
    engine.scheduler.preempt(asked[0])
    watch.finish()
    assert scores(outcome) == near(expected_scores(PROMPT, 5))


def test_a_scored_prompt_of_one_token_has_one_score_without_a_value() -> None:
    assert scores(run_alone(real_engine(checkpoint(3)), ask([7], max_new_tokens=0, score_from=0))) == [None]


def test_logprobs_are_raw_whatever_the_processors() -> None:
    asked = ask(
        [1, 2],
        max_new_tokens=3,
        logprobs=2,
        repetition_penalty=1.8,
        temperature=0.5,
        top_k=3,
        logit_bias=((4, 9.0),),
    )
    outcome = run_alone(real_engine(checkpoint(3)), asked)
    logprobs = reference_logits(checkpoint(3), [1, 2, *outcome.token_ids]).log_softmax(-1)
    found = [p.logprob for p in outcome.logprobs]
    assert found == near([float(logprobs[1 + i, t]) for i, t in enumerate(outcome.token_ids)])


def test_there_is_one_logprob_for_each_token() -> None:
    outcome = run_alone(
        real_engine(checkpoint(3), speculation=True), ask([1, 2] * 5, max_new_tokens=20, logprobs=0)
    )
    assert [p.token_id for p in outcome.logprobs] == outcome.token_ids


def test_a_constraint_holds_for_every_token() -> None:
    asked = ask([1, 2], temperature=1.0, max_new_tokens=10, allowed_next=lambda output: [len(output), 200])
    ids = run_alone(real_engine(checkpoint(3)), asked).token_ids
    assert all(token in (at, 200) for at, token in enumerate(ids))


# ---- faults ---------------------------------------------------------------------------------------------


def failing(error: Exception, when: Callable[[Batch], bool]) -> FakeRunner:
    """A runner that raises in steps of some kind."""
    runner = FakeRunner()

    def before(batch: Batch) -> None:
        if when(batch):
            raise error

    runner.before = before
    return runner


def test_an_exception_fails_the_sequences_of_its_batch_only() -> None:
    runner = FakeRunner()
    watch = Watch(fake_engine(max_running=2, runner=runner))
    outcomes = watch.add(separate([ask([i, 1], max_new_tokens=4, ignore_eos=True) for i in range(5)]))
    watch.step()
    runner.before = _raise
    watch.step()
    runner.before = lambda batch: None
    watch.finish()
    assert [o.finish_reason and o.finish_reason.value for o in outcomes] == ["error"] * 2 + ["length"] * 3


def _raise(batch: Batch) -> None:
    raise RuntimeError("injected")


def test_a_fault_is_told_and_names_its_kind() -> None:
    engine, told = fake_engine(runner=failing(RuntimeError("injected"), lambda batch: True)), []
    engine.on_fault = told.append
    outcome = run_alone(engine, ask([1]))
    assert (outcome.error, [type(e) for e in told]) == ("RuntimeError", [RuntimeError])


def test_one_text_that_cannot_be_read_fails_alone() -> None:
    engine = fake_engine()
    watch, asked = Watch(engine), separate([ask([i, 1], max_new_tokens=4, ignore_eos=True) for i in range(3)])
    outcomes = watch.add(asked)
    asked[1].detokenizer.push = _raise  # type: ignore[assignment, method-assign]
    watch.finish()
    assert [o.finish_reason and o.finish_reason.value for o in outcomes] == ["length", "error", "length"]


@pytest.mark.parametrize("max_rows", [1, 3, 10])
def test_everybody_finishes_where_memory_holds_few_rows(max_rows: int) -> None:
    engine = fake_engine(runner=failing(MemoryError(), lambda batch: batch.num_rows > max_rows))
    outcomes = run_all(
        engine, separate([ask([i, *range(9)], max_new_tokens=6, ignore_eos=True) for i in range(6)])
    )
    assert {o.finish_reason for o in outcomes} == {FinishReason.LENGTH}


def test_everybody_finishes_where_a_device_holds_few_rows() -> None:
    engine = real_engine(checkpoint(3))
    forward = engine.runner._forward  # type: ignore[attr-defined]

    def short(batch: Any) -> torch.Tensor:
        if len(batch.input_ids) > 3:
            raise torch.OutOfMemoryError
        logits: torch.Tensor = forward(batch)
        return logits

    engine.runner._forward = short  # type: ignore[attr-defined]
    outcomes = run_all(
        engine, separate([ask([i, *range(9)], max_new_tokens=6, ignore_eos=True) for i in range(6)])
    )
    assert {o.finish_reason for o in outcomes} == {FinishReason.LENGTH}


def test_texts_are_the_same_after_memory_ran_out() -> None:
    asked = [ask([i, *range(9)], max_new_tokens=6, ignore_eos=True) for i in range(6)]
    short = fake_engine(runner=failing(MemoryError(), lambda batch: batch.num_rows > 4))
    assert [o.said for o in run_all(short, separate(asked))] == [
        run_alone(fake_engine(), a).said for a in asked
    ]


def test_steps_grow_back_once_memory_suffices() -> None:
    left = [MemoryError()]
    engine = fake_engine(runner=failing(MemoryError(), lambda batch: bool(left and left.pop())))
    run_all(engine, separate([ask(range(12), max_new_tokens=60, ignore_eos=True)] * 2))
    assert engine.scheduler.max_rows == engine.scheduler.budget.max_rows


def test_a_single_row_that_never_fits_fails() -> None:
    engine = fake_engine(runner=failing(MemoryError(), lambda batch: True))
    assert run_alone(engine, ask(range(12))).finish_reason is FinishReason.ERROR


# ---- accounts -------------------------------------------------------------------------------------------


def test_nothing_of_a_finished_sequence_is_kept() -> None:
    engine = fake_engine(speculation=True)
    asked = [ask([1, 2, 3] * 4, max_new_tokens=20, ignore_eos=True)] * 5
    run_all(engine, sequences(asked, Job("gone")))
    runner = engine.runner
    assert isinstance(runner, FakeRunner)
    runner.batches.clear()
    gc.collect()
    kept = [held for held in gc.get_objects() if type(held) is Sequence and held.job.tenant == "gone"]
    assert (kept, len(engine.scheduler.prefix_cache._promised)) == ([], 0)


class Notes(NullObserver):
    """An observer that writes everything down."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.tokens = 0
        self.firsts = 0
        self.finished: list[SequenceStats] = []
        self.steps: list[StepStats] = []

    def on_start(self, queue_s: float) -> None:
        """See `Observer`."""
        self.starts.append(queue_s)

    def on_tokens(self, count: int, since_s: float, is_first: bool) -> None:
        """See `Observer`."""
        self.tokens += count
        self.firsts += is_first

    def on_finish(self, stats: SequenceStats) -> None:
        """See `Observer`."""
        self.finished.append(stats)

    def on_step(self, stats: StepStats) -> None:
        """See `Observer`."""
        self.steps.append(stats)


@pytest.fixture(scope="module")
def notes() -> Notes:
    """What an observer saw of ten sequences in a pool too small for them."""
    engine, seen = fake_engine(num_blocks=12, speculation=True), Notes()
    engine.reporter.observer = seen
    run_all(engine, separate([ask([i, *range(8)], max_new_tokens=20, ignore_eos=True) for i in range(10)]))
    return seen


def test_every_sequence_starts_once_however_often_it_is_preempted(notes: Notes) -> None:
    assert (len(notes.starts), notes.firsts, notes.steps[-1].num_preemptions > 0) == (10, 10, True)


def test_every_token_is_counted(notes: Notes) -> None:
    assert notes.tokens == sum(stats.num_output_tokens for stats in notes.finished) == 200


def test_more_drafts_are_never_accepted_than_made(notes: Notes) -> None:
    assert all(0 <= step.num_accepted <= step.num_drafted for step in notes.steps)


def test_times_of_a_sequence_are_not_negative(notes: Notes) -> None:
    assert all(min(s.queue_s, s.prefill_s) >= 0 for s in notes.finished)


def test_no_output_comes_after_the_end() -> None:
    engine, ended = fake_engine(num_blocks=12), set()
    watch: list[tuple[Any, SequenceOutput]] = []
    for sequence in separate([ask([i, *range(8)], max_new_tokens=20) for i in range(10)]):
        engine.add(sequence)
    while engine.has_work:
        watch += engine.step()
    for sequence, output in watch:
        assert sequence not in ended
        ended |= {sequence} if output.finish_reason else set()


# ---- step cost and speculation --------------------------------------------------------------------------


def cost_of(**seconds: float) -> StepCost:
    """A cost with measurements: r1=0.5 means that one row took half a second."""
    cost = StepCost()
    for name, value in seconds.items():
        cost.note(int(name[1:]), value)
    return cost


def test_a_measured_step_is_predicted() -> None:
    assert cost_of(r1=0.5, r8=2.0).predict(8) == 2.0


def test_between_measurements_is_interpolated() -> None:
    assert cost_of(r1=1.0, r3=3.0).predict(2) == 2.0


def test_more_rows_never_cost_less() -> None:
    cost = cost_of(r1=1.0, r4=0.5, r8=2.0, r16=1.0, r64=3.0)
    predicted = [cost.predict(rows) for rows in range(1, 200)]
    assert predicted == sorted(predicted)


def test_beyond_the_largest_measurement_cost_grows_with_the_rows() -> None:
    assert cost_of(r1=1.0, r8=2.0).predict(16) == 4.0


def test_a_slow_first_step_is_forgotten_by_the_second() -> None:
    cost = StepCost()
    cost.note(1, 9.0)
    cost.note(1, 1.0)
    assert cost.predict(1) == pytest.approx(1.0)


def test_one_slow_step_moves_the_average_little() -> None:
    cost = cost_of(r1=1.0)
    cost.note(1, 1000.0)
    assert cost.predict(1) == pytest.approx(1.1)


def test_a_clock_that_stands_still_does_no_harm() -> None:
    assert cost_of(r1=0.0).predict(1) > 0


def speculate(cost: StepCost, max_rows: int = 64) -> tuple[Speculator, Any]:
    """A speculator and a sequence whose text repeats itself."""
    [sequence] = separate([ask([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2], max_new_tokens=50)])
    sequence.token_ids.append(3)
    return Speculator(cost, max_rows), sequence


def test_drafts_are_what_followed_the_same_tokens_before() -> None:
    speculator, sequence = speculate(cost_of(r1=1.0, r8=1.0))
    assert speculator.draft([sequence])[sequence] == (4, 5, 6, 7, 8, 9, 1)


def test_what_a_constraint_forces_is_drafted_first_and_teaches_nothing_of_other_drafts() -> None:
    speculator, sequence = speculate(cost_of(r1=1.0, r8=1.0))
    sequence.params = replace(sequence.params, forced_next=lambda ids: [21, 22] if ids[-1:] == [3] else [])
    assert speculator.draft([sequence]) == {sequence: (21, 22)}
    before = sequence.drafts.acceptance
    speculator.note(sequence, 2, 2)
    assert (speculator.num_accepted, sequence.drafts.acceptance) == (2, before)
    sequence.token_ids += [4, 5]
    assert speculator.draft([sequence])[sequence][:2] == (6, 7)  # copied, where nothing is forced
    speculator.note(sequence, 2, 0)
    assert sequence.drafts.acceptance < before


def test_what_is_forced_is_drafted_whatever_it_costs_as_far_as_a_step_has_rows() -> None:
    speculator, sequence = speculate(cost_of(r1=1.0, r8=80.0), max_rows=3)
    sequence.params = replace(sequence.params, forced_next=lambda ids: [21, 22, 23])
    assert speculator.draft([sequence]) == {sequence: (21, 22)}


def test_what_is_forced_needs_a_draw_only_for_its_log_probabilities() -> None:
    speculator, sequence = speculate(cost_of(r1=1.0, r8=1.0))
    sequence.params = replace(sequence.params, forced_next=lambda ids: [21, 22, 23])
    speculator.draft([sequence])
    drafts = [(21, 22, 23), (21, 22), (), (21, 9)]
    assert [is_undrawn(sequence, ids) for ids in drafts] == [True, True, False, False]
    sequence.num_computed_tokens = len(sequence.token_ids) - 1
    assert [Scheduled(sequence, 1, (21, 22), flag).num_drawn for flag in (True, False)] == [1, 3]
    sequence.params = replace(sequence.params, logprobs=0)
    assert not is_undrawn(sequence, (21, 22))


def test_drafts_that_cost_as_much_as_they_bring_are_not_made() -> None:
    speculator, sequence = speculate(cost_of(r1=1.0, r8=8.0))
    assert speculator.draft([sequence]) == {}


def test_one_draft_is_tried_now_and_then_where_they_seem_not_to_pay() -> None:
    speculator, sequence = speculate(cost_of(r1=1.0, r8=8.0))
    lengths = [len(speculator.draft([sequence]).get(sequence, ())) for _ in range(32)]
    assert (sum(lengths), max(lengths)) == (2, 1)


def test_a_full_step_has_no_room_for_drafts() -> None:
    speculator, sequence = speculate(cost_of(r1=1.0, r8=8.0), max_rows=1)
    assert not any(speculator.draft([sequence]) for _ in range(40))


def test_drafts_stop_before_the_last_token_of_a_text() -> None:
    speculator, sequence = speculate(cost_of(r1=1.0, r8=1.0))
    sequence.token_ids += [9] * 45 + [1, 2, 3]  # 49 of 50
    assert speculator.draft([sequence]) == {}


def test_wrong_drafts_make_fewer_drafts() -> None:
    speculator, sequence = speculate(cost_of(r1=1.0, r8=2.0))
    before = len(speculator.draft([sequence])[sequence])
    for _ in range(5):
        speculator.note(sequence, 7, 0)
    assert len(speculator.draft([sequence]).get(sequence, ())) < before

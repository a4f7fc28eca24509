"""Beam searches as sequences of the engine: shared blocks, places, preemption, and ends of every kind."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tiny import FakeRunner, ask, fake_engine, separate, sequences

from service.engine.batch import Batch
from service.engine.engine import Engine
from service.engine.sequence import Sequence, SequenceOutput, SequenceRequest

PROMPT = tuple(range(10))


def beams(prompt: tuple[int, ...] = PROMPT, **params: Any) -> SequenceRequest:
    """A request for a search."""
    return ask(
        prompt,
        **{"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 9, "ignore_eos": True, **params},
    )


def steps(engine: Engine, most: int = 3000) -> dict[Sequence, SequenceOutput]:
    """Step to the end with the accounts checked after each step; the last output of each sequence."""
    last: dict[Sequence, SequenceOutput] = {}
    for _ in range(most):
        if not engine.has_work:
            return last
        last.update(engine.step())
        engine.scheduler.check()
    raise AssertionError("it does not end")


def run(engine: Engine, requests: list[SequenceRequest]) -> list[SequenceOutput]:
    """What each of some requests, of a job each, says at its end."""
    asked = separate(requests)
    for sequence in asked:
        engine.add(sequence)
    last = steps(engine)
    return [last[sequence] for sequence in asked]


def said(output: SequenceOutput) -> list[tuple[object, ...]]:
    """What must not depend on what runs beside a search."""
    return [(one.text, one.token_ids, one.score, one.finish_reason) for one in (output, *output.others)]


REQUESTS = [
    beams(
        tuple((7 * i + at) % 13 for at in range(3 + 5 * (i % 4))), num_beams=2 + i % 3, max_new_tokens=4 + i
    )
    for i in range(8)
]


def test_beams_share_the_blocks_of_their_prompt() -> None:
    runner = FakeRunner()
    engine = fake_engine(runner=runner)
    [sequence] = separate([beams()])
    engine.add(sequence)
    engine.step()
    tables = [beam.block_table for beam in (sequence, *sequence.followers)]
    assert tables == [tables[0]] * 3  # the last block too, though it is not full
    last = tables[0][2]
    engine.step()
    copied = [item.copied for item in runner.batches[1].items]
    assert [pair[0] for pair in copied if pair is not None] == [last] * 2  # the third keeps it
    steps(engine)
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_blocks


def test_only_blocks_that_are_not_full_are_copied() -> None:
    runner = FakeRunner()
    engine = fake_engine(runner=runner)
    run(engine, [beams(tuple(range(8)), max_new_tokens=6)])
    copied = [item for batch in runner.batches for item in batch.items if item.copied is not None]
    assert copied
    assert all(item.sequence.num_prompt_tokens % 4 == 0 for item in copied)
    first = [item for item in runner.batches[1].items if item.copied is not None]
    assert first == []  # the prompt fills its blocks: each beam begins one of its own


@pytest.mark.parametrize("num_blocks", [12, 16, 24, 64])
def test_a_search_says_the_same_alone_and_among_others_that_compete_for_blocks(num_blocks: int) -> None:
    alone = [said(run(fake_engine(), [request])[0]) for request in REQUESTS]
    engine = fake_engine(num_blocks=num_blocks, max_running=8)
    together = run(engine, [*REQUESTS, ask(PROMPT, max_new_tokens=20)])[:-1]
    assert [said(output) for output in together] == alone
    assert engine.scheduler.pool.num_free == num_blocks
    assert engine.scheduler.places.num_held == 0
    assert bool(engine.scheduler.num_preemptions) == (num_blocks < 24)


def test_a_search_that_is_put_back_goes_on_where_it_was() -> None:
    alone = said(run(fake_engine(), [beams(max_new_tokens=12)])[0])
    runner = FakeRunner()
    engine = fake_engine(runner=runner)
    [sequence] = separate([beams(max_new_tokens=12)])
    engine.add(sequence)
    for _ in range(7):
        engine.step()
    engine.scheduler.preempt(sequence.followers[1])
    engine.scheduler.check()
    assert engine.scheduler.running == []
    assert len(engine.scheduler.waiting) == 1
    assert said(steps(engine)[sequence]) == alone
    assert len(runner.batches) < 7 + 9


def test_steps_of_few_rows_say_the_same() -> None:
    alone = [said(run(fake_engine(), [request])[0]) for request in REQUESTS]
    engine = fake_engine(max_rows=3)
    assert [said(output) for output in run(engine, REQUESTS)] == alone


def test_memory_for_few_rows_only_lets_searches_end_all_the_same() -> None:
    alone = [said(run(fake_engine(), [request])[0]) for request in REQUESTS]
    runner = FakeRunner()

    def no_room(batch: Batch) -> None:
        if batch.num_rows > 2:
            raise MemoryError

    runner.before = no_room
    assert [said(output) for output in run(fake_engine(runner=runner), REQUESTS)] == alone


def test_searches_share_steps() -> None:
    """Eight searches of four beams take the steps of one, not of eight."""
    runner = FakeRunner()
    requests = [beams((i, i + 1, i + 2), num_beams=4, max_new_tokens=8) for i in range(8)]
    run(fake_engine(runner=runner, max_running=32, max_rows=64), requests)
    together = len(runner.batches)
    alone = FakeRunner()
    run(fake_engine(runner=alone), requests[:1])
    assert together <= len(alone.batches) + 1


def test_a_search_counts_as_many_places_as_it_has_beams() -> None:
    engine = fake_engine(max_running=8)
    for sequence in separate([beams((i, i + 1), num_beams=3) for i in range(4)]):
        engine.add(sequence)
    engine.step()
    assert engine.scheduler.places.num_held == 6
    engine.step()
    assert len(engine.scheduler.running) == 6


def test_nobody_takes_the_places_that_a_search_waits_for() -> None:
    engine = fake_engine(max_running=4)
    first, *rest = separate(
        [
            ask((1, 2), max_new_tokens=2),
            beams(num_beams=4),
            *[ask((i, 3), max_new_tokens=9) for i in range(4)],
        ]
    )
    for sequence in (first, *rest):
        engine.add(sequence)
    for _ in range(4):
        engine.step()
    assert engine.scheduler.running[0] is rest[0]
    steps(engine)


def test_an_abort_in_the_middle_gives_everything_back() -> None:
    engine = fake_engine()
    searches = sequences([beams(), beams((3, 4, 5))])
    for sequence in searches:
        engine.add(sequence)
    for _ in range(4):
        engine.step()
    engine.abort(searches[:1])
    engine.scheduler.check()
    assert searches[0].followers == []
    steps(engine)
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_blocks
    assert engine.scheduler.places.num_held == 0


def test_a_fault_in_a_step_fails_each_search_once() -> None:
    runner = FakeRunner()
    faults: list[BaseException] = []
    engine = fake_engine(runner=runner)
    engine.on_fault = faults.append
    asked = sequences([beams(), ask((1, 2), max_new_tokens=30, ignore_eos=True)])
    for sequence in asked:
        engine.add(sequence)
    for _ in range(3):
        engine.step()

    def fault(batch: Batch) -> None:
        raise RuntimeError("a kernel broke")

    runner.before = fault
    outputs = engine.step()
    assert [output.finish_reason for _, output in outputs] == ["error", "error"]
    assert {sequence for sequence, _ in outputs} == set(asked)
    assert len(faults) == 1
    assert not engine.has_work
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_blocks


def test_a_search_larger_than_the_cache_fails_and_nothing_hangs() -> None:
    engine = fake_engine(num_blocks=5)
    [output] = run(engine, [beams(max_new_tokens=40, num_beams=4)])
    assert output.finish_reason == "error"
    assert engine.scheduler.pool.num_free == 5


def test_more_beams_than_tokens_find_each_text_once() -> None:
    runner = FakeRunner(vocab_size=3)
    [output] = run(fake_engine(runner=runner), [beams((1,), num_beams=7, num_return_sequences=7)])
    texts = [one.token_ids for one in (output, *output.others)]
    assert len(set(texts)) == len(texts) == 7


def test_a_search_is_one_sequence_in_the_accounts() -> None:
    [output] = run(fake_engine(), [beams(ignore_eos=True)])
    assert output.stats is not None
    assert output.stats.num_prompt_tokens == len(PROMPT)
    assert output.stats.num_output_tokens == 27  # of the texts that were wanted
    assert [one.stats for one in output.others] == [None, None]


def test_random_arrivals_aborts_and_preemptions_leave_nothing_behind() -> None:
    rng = random.Random(5)
    alone = [said(run(fake_engine(), [request])[0]) for request in REQUESTS]
    for _ in range(30):
        engine = fake_engine(num_blocks=rng.randint(14, 30), max_rows=rng.randint(4, 16), max_running=8)
        asked = separate(REQUESTS)
        waiting, aborted = list(asked), set[Sequence]()
        last: dict[Sequence, SequenceOutput] = {}
        while waiting or engine.has_work:
            if waiting and rng.random() < 0.4:
                engine.add(waiting.pop(0))
            if engine.scheduler.running and rng.random() < 0.1:
                engine.scheduler.preempt(rng.choice(engine.scheduler.running))
            if engine.scheduler.running and rng.random() < 0.02:
                victim = rng.choice(engine.scheduler.running)
                aborted.add(victim.leader or victim)
                engine.abort([victim.leader or victim])
            engine.scheduler.check()
            if engine.has_work:
                last.update(engine.step())
                engine.scheduler.check()
        assert all(said(last[s]) == one for s, one in zip(asked, alone, strict=True) if s not in aborted)
        assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_blocks
        assert engine.scheduler.places.num_held == 0


def test_a_search_that_generates_nothing_is_none() -> None:
    with pytest.raises(ValueError, match="nothing is searched for"):
        beams(max_new_tokens=0)

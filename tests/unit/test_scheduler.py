"""Who runs when: fairness between tenants and jobs, shared prefixes, preemption, limits."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from tiny import FakeRunner, Guesses, Outcome, Watch, ask, fake_engine, separate, sequences

from service.engine.block_pool import BlockPool
from service.engine.engine import Engine
from service.engine.fair_queue import FairQueue
from service.engine.prefix_cache import block_keys
from service.engine.sequence import Job, Sequence, Status


def one(tenant: str = "", prompt: range = range(1, 4), count: int = 4) -> Sequence:
    """A job of one sequence."""
    return sequences([ask(prompt, max_new_tokens=count, ignore_eos=True)], Job(tenant))[0]


def many(number: int, tenant: str = "", count: int = 4) -> list[Sequence]:
    """A job of many sequences with prompts of their own."""
    asked = [ask([i % 12, i // 12, 1], max_new_tokens=count, ignore_eos=True) for i in range(number)]
    return sequences(asked, Job(tenant))


def runner_of(engine: Engine) -> FakeRunner:
    """The engine's fake runner."""
    assert isinstance(engine.runner, FakeRunner)
    return engine.runner


# ---- newcomers beside long prompts ----------------------------------------------------------------------


def test_a_short_text_does_not_wait_until_long_prompts_are_read() -> None:
    engine = fake_engine(num_blocks=400, max_rows=32)
    for sequence in sequences([ask([i] * 200, max_new_tokens=4) for i in range(3)]):
        engine.add(sequence)
    question = one()
    engine.step()
    engine.add(question)
    outputs = dict(engine.step())
    assert outputs[question].token_ids, "its first token comes with the very next step"
    engine.scheduler.check()


def test_newcomers_leave_half_of_the_rows_to_the_prompts_before_them() -> None:
    engine = fake_engine(num_blocks=400, max_rows=32)
    first = sequences([ask([1] * 300, max_new_tokens=4)])[0]
    engine.add(first)
    engine.step()
    for i in range(5):
        engine.add(one(prompt=range(1, 21)))
        before = first.num_computed_tokens
        engine.step()
        assert first.num_computed_tokens - before >= 16 - i  # those that began have their next tokens, too
    engine.scheduler.check()


# ---- turns ----------------------------------------------------------------------------------------------


def turns(queue: FairQueue[Sequence], count: int) -> list[Sequence]:
    """The next sequences in order of their turns."""
    taken = []
    for _ in range(count):
        sequence = next(queue.candidates())
        queue.take(sequence)
        taken.append(sequence)
    return taken


def queue_of(*lines: list[Sequence]) -> FairQueue[Sequence]:
    """A queue that these jobs came to, one after the other."""
    queue: FairQueue[Sequence] = FairQueue()
    for sequence in (s for line in lines for s in line):
        queue.push(sequence)
    return queue


def test_a_question_waits_for_one_chunk_of_a_long_summary() -> None:
    question = one()
    assert turns(queue_of(many(100), [question]), 2)[1] is question


def test_a_long_summary_gets_every_second_turn_beside_a_stream_of_questions() -> None:
    summary = many(20)
    queue, waited = queue_of(summary), []
    for turn in range(40):
        queue.push(one())
        if turns(queue, 1)[0] in summary:
            waited.append(turn)
    gaps = [b - a for a, b in pairwise(waited)]
    assert len(waited) >= 5 and max(gaps) <= 1 + len(waited) * 8


def test_a_job_waits_for_at_most_one_turn_of_each_job_before_it() -> None:
    jobs = [many(5) for _ in range(6)]
    first = turns(queue_of(*jobs), 6)
    assert [s.job for s in first] == [line[0].job for line in jobs]


def test_a_tenant_with_many_jobs_takes_turns_with_a_tenant_with_one() -> None:
    crowd = [one("loud") for _ in range(50)]
    quiet = many(10, "quiet")
    taken = turns(queue_of(crowd, quiet), 20)
    assert sum(s.job.tenant == "quiet" for s in taken) == 10


def test_sequences_of_a_job_come_in_order() -> None:
    line = many(10)
    assert turns(queue_of(line), 10) == line


def test_a_preempted_sequence_comes_first() -> None:
    back = one("b")
    queue = queue_of(many(5, "a"), many(5, "b"))
    queue.push_front(back)
    assert next(queue.candidates()) is back


def test_removing_from_the_middle_keeps_the_rest_in_order() -> None:
    line = many(5)
    queue = queue_of(line)
    queue.remove(line[2])
    assert turns(queue, len(queue)) == [line[0], line[1], line[3], line[4]]


def test_candidates_are_the_heads_of_all_jobs() -> None:
    lines = [many(3, "a"), many(3, "a"), many(3, "b")]
    assert set(queue_of(*lines).candidates()) == {line[0] for line in lines}


# ---- fairness through a whole engine --------------------------------------------------------------------


def steps_until(watch: Watch, outcome: Outcome, most: int = 2000) -> int:
    """Steps until a sequence has finished."""
    for step in range(1, most):
        watch.step()
        if outcome.finish_reason is not None:
            return step
    raise AssertionError("starved")


def test_a_question_beside_a_hundred_chunks_is_soon_answered() -> None:
    watch = Watch(fake_engine(num_blocks=200, max_running=8, share=6))
    watch.add(many(100, count=30))
    watch.step()
    [answer] = watch.add([one()])
    assert steps_until(watch, answer) <= 6


def test_a_hundred_chunks_beside_a_stream_of_questions_come_to_an_end() -> None:
    watch = Watch(fake_engine(num_blocks=200, max_running=4, share=3))
    chunks, asked = watch.add(many(100)), []
    for _ in range(1500):
        while sum(question.status is Status.WAITING for question in asked) < 3:
            asked = [*asked[-9:], one()]
            watch.add(asked[-1:])
        watch.step()
        if all(chunk.finish_reason for chunk in chunks):
            break
    assert all(chunk.finish_reason for chunk in chunks)


def test_a_job_runs_at_most_its_share_at_once() -> None:
    watch = Watch(fake_engine(num_blocks=200, max_running=8, share=5))
    line = many(20)
    watch.add(line)
    most = 0
    while watch.engine.has_work:
        watch.step()
        most = max(most, line[0].job.num_running)
    assert most == 5


def test_a_key_runs_at_most_its_share_at_once_so_that_another_starts_at_once() -> None:
    watch = Watch(fake_engine(num_blocks=400, max_running=8, share=6))
    busy = [one("busy", range(i, i + 3), count=200) for i in range(20)]
    watch.add(busy)
    watch.step()
    assert sum(s.status is Status.RUNNING for s in busy) == 6
    [answer] = watch.add([one("quiet")])
    assert steps_until(watch, answer) <= 6
    watch.finish()
    assert not watch.engine.scheduler.places._held


def test_without_keys_nobody_has_a_share() -> None:
    watch = Watch(fake_engine(num_blocks=400, max_running=8, share=6))
    watch.add([one("", range(i, i + 3), count=20) for i in range(20)])
    watch.step()
    assert len(watch.engine.scheduler.running) == 8


def test_no_step_is_larger_than_its_budget() -> None:
    engine = fake_engine(num_blocks=200, max_rows=10, max_running=16, speculation=True)
    watch = Watch(engine)
    watch.add(many(40, count=20))
    watch.add(separate([ask([1, 2, 3, 4, 5] * 8, max_new_tokens=20)] * 5))
    watch.finish()
    assert max(batch.num_rows for batch in runner_of(engine).batches) <= 10


def test_nobody_behind_overtakes_the_one_whose_turn_it_is() -> None:
    watch = Watch(fake_engine(num_blocks=20, max_running=8))
    watch.add(separate([ask([i] * 12, max_new_tokens=12, ignore_eos=True) for i in range(4)]))
    watch.step()
    big, small = one(prompt=range(60)), [one() for _ in range(30)]  # 16 of 20 blocks; one each
    watch.add([big, *small])
    while big.started_at is None:
        assert all(s.started_at is None for s in small)
        watch.step()


# ---- shared prefixes ------------------------------------------------------------------------------------

DOCUMENT = [(5 * i) % 11 for i in range(80)]


def questions(count: int) -> list[Sequence]:
    """Questions on one document, each a job of its own."""
    return separate([ask([*DOCUMENT, i], max_new_tokens=2, ignore_eos=True) for i in range(count)])


def test_ten_questions_on_one_document_compute_it_once() -> None:
    engine = fake_engine(num_blocks=300, max_rows=32, max_running=16)
    watch = Watch(engine)
    watch.add(questions(10))
    watch.finish()
    assert runner_of(engine).num_rows <= len(DOCUMENT) + 10 * 4


def test_others_do_not_wait_for_a_document_that_its_reader_gave_up() -> None:
    engine = fake_engine(num_blocks=300, max_rows=32)
    watch, asked = Watch(engine), questions(3)
    outcomes = watch.add(asked)
    watch.step()
    engine.abort(asked[:1])  # in the middle of its prefill
    watch.finish()
    assert [o.finish_reason is not None for o in outcomes] == [False, True, True]


def test_another_salt_shares_nothing() -> None:
    engine = fake_engine(num_blocks=300)
    watch = Watch(engine)
    request = ask([*DOCUMENT, 1], max_new_tokens=2, ignore_eos=True)
    for salt in "ab":
        watch.add(sequences([request], Job(salt=salt)))
        watch.finish()
    assert engine.scheduler.prefix_cache.num_hits == 0


def test_the_last_prompt_token_is_always_computed() -> None:
    watch = Watch(fake_engine(num_blocks=300))
    for _ in range(2):
        [outcome] = watch.add(separate([ask(DOCUMENT, max_new_tokens=2)]))  # exactly 20 blocks
        watch.finish()
    assert outcome.stats is not None and outcome.stats.num_cached_tokens == len(DOCUMENT) - 4


# ---- blocks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_an_abort_frees_the_blocks_at_once(steps: int) -> None:
    engine = fake_engine(max_rows=8)
    watch, asked = Watch(engine), many(5, count=30)
    watch.add(asked)
    for _ in range(steps):
        watch.step()
    engine.abort(asked)
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_blocks


def test_a_preempted_sequence_runs_again_before_newcomers() -> None:
    engine = fake_engine(num_blocks=14, max_running=8)
    watch, old = Watch(engine), many(3, count=16)
    watch.add(old)
    while not engine.scheduler.num_preemptions:
        watch.step()
    [back] = [s for s in old if s.status is Status.WAITING]
    watch.add([one("other") for _ in range(5)])
    assert next(engine.scheduler.waiting.candidates()) is back


def test_the_oldest_is_never_preempted() -> None:
    engine = fake_engine(num_blocks=12, max_running=8)
    watch, asked = Watch(engine), many(6, count=30)
    watch.add(asked)
    watch.finish()
    assert engine.scheduler.num_preemptions > 0 and asked[0].num_preemptions == 0


def test_guesses_preempt_nobody() -> None:
    engine = fake_engine(num_blocks=8)
    first, second = separate([ask([1, 2, 3, 4, 5, 6, 7], max_new_tokens=9, ignore_eos=True)] * 2)
    engine.scheduler.speculator = Guesses(lambda decoding: dict.fromkeys(decoding, (1,) * 7))
    watch = Watch(engine)
    watch.add([first, second])
    for _ in range(3):
        watch.step()
    assert engine.scheduler.num_preemptions == 0


def test_a_sequence_longer_than_the_cache_fails_and_lets_others_pass() -> None:
    watch = Watch(fake_engine(num_blocks=4))
    outcomes = watch.add([one(prompt=range(12), count=30), one()])
    watch.finish()
    assert [o.finish_reason and o.finish_reason.value for o in outcomes] == ["error", "length"]


# ---- the pool -------------------------------------------------------------------------------------------


def test_a_key_depends_on_everything_before_it() -> None:
    assert block_keys([1, 2, 3, 4], 2, "")[1] != block_keys([9, 2, 3, 4], 2, "")[1]


def test_keys_are_the_same_however_they_are_extended() -> None:
    ids = list(range(20))
    assert block_keys(ids, 4, "s", block_keys(ids[:9], 4, "s")) == block_keys(ids, 4, "s")


def released() -> tuple[BlockPool, list[bytes]]:
    """A pool with a released prompt of three cached blocks and one nameless block."""
    pool, keys = BlockPool(4, 2), block_keys(range(6), 2, "")
    table = pool.allocate(4) or []
    for block, key in zip(table, keys, strict=False):
        pool.register(block, key)
    pool.release(table)
    return pool, keys


@pytest.mark.parametrize(("taken", "left"), [(1, 3), (2, 2), (3, 1), (4, 0)])
def test_cached_prefixes_outlive_their_tails_and_nameless_blocks_go_first(taken: int, left: int) -> None:
    pool, keys = released()
    pool.allocate(taken)
    assert len(pool.lookup(keys)) == left


def test_more_blocks_than_there_are_is_refused_whole() -> None:
    pool = BlockPool(3, 2)
    assert (pool.allocate(4), pool.num_free) == (None, 3)


@pytest.mark.parametrize(
    "spoil",
    [lambda pool: pool._free.popitem(), lambda pool: pool._references.__setitem__(0, 1)],
    ids=["a block lost", "a reference too many"],
)
def test_the_check_finds_wrong_accounts(spoil: Callable[[BlockPool], object]) -> None:
    pool = BlockPool(3, 2)
    spoil(pool)
    with pytest.raises(AssertionError):
        pool.check([])

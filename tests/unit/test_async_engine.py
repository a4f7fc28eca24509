"""The engine's thread seen from the event loop: faults, hangs, deadlines, leaving early."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import SimpleNamespace

import pytest
from tiny import FakeRunner, LetterPieces, Outcome, ask, fake_engine

from service.engine.async_engine import AsyncEngine
from service.engine.batch import Batch
from service.engine.engine import Engine
from service.engine.job_stream import JobStream
from service.engine.quota import Quota
from service.engine.sequence import FinishReason, SamplingParams, SequenceRequest
from service.errors import DeadlineExceeded, EngineDead, EngineFault, InvalidRequest, NotReady, QueueFull

pytestmark = pytest.mark.asyncio


class Gate:
    """Holds every step back until it is opened; counts the steps that came to it."""

    def __init__(self) -> None:
        self.is_open = threading.Event()
        self.reached = threading.Event()

    def __call__(self, batch: Batch) -> None:
        self.reached.set()
        assert self.is_open.wait(30), "a test forgot to open the gate"


@asynccontextmanager
async def running(engine: Engine, **settings: float) -> AsyncIterator[AsyncEngine]:
    """A started engine, stopped at the end."""
    served = AsyncEngine(lambda: engine, **settings)  # type: ignore[arg-type]
    await served.start()
    try:
        yield served
    finally:
        await served.stop()


def long(count: int = 60, **params: object) -> SequenceRequest:
    """A request for many tokens."""
    return ask([1, 2, 3], max_new_tokens=count, ignore_eos=True, **params)


async def read(stream: JobStream) -> dict[int, Outcome]:
    """Everything a stream says, by sequence."""
    outcomes: dict[int, Outcome] = {}
    async with stream:
        async for output in stream:
            outcomes.setdefault(output.index, Outcome()).note(output)
    return outcomes


async def expect(condition: Callable[[], bool]) -> None:
    """Let the event loop turn until something holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def at_thread(reached: threading.Event) -> None:
    """Wait for the engine thread."""
    assert await asyncio.to_thread(reached.wait, 10)


def gated() -> tuple[Engine, Gate]:
    """An engine whose steps wait for a gate."""
    runner, gate = FakeRunner(), Gate()
    runner.before = gate
    return fake_engine(runner=runner), gate


def leftovers(engine: Engine) -> tuple[int, int, int]:
    """Running sequences, waiting sequences, blocks in use."""
    pool = engine.scheduler.pool
    return len(engine.scheduler.running), len(engine.scheduler.waiting), pool.num_blocks - pool.num_free


# ---- ordinary life --------------------------------------------------------------------------------------


async def test_a_stream_gives_what_the_engine_gives() -> None:
    async with running(fake_engine()) as served:
        found = (await read(served.submit([long()])))[0]
    assert len(found.token_ids) == 60 and found.finish_reason is FinishReason.LENGTH


async def test_extensions_continue_the_indices_of_the_job() -> None:
    async with running(fake_engine()) as served, served.submit([long(3), long(3)]) as stream:
        assert stream.extend([long(3)]) == range(2, 3)


async def test_a_stream_that_ended_goes_on_after_an_extension() -> None:
    async with running(fake_engine()) as served, served.submit([long(3)]) as stream:
        seen = [output.index async for output in stream]
        stream.extend([long(3)])
        seen += [output.index async for output in stream]
    assert set(seen) == {0, 1}


async def test_an_aborted_sequence_says_nothing_more() -> None:
    engine, gate = gated()
    async with running(engine) as served, served.submit([long(), long(3)]) as stream:
        stream.abort(0)
        gate.is_open.set()
        assert {output.index async for output in stream} == {1}


async def test_an_abort_before_the_thread_saw_the_sequence_leaves_nothing() -> None:
    engine, gate = gated()
    async with running(engine) as served:
        async with served.submit([long()]):
            await at_thread(gate.reached)
            async with served.submit([long()]):
                pass  # added and dropped while the thread is in a step
        gate.is_open.set()
        await expect(lambda: leftovers(engine) == (0, 0, 0))


async def test_aborting_a_finished_sequence_is_nothing() -> None:
    async with running(fake_engine()) as served, served.submit([long(3)]) as stream:
        async for _ in stream:
            pass
        stream.abort(0)
        stream.abort(99)
        assert served.num_in_flight == 0


async def test_leaving_a_stream_early_frees_its_blocks() -> None:
    engine = fake_engine()
    async with running(engine) as served:
        async with served.submit([long(150), long(150)]) as stream:
            await anext(stream)
        await expect(lambda: leftovers(engine) == (0, 0, 0))
        assert served.num_in_flight == 0


async def test_a_slow_reader_gets_its_outputs_merged() -> None:
    engine = fake_engine()
    async with running(engine) as served, served.submit([long()]) as stream:
        await expect(lambda: not stream.unfinished)
        outputs = [output async for output in stream]
    assert [len(output.token_ids) for output in outputs] == [60]


async def test_merged_outputs_say_the_same() -> None:
    async with running(fake_engine()) as served:
        quick = (await read(served.submit([long()])))[0]
        slow_stream = served.submit([long()])
        await expect(lambda: not slow_stream.unfinished)
        assert (await read(slow_stream))[0].said == quick.said


# ---- refusals -------------------------------------------------------------------------------------------


async def test_nothing_is_taken_before_the_model_is_loaded() -> None:
    with pytest.raises(NotReady):
        AsyncEngine(fake_engine).submit([long()])


async def test_a_full_queue_refuses() -> None:
    engine, gate = gated()
    async with running(engine, max_sequences=3) as served, served.submit([long(), long()]):
        with pytest.raises(QueueFull):
            served.submit([long(), long()])
        gate.is_open.set()


async def test_a_refused_job_leaves_no_trace() -> None:
    engine, gate = gated()
    async with running(engine, max_sequences=1) as served, served.submit([long()]):
        with pytest.raises(QueueFull):
            served.submit([long()])
        assert served.num_in_flight == 1
        gate.is_open.set()


async def test_a_search_that_the_cache_may_not_hold_is_refused_before_it_begins() -> None:
    engine = fake_engine(num_blocks=8)
    size = engine.scheduler.pool.block_size
    prompt, rest = (1,) * (2 * size), 2 * size  # two blocks that beams share, and two of each beam's own

    def search(num_beams: int) -> SequenceRequest:
        return SequenceRequest(prompt, SamplingParams(rest, num_beams=num_beams))

    async with running(engine) as served:
        with pytest.raises(InvalidRequest, match="num_beams") as refused:
            served.submit([search(3), search(4)])
        assert refused.value.param == "num_beams" and served.num_in_flight == 0
        async with served.submit([long(1)]) as stream:
            with pytest.raises(InvalidRequest, match="num_beams"):
                stream.extend([search(4)])
            assert served.num_in_flight <= 1
        async with served.submit([search(3)]):  # that one fits
            pass


async def test_an_extension_is_taken_when_the_queue_is_full() -> None:
    async with running(fake_engine(), max_sequences=1) as served, served.submit([long(3)]) as stream:
        stream.extend([long(3), long(3)])
        assert {output.index async for output in stream} == {0, 1, 2}


async def test_retry_after_follows_the_measured_rate() -> None:
    """One sequence a second, with an hour in between in which there was nothing to do."""
    now = 1000.0
    async with running(fake_engine(), max_sequences=40) as served:
        served.quota = Quota(40, clock=lambda: now)
        for place in range(64):
            async with served.submit([long(1)]) as stream:
                now += 1
                assert [output.index async for output in stream]
            now += 3600 * (place == 32)
        with pytest.raises(QueueFull) as refused:
            served.submit([long()] * 60)
    assert refused.value.retry_after_s == pytest.approx(20, rel=0.05)


# ---- deadlines ------------------------------------------------------------------------------------------


async def test_a_deadline_passes_while_running() -> None:
    engine, gate = gated()
    async with running(engine) as served:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02), served.submit([long()]) as stream:
                async for _ in stream:
                    pass
        gate.is_open.set()
        await expect(lambda: leftovers(engine) == (0, 0, 0))


async def test_a_deadline_passes_while_queued() -> None:
    runner, gate = FakeRunner(), Gate()
    runner.before = gate
    engine = fake_engine(runner=runner, max_running=1)
    async with running(engine) as served, served.submit([long()]):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await read(served.submit([long()]))
        gate.is_open.set()


# ---- faults ---------------------------------------------------------------------------------------------


async def failing_stream(served: AsyncEngine) -> None:
    """A job that must end with a fault, whatever the fault was."""
    with pytest.raises(EngineFault):
        await asyncio.wait_for(read(served.submit([long()])), 10)


async def test_a_step_that_raises_ends_its_stream_with_a_fault() -> None:
    runner = FakeRunner()
    runner.before = _raise_once()
    async with running(fake_engine(runner=runner)) as served:
        await failing_stream(served)


async def test_the_engine_goes_on_after_a_step_that_raised() -> None:
    runner = FakeRunner()
    runner.before = _raise_once()
    async with running(fake_engine(runner=runner)) as served:
        await failing_stream(served)
        assert (await read(served.submit([long(3)])))[0].finish_reason is FinishReason.LENGTH


def _raise_once(error: BaseException | None = None) -> Callable[[Batch], None]:
    left = [error or RuntimeError("injected")]

    def maybe(batch: Batch) -> None:
        if left:
            raise left.pop()

    return maybe


async def dead(check: Callable[[AsyncEngine], Awaitable[None]]) -> None:
    """Run a check on an engine whose thread dies in its first step."""
    runner = FakeRunner()
    runner.before = _raise_once(SystemExit())
    async with running(fake_engine(runner=runner)) as served:
        await failing_stream(served)
        await check(served)


async def test_a_dead_thread_is_reported() -> None:
    async def check(served: AsyncEngine) -> None:
        assert served.died.is_set() and not served.is_alive and not served.is_ready

    await dead(check)


async def test_a_dead_engine_refuses() -> None:
    async def check(served: AsyncEngine) -> None:
        with pytest.raises(EngineDead):
            served.submit([long()])

    await dead(check)


async def test_an_extension_of_a_dead_engine_fails_and_does_not_hang() -> None:
    engine, gate = gated()
    async with running(engine) as served, served.submit([long()]) as stream:
        served._die()
        stream.extend([long()])
        gate.is_open.set()
        with pytest.raises(EngineFault):
            async for _ in stream:
                pass


def watched(engine: Engine) -> AbstractAsyncContextManager[AsyncEngine]:
    """An engine whose watchdog looks when told; a second passes between two looks, two are too many."""
    return running(engine, hung_after_s=2.0, watch_every_s=1.0)


def look(served: AsyncEngine, times: int) -> None:
    """Let the watchdog look."""
    for _ in range(times):
        served._look()


async def test_a_hung_step_is_detected() -> None:
    engine, gate = gated()
    async with running(engine, hung_after_s=0.05, watch_every_s=0.01) as served:
        await failing_stream(served)
        assert served.died.is_set()
        gate.is_open.set()


async def test_a_slow_step_among_slow_steps_is_no_hang() -> None:
    engine, gate = gated()
    engine.pulse.slowest_s = 6.0
    async with watched(engine) as served, served.submit([long(3)]) as stream:
        await at_thread(gate.reached)
        look(served, 60)
        was_alive = served.is_alive
        look(served, 2)
        gate.is_open.set()
        assert (was_alive, served.is_alive) == (True, False)
        with pytest.raises(EngineFault):
            async for _ in stream:
                pass


async def test_a_long_step_that_shows_signs_of_life_is_no_hang() -> None:
    engine, gate = gated()
    async with watched(engine) as served, served.submit([long(3)]) as stream:
        await at_thread(gate.reached)
        for _ in range(100):
            engine.pulse.last_at = (engine.pulse.last_at or 0.0) + 0.001
            look(served, 2)
        gate.is_open.set()
        assert [output async for output in stream] and served.is_alive


async def test_an_idle_engine_is_no_hang() -> None:
    async with watched(fake_engine()) as served:
        look(served, 1000)
        assert served.is_alive


async def test_what_building_the_engine_raised_is_raised_by_start() -> None:
    def fail() -> Engine:
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        await AsyncEngine(fail).start()


async def test_an_engine_that_is_stopped_while_it_is_built_ends_its_thread_then() -> None:
    may_end, made = threading.Event(), fake_engine()

    def build() -> Engine:
        assert may_end.wait(30), "a test forgot to let it end"
        return made

    served = AsyncEngine(build)
    served.begin()
    waiter = asyncio.create_task(served.start())
    await asyncio.sleep(0)
    waiter.cancel()
    await served.stop()
    may_end.set()
    await asyncio.to_thread(served._thread.join, 30)
    assert not served._thread.is_alive() and not served.is_ready


async def test_stopping_ends_every_stream() -> None:
    engine, gate = gated()
    async with running(engine) as served, served.submit([long()]) as stream:
        gate.is_open.set()
        await served.stop()
        with pytest.raises(EngineFault):
            async for _ in stream:
                pass


async def test_a_command_that_fails_does_not_take_the_thread_with_it() -> None:
    class Broken(LetterPieces):
        @property
        def eos_id(self) -> int:
            raise RuntimeError("injected")

        @eos_id.setter
        def eos_id(self, value: int) -> None:
            pass

    engine = fake_engine()
    sound, engine.pieces = engine.pieces, Broken(13)
    async with running(engine) as served:
        with pytest.raises(EngineFault):
            await asyncio.wait_for(read(served.submit([ask([1])])), 5)
        engine.pieces = sound
        assert (await read(served.submit([long(3)])))[0].finish_reason is FinishReason.LENGTH


async def test_one_key_cannot_fill_the_places_of_the_others() -> None:
    held, gate = gated()
    async with running(held, max_sequences=8) as engine, engine.submit([long()] * 6, tenant="greedy"):
        with pytest.raises(QueueFull):
            engine.submit([long()], tenant="greedy")
        async with engine.submit([long()] * 2, tenant="modest") as admitted:
            num_admitted = len(admitted.unfinished)
        gate.is_open.set()
    assert num_admitted == 2


# ---- what cannot be done in time ------------------------------------------------------------------------


def scored(num_tokens: int) -> SequenceRequest:
    """A request for the log probabilities of a prompt."""
    return ask([1] * num_tokens, max_new_tokens=1, score_from=0, logprobs=0)


def measured(engine: Engine, each_s: float) -> None:
    """Let an engine know what a row of a prompt and its log probabilities take, at their quickest."""
    for slower in [1, *[100] * 15]:  # nor does a busy moment count
        engine.scheduler.cost.note(32, 32 * each_s / 2 * slower)
        engine.scheduler.cost.note_scores(32, 32 * each_s / 2 * slower)


async def test_log_probabilities_that_cannot_be_there_in_time_are_refused_at_once() -> None:
    engine = fake_engine()
    measured(engine, each_s=0.2)
    async with running(engine) as served:
        with pytest.raises(InvalidRequest, match=r"of 1000 tokens .* take about 200 s .* has 1(19|20) s"):
            served.submit([scored(500), scored(500)], deadline=time.monotonic() + 120)
        assert (served.num_in_flight, leftovers(engine)) == (0, (0, 0, 0))


async def test_what_attention_adds_to_long_prompts_is_foreseen() -> None:
    engine = fake_engine()
    measured(engine, each_s=0.02)
    engine.scheduler.cost.note_pairs(1000 * 1000 / 2, 150.0)
    async with running(engine) as served:
        deadline = time.monotonic() + 120
        with pytest.raises(InvalidRequest, match=r"of 1000 tokens .* take about 160 s"):
            served.submit([scored(1000)], deadline=deadline)
        async with served.submit([scored(100)] * 10, deadline=deadline):  # as many tokens
            pass


async def test_log_probabilities_wait_for_those_that_others_asked_for() -> None:
    engine, gate = gated()
    measured(engine, each_s=0.1)
    async with running(engine) as served:
        deadline = time.monotonic() + 12
        async with served.submit([scored(100)], deadline=deadline):
            with pytest.raises(QueueFull) as caught:
                served.submit([scored(100)], deadline=deadline)
            assert 7 < caught.value.retry_after_s < 12
            async with served.submit([long()], deadline=deadline):  # what nobody can foresee is taken
                gate.is_open.set()
        async with served.submit([scored(100)], deadline=time.monotonic() + 12):
            pass


async def test_few_log_probabilities_need_not_wait_for_all_of_a_large_job() -> None:
    engine, gate = gated()
    measured(engine, each_s=0.1)
    async with running(engine) as served, served.submit([scored(100)] * 50, tenant="a"):  # 500 s
        soon = time.monotonic() + 12
        async with served.submit([scored(10)], "a", deadline=soon):  # a turn of 10 s comes before its own
            with pytest.raises(QueueFull):
                served.submit([scored(10)] * 2, "a", deadline=soon)  # two, and one of the other job
            async with served.submit([scored(10)], "b", deadline=soon) as third:  # one of all of theirs
                assert third.num_submitted == 1
        gate.is_open.set()


async def test_what_cannot_be_done_any_more_is_given_up_before_its_time_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, gate = gated()
    measured(engine, each_s=0.1)
    async with running(engine) as served:
        start = now = time.monotonic()
        monkeypatch.setattr("service.engine.foresight.time", SimpleNamespace(monotonic=lambda: now))
        async with (
            served.submit([scored(1000)], deadline=start + 120) as late,
            served.submit([scored(100)], deadline=start + 120) as other,
            served.submit([long()], deadline=start) as unforeseen,
        ):
            now = start + 19
            served._look()
            assert late._error is None
            now = start + 21
            served._look()
            with pytest.raises(DeadlineExceeded):
                await anext(late)
            assert other._error is None and unforeseen._error is None
        gate.is_open.set()


@pytest.mark.parametrize("num_measured", [0, 1, 15])
async def test_nothing_is_foreseen_before_enough_was_measured(num_measured: int) -> None:
    engine, gate = gated()
    for _ in range(num_measured):  # a start beside others
        engine.scheduler.cost.note(32, 3200)
        engine.scheduler.cost.note_scores(32, 3200)
    soon = time.monotonic() + 60
    async with running(engine) as served, served.submit([scored(100)], deadline=soon) as stream:
        served._look()
        assert stream.num_submitted == 1 and stream._error is None
        gate.is_open.set()

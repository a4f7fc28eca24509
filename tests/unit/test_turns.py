"""Turns in front of the worker thread: fair, bounded, and left at once. Nothing here takes real time."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from model_store.steps import Steps
from service.errors import QueueFull
from service.tasks.calls import Origin
from service.tasks.offload import HUGE_TEXT_BYTES, LARGE_TEXT_BYTES, Offloader
from service.tasks.turns import Turns

pytestmark = pytest.mark.asyncio
LARGE, HUGE = LARGE_TEXT_BYTES + 1, HUGE_TEXT_BYTES + 1


def _origin(tenant: str = "") -> Origin:
    return Origin(tenant)


class Gate:
    """Holds the thread in the first step that meets it, until it is opened."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.reached = asyncio.Event()
        self._opened = threading.Event()

    def hold(self) -> Steps[None]:
        """A step that takes as long as the test wants."""
        self._loop.call_soon_threadsafe(self.reached.set)
        assert self._opened.wait(60)
        yield

    def open(self) -> None:
        """Let it end."""
        self._opened.set()


class Bench:
    """An offloader whose turns are single steps, its thread held, and a record of who worked when."""

    def __init__(self, max_jobs: int = 64, max_huge: int = 1) -> None:  # of the size HUGE
        self.offloader = Offloader(max_jobs, turn_s=0, max_huge_bytes=max_huge * HUGE)
        self.gate = Gate()
        self.log: list[str] = []
        self._holding = asyncio.create_task(
            self.offloader.run(LARGE, self.gate.hold(), _origin("holder"), is_admitted=True)
        )

    def work(self, name: str, num_steps: int) -> Steps[str]:
        for _ in range(num_steps):
            self.log.append(name)
            yield
        return name

    def start(self, name: str, tenant: str, num_steps: int = 1, **options: Any) -> asyncio.Task[str]:
        """Put work in line."""
        size = options.pop("size", LARGE)
        run = self.offloader.run(size, self.work(name, num_steps), _origin(tenant), **options)
        return asyncio.create_task(run)

    async def finish(self, *tasks: asyncio.Task[Any]) -> list[Any]:
        """Open the gate once all stand in line, and let them work."""
        await _settle()
        self.gate.open()
        await self._holding
        return await asyncio.gather(*tasks, return_exceptions=True)


async def _settle() -> None:
    """Let every task run until it waits for the thread."""
    for _ in range(20):
        await asyncio.sleep(0)


def benched(**limits: int) -> Callable[[Callable[[Bench], Coroutine[Any, Any, None]]], Any]:
    """Run a test with a bench whose thread is held."""

    def decorate(test: Callable[[Bench], Coroutine[Any, Any, None]]) -> Any:
        async def run() -> None:
            bench = Bench(**limits)
            try:
                await bench.gate.reached.wait()
                await test(bench)
            finally:
                bench.gate.open()
                bench.offloader.close()

        run.__name__ = test.__name__
        return run

    return decorate


@benched()
async def test_tenants_take_turns_however_much_one_of_them_brings(bench: Bench) -> None:
    first = [bench.start(f"a{i}", "a") for i in range(3)]
    await _settle()
    await bench.finish(*first, bench.start("b", "b"))
    assert bench.log == ["a0", "b", "a1", "a2"]


@benched()
async def test_a_tenants_jobs_start_in_the_order_they_came(bench: Bench) -> None:
    await bench.finish(*[bench.start(name, "a") for name in "xyz"])
    assert bench.log == ["x", "y", "z"]


@pytest.mark.parametrize("tenant", ["a", "b"])
async def test_a_short_text_waits_for_one_turn_of_a_long_one_of_any_tenant(tenant: str) -> None:
    @benched()
    async def test(bench: Bench) -> None:
        long = bench.start("long", "a", 50, size=HUGE)
        await _settle()
        await bench.finish(long, bench.start("short", tenant))
        assert bench.log.index("short") == 1

    await test()


@benched()
async def test_huge_texts_of_one_tenant_are_read_one_after_the_other(bench: Bench) -> None:
    await bench.finish(*[bench.start(name, "a", 3, size=HUGE) for name in "xyz"])
    assert "".join(bench.log) == "xxxyyyzzz"


@benched(max_huge=2)
async def test_as_many_huge_texts_of_one_tenant_as_may_be_in_hand_are_read_in_turns(bench: Bench) -> None:
    await bench.finish(*[bench.start(name, "a", 3, size=HUGE) for name in "xyz"])
    assert "".join(bench.log) == "xyxyxyzzz"


@benched(max_huge=4)
async def test_a_huge_text_that_fits_does_not_wait_for_larger_ones(bench: Bench) -> None:
    tasks = [bench.start(name, "a", 3, size=3 * HUGE) for name in "xy"]
    await bench.finish(*tasks, bench.start("z", "a", 3, size=HUGE))
    assert "".join(bench.log) == "xzxzxzyyy"


@benched()
async def test_a_text_larger_than_all_that_may_be_in_hand_is_read_alone(bench: Bench) -> None:
    await bench.finish(*[bench.start(name, "a", 2, size=9 * HUGE) for name in "xy"])
    assert "".join(bench.log) == "xxyy"


@benched()
async def test_huge_texts_of_two_tenants_are_read_in_turns(bench: Bench) -> None:
    await bench.finish(*[bench.start(name, name, 3, size=HUGE) for name in "ab"])
    assert "".join(bench.log) == "ababab"


@benched()
async def test_who_is_cancelled_in_line_never_works(bench: Bench) -> None:
    kept, dropped = bench.start("kept", "a"), bench.start("dropped", "a")
    await _settle()
    dropped.cancel()
    await bench.finish(kept, dropped)
    assert bench.log == ["kept"] and dropped.cancelled()


@benched()
async def test_who_is_cancelled_in_line_for_a_huge_text_leaves_the_line_whole(bench: Bench) -> None:
    tasks = [bench.start(name, "a", 2, size=HUGE) for name in "xyz"]
    await _settle()
    tasks[0].cancel()
    tasks[1].cancel()
    await bench.finish(*tasks)
    assert bench.log == ["z", "z"]


async def test_work_whose_caller_is_cancelled_ends_with_its_step() -> None:
    offloader, gate, log = Offloader(turn_s=0), Gate(), []

    def work() -> Steps[None]:
        yield from gate.hold()
        log.append("went on")

    task = asyncio.create_task(offloader.run(LARGE, work(), _origin()))
    await gate.reached.wait()
    task.cancel()
    await asyncio.wait({task})
    gate.open()
    await offloader.run(LARGE, _nothing(), _origin())
    assert log == []
    offloader.close()


async def test_a_deadline_ends_the_wait_while_a_step_still_runs() -> None:
    offloader, gate = Offloader(turn_s=0), Gate()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await offloader.run(LARGE, gate.hold(), _origin())
    gate.open()
    offloader.close()


@benched()
async def test_a_deadline_ends_the_wait_for_a_turn(bench: Bench) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(-1):
            await bench.offloader.run(LARGE, bench.work("late", 1), _origin())
    await bench.finish()
    assert bench.log == []


@benched(max_jobs=4)
async def test_more_than_may_wait_are_refused_with_a_time_to_come_back(bench: Bench) -> None:
    tasks = [bench.start(name, name) for name in "abcd"]  # and the one that holds the thread
    *others, last = await bench.finish(*tasks)
    assert others == ["a", "b", "c"]
    assert isinstance(last, QueueFull) and 1 <= last.retry_after_s <= 60


@benched(max_jobs=8)
async def test_one_key_may_have_three_quarters_of_the_places(bench: Bench) -> None:
    results = await bench.finish(*[bench.start(str(i), "a") for i in range(7)], bench.start("b", "b"))
    assert [isinstance(result, QueueFull) for result in results] == [False] * 6 + [True, False]


@benched(max_jobs=1)
async def test_work_of_a_job_under_way_is_never_refused(bench: Bench) -> None:
    assert await bench.finish(bench.start("round", "a", is_admitted=True)) == ["round"]


@benched()
async def test_work_of_a_job_under_way_does_not_wait_for_huge_texts(bench: Bench) -> None:
    tasks = [bench.start("x", "a", 5, size=HUGE)]
    await _settle()
    await bench.finish(*tasks, bench.start("round", "a", size=HUGE, is_admitted=True))
    assert bench.log.index("round") == 1


async def test_places_are_given_back_however_work_ends() -> None:
    offloader = Offloader(max_jobs=1, turn_s=0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await offloader.run(LARGE, _failing(), _origin())
    await offloader.run(LARGE, _nothing(), _origin())
    offloader.close()


async def test_work_on_a_small_text_waits_for_nobody() -> None:
    offloader, gate = Offloader(turn_s=0), Gate()
    task = asyncio.create_task(offloader.run(LARGE, gate.hold(), _origin()))
    await gate.reached.wait()
    await offloader.run(5, _nothing(), _origin())
    assert not task.done()
    gate.open()
    await task
    offloader.close()


def _failing() -> Steps[None]:
    yield
    raise ZeroDivisionError


def _nothing() -> Steps[None]:
    yield


async def test_a_turn_that_comes_to_one_who_was_cancelled_in_the_same_moment_goes_to_the_next() -> None:
    turns, done = Turns(), list[str]()

    async def wait(name: str, tenant: str) -> None:
        async with turns.turn(tenant):
            done.append(name)

    async with turns.turn("first"):
        waiting = [asyncio.create_task(wait(name, name[0])) for name in ("a1", "a2", "b1")]
        await _settle()
        waiting[0].cancel()  # its task has not run yet when the turn is passed on
    await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
    assert sorted(done) == ["a2", "b1"]
    await asyncio.wait_for(wait("last", "c"), 10)
    assert done[-1] == "last" and not turns._waiting

"""When a refused client is told to come back."""

import pytest

from service.engine.quota import DrainRate


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def at_work() -> tuple[Clock, DrainRate]:
    clock = Clock()
    rate = DrainRate(clock)
    rate.work()
    return clock, rate


def one_a_second(clock: Clock, rate: DrainRate, count: int) -> None:
    for _ in range(count):
        clock.now += 1
        rate.finished()


def test_the_wait_follows_the_rate_of_the_last_sequences() -> None:
    clock, rate = at_work()
    clock.now += 500  # slow once, long ago
    one_a_second(clock, rate, 100)
    assert rate.seconds_until(20) == pytest.approx(20, rel=0.03)


def test_idle_time_does_not_count_as_slowness() -> None:
    clock, rate = at_work()
    one_a_second(clock, rate, 32)
    rate.idle()
    clock.now += 3600
    rate.work()
    one_a_second(clock, rate, 32)
    assert rate.seconds_until(20) == pytest.approx(20, rel=0.03)


def test_a_second_is_said_before_anything_was_measured() -> None:
    clock, rate = at_work()
    one_a_second(clock, rate, 1)
    assert rate.seconds_until(1000) == 1


@pytest.mark.parametrize(("count", "seconds"), [(1, 1), (10**6, 60)])
def test_the_wait_has_bounds(count: int, seconds: float) -> None:
    clock, rate = at_work()
    one_a_second(clock, rate, 64)
    assert rate.seconds_until(count) == seconds

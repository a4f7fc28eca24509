"""Fair shares of what is limited, and when a refused client is told to come back."""

from __future__ import annotations

import pytest

from service.engine.quota import Quota
from service.errors import QueueFull


class Clock:
    """Moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def refused(quota: Quota, tenant: str, count: int = 1) -> str:
    """What a refusal says; nothing where there is none."""
    try:
        quota.check(tenant, count)
    except QueueFull as error:
        return str(error)
    return ""


def test_one_tenant_may_hold_three_quarters_and_leaves_the_rest_to_others() -> None:
    quota = Quota(8, "full", "your share is full")
    quota.take("busy", 6)
    assert (refused(quota, "busy"), refused(quota, "quiet", 2)) == ("your share is full", "")


def test_nobody_to_be_fair_to_may_hold_all() -> None:
    quota = Quota(8, "full", "your share is full")
    assert (refused(quota, "", 8), refused(quota, "", 9)) == ("", "full")


def test_all_that_is_held_counts_for_everybody() -> None:
    quota = Quota(8, "full", "your share is full")
    quota.take("a", 5)
    quota.take("b", 3)
    assert (refused(quota, "c"), refused(quota, "")) == ("full", "full")


def test_what_is_given_back_may_be_held_again() -> None:
    quota = Quota(4)
    quota.take("a", 3)
    quota.give("a", 2)
    assert (quota.num_held, refused(quota, "a", 2), refused(quota, "a", 3) != "") == (1, "", True)


def test_what_was_admitted_is_held_beyond_the_limit() -> None:
    quota = Quota(2)
    quota.take("a", 5)
    assert (quota.num_held, quota.excess("a"), quota.excess("")) == (5, 5, 4)


def test_one_tenant_may_always_hold_one() -> None:
    assert refused(Quota(1), "a") == ""


@pytest.mark.parametrize("tenant", ["busy", "other"])
def test_a_refusal_says_when_enough_will_have_been_given_back(tenant: str) -> None:
    clock = Clock()
    quota = Quota(40, clock=clock)
    for _ in range(64):
        quota.take("busy", 2)
        clock.now += 1
        quota.give("busy", 2)
        clock.now += 3600  # nothing is held: idling is no slowness
    quota.take("busy", 40)
    with pytest.raises(QueueFull) as caught:
        quota.check(tenant, 20)
    excess = {"busy": 30, "other": 20}[tenant]
    assert caught.value.retry_after_s == pytest.approx(excess / 2, rel=0.05)

"""Fair shares of what is limited: places to run and to wait, large texts in hand, bytes of bodies.

How fast these are given back is measured, for the `Retry-After` of a refusal.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable

from service.errors import QueueFull

TENANT_SHARE = 0.75  # for one tenant: the others still get in while it floods
ADDRESS_MARK = "@"  # begins the name of a tenant without a key: its address, which may be a proxy's
_WINDOW = 64  # times something was given back that are looked at
_MIN_S, _MAX_S = 1.0, 60.0


class Quota:
    """How much is held of something, by each tenant. The tenant "" is nobody to be fair to, because there is
    one key only; its share is all of it. So is that of an address, behind which there may be everybody:
    addresses have fair turns, not shares.

    Args:
        limit: what may be held in all.
        full: what a refusal says when it is.
        share_full: what a refusal says when one tenant holds its share.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        limit: int,
        full: str = "the queue is full",
        share_full: str = "this key's share of the queue is full",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limit = limit
        self.share = max(int(TENANT_SHARE * limit), 1)  # of one tenant
        self.num_held = 0
        self._full, self._share_full = full, share_full
        self._held: Counter[str] = Counter()  # by tenant; none without anything
        self._rate = DrainRate(clock)

    def excess(self, tenant: str, count: int = 1) -> int:
        """How much must be given back before so much more may be held; 0 or less is nothing."""
        in_all = self.num_held + count - self.limit
        has_share = tenant != "" and not tenant.startswith(ADDRESS_MARK)
        return max(in_all, self._held[tenant] + count - self.share) if has_share else in_all

    def check(self, tenant: str, count: int = 1) -> None:
        """Refuse to let a tenant hold more than there is.

        Raises:
            QueueFull: with the time in which enough will have been given back, by the rate of late.
        """
        excess = self.excess(tenant, count)
        if excess > 0:
            is_full = self.num_held + count > self.limit
            raise QueueFull(self._full if is_full else self._share_full, self._rate.seconds_until(excess))

    def take(self, tenant: str, count: int = 1) -> None:
        """Hold more, whether or not it is within the limit: what was admitted goes on."""
        if not self.num_held:
            self._rate.work()
        self.num_held += count
        self._held[tenant] += count

    def give(self, tenant: str, count: int = 1) -> None:
        """Give something back."""
        self.num_held -= count
        self._held -= Counter({tenant: count})  # keeps none that holds nothing
        self._rate.finished(count)
        if not self.num_held:
            self._rate.idle()


class DrainRate:
    """What finished, on a clock that stands still while nothing is in flight: to idle is not to be slow.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._finished: deque[tuple[float, int]] = deque(maxlen=_WINDOW)  # busy seconds, how much
        self._idle_since: float | None = clock()
        self._idle_s = 0.0  # ever, up to the last `work`

    def work(self) -> None:
        """Something is in flight from now on."""
        self._idle_s, self._idle_since = self._clock() - self._busy_seconds(), None

    def idle(self) -> None:
        """Nothing is in flight from now on."""
        self._idle_since = self._clock()

    def finished(self, count: int = 1) -> None:
        """Note that so much has finished."""
        self._finished.append((self._busy_seconds(), count))

    def seconds_until(self, count: int) -> float:
        """Seconds until so much will have finished, 1 … 60; 1 while nothing was measured."""
        if len(self._finished) < 2:
            return _MIN_S
        seconds = max(self._busy_seconds() - self._finished[0][0], 1e-3)
        return min(max(count * seconds / sum(each for _, each in self._finished), _MIN_S), _MAX_S)

    def _busy_seconds(self) -> float:
        return (self._clock() if self._idle_since is None else self._idle_since) - self._idle_s

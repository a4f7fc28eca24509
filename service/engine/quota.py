"""Fair shares of what is limited: places to run and to wait, large texts in hand, bytes of bodies."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from service.engine.drain_rate import DrainRate
from service.errors import QueueFull

TENANT_SHARE = 0.75  # for one tenant: the others still get in while it floods
ADDRESS_MARK = "@"  # begins the name of a tenant without a key: its address, which may be a proxy's


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

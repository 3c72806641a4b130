"""The home of how much a tenant may ask for in a period: requests a second, messages a day.

Both are counted in memory and only where they are configured: a restart
begins anew.  Publishing is no request in this sense (W223).
"""

from types import TracebackType
from typing import Final

from msgspec import Struct

from waypost.clock import Clock
from waypost.domain.errors import RateLimited

SECOND_MS: Final = 1_000
DAY_MS: Final = 86_400_000


class Allowance(Struct, frozen=True):
    """What is left of a period's `limit`; the next one begins at `reset_s` (unix seconds)."""

    limit: int
    remaining: int
    reset_s: int


class Rates:
    """Counts what tenants do in fixed periods.  A maximum of 0 is none."""

    def __init__(
        self, clock: Clock, *, requests_per_second_max: int = 0, messages_per_day_max: int = 0
    ) -> None:
        self._clock = clock
        self._requests_max = requests_per_second_max
        self._messages_max = messages_per_day_max
        self._requests: dict[str, tuple[int, int]] = {}
        self._messages: dict[str, tuple[int, int]] = {}

    def request(self, tenant: str) -> Allowance | None:
        """Count a request; what is left, or None where there is no limit.

        Raises RateLimited, and then it does not count.
        """
        if not self._requests_max:
            return None
        allowance = self._take(
            self._requests, tenant, 1, limit=self._requests_max, period_ms=SECOND_MS
        )
        if allowance.remaining < 0:
            raise RateLimited(
                f"more than {allowance.limit} requests a second",
                limit=allowance.limit,
                reset_s=allowance.reset_s,
                daily=False,
            )
        return allowance

    def messages_room(self, tenant: str, count: int) -> int:
        """How many of `count` messages would be counted today."""
        if not self._messages_max:
            return count
        day, taken = self._messages.get(tenant, (0, 0))
        if day != self._clock.now_ms() // DAY_MS:
            taken = 0
        return min(count, self._messages_max - taken)

    def messages(self, tenant: str, count: int) -> "Counted":
        """Count messages that are about to be accepted, in the block that this is for.

        Raises RateLimited, and then none of them counts.
        """
        if self._messages_max:
            allowance = self._take(
                self._messages, tenant, count, limit=self._messages_max, period_ms=DAY_MS
            )
            if allowance.remaining < 0:
                raise RateLimited(
                    f"more than {allowance.limit} messages a day",
                    limit=allowance.limit,
                    reset_s=allowance.reset_s,
                    daily=True,
                )
        return Counted(self, tenant, count)

    def take_back(self, tenant: str, count: int) -> None:
        """Uncount messages that were not accepted after all."""
        if tenant in self._messages:
            period, taken = self._messages[tenant]
            self._messages[tenant] = (period, max(0, taken - count))

    def _take(
        self,
        seen: dict[str, tuple[int, int]],
        tenant: str,
        count: int,
        *,
        limit: int,
        period_ms: int,
    ) -> Allowance:
        """Count what fits; `remaining` is negative where it does not."""
        period = self._clock.now_ms() // period_ms
        before, taken = seen.get(tenant, (period, 0))
        if before != period:
            taken = 0
        taken += count
        if taken <= limit:
            seen[tenant] = (period, taken)
        return Allowance(limit, limit - taken, (period + 1) * period_ms // 1_000)


class Counted:
    """Messages that are counted while a block accepts them, and no longer where it raises.

    Still where its caller was cancelled: the store goes on, and may accept them.  What a
    store that went away has accepted unseen goes uncounted, and no publisher can bring that
    about.
    """

    __slots__ = ("_count", "_rates", "_tenant")

    def __init__(self, rates: Rates, tenant: str, count: int) -> None:
        self._rates = rates
        self._tenant = tenant
        self._count = count

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if isinstance(fault, Exception):
            self._rates.take_back(self._tenant, self._count)

"""The home of flow control: how many messages of a key may go, and how often (D26).

A key has a parallelism, a rate, or both.  Rates are fixed windows that begin with the
first dispatch: in each, no more than `rate` attempts begin, so that a receiver sees at
most twice that in any span of one period.  What is in use of the parallelism is not
counted here: the store counts the attempts under way.

The last message that names a key says what its limits are, but for those that are pinned.
"""

import re
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from waypost.domain.durations import parse_duration_or_seconds
from waypost.domain.errors import Invalid

PERIOD_MS_DEFAULT: Final = 1_000
PERIOD_MS_MAX: Final = 604_800_000
LIMIT_MAX: Final = 1_000_000_000
UNLIMITED: Final = 1 << 40
KEY_CHARS_MAX: Final = 255

_PART: Final = re.compile(r"\s*(rate|parallelism|period)\s*=\s*([0-9a-z]{1,64})\s*", re.IGNORECASE)


class Flow(Struct, frozen=True, omit_defaults=True):
    """What a message asks for: its key, and the limits that the key shall have."""

    key: str
    parallelism: int | None = None
    rate: int | None = None
    period_ms: int = PERIOD_MS_DEFAULT


class FlowKey(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A key as it stands.  `window_ms` is when the window of the rate began, and
    `dispatched` how many attempts began in it."""

    name: str
    parallelism: int | None = None
    rate: int | None = None
    period_ms: int = PERIOD_MS_DEFAULT
    window_ms: int = 0
    dispatched: int = 0
    paused: bool = False
    parallelism_pinned: bool = False
    rate_pinned: bool = False
    used_ms: int = 0

    def room(self, in_use: int, *, now_ms: int) -> int:
        """How many attempts may begin now, while `in_use` are under way."""
        if self.paused:
            return 0
        by_parallelism = UNLIMITED if self.parallelism is None else self.parallelism - in_use
        by_rate = UNLIMITED if self.rate is None else self.rate - self.count(now_ms)
        return max(0, min(by_parallelism, by_rate))

    def opens_ms(self, in_use: int, *, now_ms: int) -> int | None:
        """When there is room by the clock alone: now, or when the window ends; None where
        something has to happen first."""
        if self.paused or (self.parallelism is not None and in_use >= self.parallelism):
            return None
        if self.rate is None or self.count(now_ms) < self.rate:
            return now_ms
        return self.window_ms + self.period_ms

    def asked(self, flow: Flow, *, now_ms: int) -> "FlowKey":
        """The key once a message has named it."""
        key = replace(self, used_ms=now_ms)
        if not self.parallelism_pinned:
            key = replace(key, parallelism=flow.parallelism)
        if not self.rate_pinned:
            key = replace(key, rate=flow.rate, period_ms=flow.period_ms)
        return key

    def after(self, count: int, *, now_ms: int) -> "FlowKey":
        """The key once so many attempts have begun."""
        if self._is_over(now_ms):
            return replace(self, window_ms=now_ms, dispatched=count)
        return replace(self, dispatched=self.dispatched + count)

    def pinned(
        self, *, parallelism: int | None, rate: int | None, period_ms: int | None, now_ms: int
    ) -> "FlowKey":
        """The key with limits that messages do not change; the rate begins anew."""
        key = self
        if parallelism is not None:
            key = replace(key, parallelism=parallelism, parallelism_pinned=True)
        if rate is not None or period_ms is not None:
            key = replace(
                key,
                rate=key.rate if rate is None else rate,
                period_ms=key.period_ms if period_ms is None else period_ms,
                rate_pinned=True,
            ).rate_reset(now_ms=now_ms)
        return key

    def unpinned(self, *, parallelism: bool, rate: bool) -> "FlowKey":
        """The key whose limits the next message changes again; until then they stay."""
        return replace(
            self,
            parallelism_pinned=self.parallelism_pinned and not parallelism,
            rate_pinned=self.rate_pinned and not rate,
        )

    def rate_reset(self, *, now_ms: int) -> "FlowKey":
        """The key with a new window, in which nothing has begun."""
        return replace(self, window_ms=now_ms, dispatched=0)

    def count(self, now_ms: int) -> int:
        """How many attempts have begun in the window of now."""
        return 0 if self._is_over(now_ms) else self.dispatched

    def _is_over(self, now_ms: int) -> bool:
        return now_ms >= self.window_ms + self.period_ms


def parse_flow_value(text: str) -> tuple[int | None, int | None, int]:
    """Read `parallelism=5, rate=10, period=1m`: parallelism, rate and period in ms (W63-W67).

    Raises Invalid with the reason.
    """
    given: dict[str, str] = {}
    for part in text.split(","):
        found = _PART.fullmatch(part)
        if found is None or found[1].lower() in given:
            raise Invalid(_WRONG)
        given[found[1].lower()] = found[2].lower()
    if "rate" not in given and "parallelism" not in given:
        raise Invalid(_WRONG)
    period_ms = PERIOD_MS_DEFAULT
    if "period" in given:
        period_ms = checked_period_ms(parse_duration_or_seconds(given["period"]))
    return (
        _limit("parallelism", given.get("parallelism")),
        _limit("rate", given.get("rate")),
        period_ms,
    )


def checked_period_ms(period_ms: int) -> int:
    """Raises Invalid where a period is not from one second to seven days."""
    if not 1_000 <= period_ms <= PERIOD_MS_MAX:
        raise Invalid("the period must be from 1s to 7d")
    return period_ms


def _limit(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdigit() or not 1 <= int(text) <= LIMIT_MAX:
        raise Invalid(f"{name} must be a whole number from 1 to {LIMIT_MAX}")
    return int(text)


_WRONG: Final = (
    "Upstash-Flow-Control-Value should be either rate=X or parallelism=Y,"
    " or both as comma-separated values"
)

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
LIMIT_MAX: Final = 1_000_000_000
UNLIMITED: Final = 1 << 40
KEY_CHARS_MAX: Final = 255

SET_BACK_MS: Final = 60_000
"""A clock that was set back by more than this ends the windows that it has not come to yet."""

_PART: Final = re.compile(
    r"\s*(rate|parallelism|period)\s*=\s*([0-9a-z]{1,64})\s*", re.IGNORECASE | re.ASCII
)
_WHOLE: Final = re.compile(r"[0-9]{1,10}")


class Flow(Struct, frozen=True, omit_defaults=True):
    """What a message asks for: its key, and the limits that the key shall have."""

    key: str
    parallelism: int | None = None
    rate: int | None = None
    period_ms: int = PERIOD_MS_DEFAULT


class FlowKey(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A key as it stands.  `window_ms` is when the window of the rate began, and
    `dispatched` how many attempts began in it.  `own_turn` says who goes first where there
    wait both messages that have only the key and others, in queues, that have it too."""

    name: str
    parallelism: int | None = None
    rate: int | None = None
    period_ms: int = PERIOD_MS_DEFAULT
    window_ms: int = 0
    dispatched: int = 0
    own_turn: bool = True
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
        key = replace(self, used_ms=max(now_ms, self.used_ms))
        if not self.parallelism_pinned:
            key = replace(key, parallelism=flow.parallelism)
        if not self.rate_pinned:
            key = replace(key, rate=flow.rate, period_ms=flow.period_ms)
        return key

    def after_one(self, *, own: bool, now_ms: int) -> "FlowKey":
        """The key once an attempt has begun, of a message that has only the key or (not `own`)
        of another."""
        over = self._is_over(now_ms)
        return replace(
            self,
            window_ms=now_ms if over else self.window_ms,
            dispatched=1 if over else self.dispatched + 1,
            own_turn=not own,
            used_ms=max(now_ms, self.used_ms),
        )

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

    def limited_as(self, other: "FlowKey") -> bool:
        """Whether both have the same limits."""
        return (self.parallelism, self.rate, self.period_ms) == (
            other.parallelism,
            other.rate,
            other.period_ms,
        )

    def is_idle(self, *, now_ms: int) -> bool:
        """Whether nothing would be missed of the key, if nothing waits for it."""
        kept = self.paused or self.parallelism_pinned or self.rate_pinned
        return not kept and self._is_over(now_ms)

    def _is_over(self, now_ms: int) -> bool:
        return now_ms >= self.window_ms + self.period_ms or now_ms < self.window_ms - SET_BACK_MS


class NoLimits(Invalid):
    """A value that names no limit at all, or cannot be read."""


def flow_of(key: str, text: str, *, period_ms_max: int) -> Flow:
    """Read `parallelism=5, rate=10, period=1m`, the limits that a key shall have (W63-W67).

    Raises NoLimits, whose text follows upon the name of the field, or Invalid with the
    reason.
    """
    given: dict[str, str] = {}
    for part in text.split(","):
        found = _PART.fullmatch(part)
        if found is None or found[1].lower() in given:
            raise NoLimits(_NO_LIMITS)
        given[found[1].lower()] = found[2].lower()
    if "rate" not in given and "parallelism" not in given:
        raise NoLimits(_NO_LIMITS)
    period_ms = PERIOD_MS_DEFAULT
    if "period" in given:
        try:
            period_ms = parse_duration_or_seconds(given["period"])
        except Invalid as fault:
            raise Invalid(f"period: {fault}") from None
        check_period_ms(period_ms, period_ms_max=period_ms_max)
    limits = {
        name: limit_of(name, given[name]) for name in ("parallelism", "rate") if name in given
    }
    return Flow(key, period_ms=period_ms, **limits)


def check_period_ms(period_ms: int, *, period_ms_max: int) -> None:
    """Raises Invalid where a period is shorter than a second or too long."""
    if not 1_000 <= period_ms <= period_ms_max:
        raise Invalid(f"period must be from 1 to {period_ms_max // 1000} seconds")


def limit_of(name: str, text: str) -> int:
    """Read a parallelism or a rate.  Raises Invalid with the reason."""
    if _WHOLE.fullmatch(text) is None or not 1 <= int(text) <= LIMIT_MAX:
        raise Invalid(f"{name} must be a whole number from 1 to {LIMIT_MAX}")
    return int(text)


_NO_LIMITS: Final = "should be either rate=X or parallelism=Y, or both as comma-separated values"

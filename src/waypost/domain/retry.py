"""Whether a failed delivery is tried again, and when.

Time comes in as `now_ms`; the answer is a value; whoever asked acts on it.
Jitter is not applied here: the delays of this table are promised.

| n, the retry about to be made | wait      |
| ----------------------------- | --------- |
| 1                             | 7.4 s     |
| 2                             | 54.6 s    |
| 3                             | 6 m 43 s  |
| 4                             | 49 m 41 s |
| 5                             | 6 h 7 m   |
| 6 …                           | 24 h      |

What the destination asks for comes before the publisher's expression, and
that before this table.  A fault of our own forward proxy uses up no retry (D10): it
waits for half the age of the message, from the first wait of this table to an hour.
"""

import math
import re
from datetime import UTC, datetime, timedelta
from typing import Final

from msgspec import Struct

from waypost.domain.attempt import Delivered, GiveUp, Outcome, TryAgain, Verdict
from waypost.domain.durations import parse_go_duration
from waypost.domain.errors import Invalid
from waypost.domain.expression import WAIT_MS_MAX, compile_expression

NOT_RETRYABLE_STATUS: Final = 489
PROXY_WAIT_MS_MAX: Final = 3_600_000
"""The longest wait after a fault of our own forward proxy."""

_ASKING: Final = (
    "retry-after",
    "x-ratelimit-reset",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
)
"""The fields by which a destination asks for a wait; the first that can be used counts."""

_VALUE_CHARS_MAX: Final = 64
_SECONDS: Final = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,15})?")
_DATE: Final = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), ([0-9]{2}) ([A-Z][a-z]{2}) ([0-9]{4})"
    r" ([0-9]{2}):([0-9]{2}):([0-9]{2}) (?:GMT|UTC|\+0000)"
)
_MONTHS: Final = {
    name: number
    for number, name in enumerate(
        ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"), 1
    )
}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Backoff(Struct, frozen=True):
    """The default waits: `min(86400, e ** (exponent * n))` seconds (D13).

    2.0 is what the documents promise; 2.5 is what the hosted service does today.
    """

    exponent: float = 2.0

    def wait_ms(self, n: int) -> int:
        """How long to wait before retry number `n`, counted from 1."""
        power = self.exponent * n
        if power >= 12:  # e**12 s is past a day, and exp() overflows for a large n
            return WAIT_MS_MAX
        return min(WAIT_MS_MAX, round(math.exp(power) * 1000))


def judge(
    outcome: Outcome,
    *,
    retried: int,
    retries_max: int,
    retry_delay: str | None,
    backoff: Backoff,
    not_before_ms: int,
    now_ms: int,
) -> Verdict:
    """Judge one attempt of a message that was to go at `not_before_ms`.

    `retried` counts the retries already made, so it is 0 after the first
    attempt.  `retry_delay` is the publisher's expression, checked when it was
    accepted.
    """
    assert retried >= 0, retried

    if outcome.delivered:
        return Delivered()
    if outcome.proxy_fault:
        half_age_ms = (now_ms - not_before_ms) // 2
        return TryAgain(
            now_ms + min(max(backoff.wait_ms(1), half_age_ms), PROXY_WAIT_MS_MAX), counts=False
        )
    if outcome.refused:
        return GiveUp(f"not sent: {outcome.error}")
    if outcome.status == NOT_RETRYABLE_STATUS and _not_retryable(outcome):
        return GiveUp("the destination asked not to be retried")
    if retried >= retries_max:
        why = f"failed {retried + 1} times" if retried else "failed, with no retries"
        return GiveUp(why if outcome.error is None else f"{why}: {outcome.error}")
    wait_ms = asked_wait_ms(outcome, now_ms=now_ms)
    if wait_ms is None:
        if retry_delay is not None:
            wait_ms = compile_expression(retry_delay).wait_ms(retried)
        else:
            wait_ms = backoff.wait_ms(retried + 1)
    return TryAgain(now_ms + wait_ms)


def _not_retryable(outcome: Outcome) -> bool:
    return any(
        name == "upstash-nonretryable-error" and value.strip().lower() == "true"
        for name, value in outcome.header
    )


def asked_wait_ms(outcome: Outcome, *, now_ms: int) -> int | None:
    """The wait that the destination asked for, if it asked for one of a day at most."""
    asked: dict[str, str] = {}
    for name, value in outcome.header:
        if name in _ASKING:
            asked.setdefault(name, value)
    for name in _ASKING:
        if name in asked:
            wait_ms = _read_wait_ms(asked[name].strip(), now_ms=now_ms)
            if wait_ms is not None and wait_ms <= WAIT_MS_MAX:
                return wait_ms
    return None


def _read_wait_ms(value: str, *, now_ms: int) -> int | None:
    """Read seconds, an RFC 1123 date or a Go duration (W188-W191); None for anything else."""
    if len(value) > _VALUE_CHARS_MAX:
        return None
    if _SECONDS.fullmatch(value) is not None:
        return math.ceil(float(value) * 1000)
    at_ms = _date_ms(value)
    if at_ms is not None:
        return max(0, at_ms - now_ms)
    try:
        return parse_go_duration(value)
    except Invalid:
        return None


def _date_ms(value: str) -> int | None:
    found = _DATE.fullmatch(value)
    if found is None or found[2] not in _MONTHS:
        return None
    day, year, hour, minute, second = map(int, found.group(1, 3, 4, 5, 6))
    try:
        at = datetime(year, _MONTHS[found[2]], day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
    return (at - _EPOCH) // timedelta(milliseconds=1)

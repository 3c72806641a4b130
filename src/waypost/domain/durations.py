"""The home of durations as people write them.  Nothing else knows what a unit is worth.

| language                              | units               | used for              |
| ------------------------------------- | ------------------- | --------------------- |
| `parse_duration`: `50s`, `1d10h30m`   | s m h d             | Upstash-Delay and kin |
| `parse_duration_or_seconds`: also `90`| the same, or none   | Upstash-Timeout       |
| `parse_go_duration`: `6m5s`, `1.5s`   | ns us µs ms s m h   | Retry-After and kin   |

All answer whole milliseconds and raise Invalid with the bare reason: the
caller knows the name of the field and puts it in front.
"""

import re
from functools import lru_cache
from typing import Final

from waypost.domain.errors import Invalid

DURATION_MS_MAX: Final = 1 << 53
"""285,000 years: added to any moment it still fits a signed 64-bit column."""

_TEXT_CHARS_MAX: Final = 64

_UNIT_MS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION: Final = re.compile(r"(?:[0-9]+[smhd])+")
_PART: Final = re.compile(r"([0-9]+)([smhd])")

_GO_UNIT_NS: Final = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,
    "\u03bcs": 1_000,
    # The same two letters as a Go server sends them, UTF-8 read as latin-1.
    "\u00c2\u00b5s": 1_000,
    "\u00ce\u00bcs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_FRACTION_DIGITS: Final = 18  # an hour has 3.6e12 ns; more digits cannot show
_GO_PART: Final = re.compile(rf"([0-9]*)(?:\.([0-9]*))?({'|'.join(_GO_UNIT_NS)})")


@lru_cache(maxsize=1024)
def parse_duration(text: str) -> int:
    """Read `50s`, `3m`, `10h`, `1d` or a sum of such parts, in milliseconds (W41-W43, W50).

    Raises Invalid with the reason.
    """
    if len(text) > _TEXT_CHARS_MAX or _DURATION.fullmatch(text) is None:
        raise Invalid(
            "not a duration; write numbers with the units s, m, h or d, like 50s or 1d10h30m"
        )
    span_ms = sum(int(count) * _UNIT_MS[unit] for count, unit in _PART.findall(text))
    if span_ms > DURATION_MS_MAX:
        raise Invalid("the duration is too long to be counted")
    return span_ms


def parse_duration_or_seconds(text: str) -> int:
    """Read a duration, or a bare whole number of seconds, in milliseconds.

    Raises Invalid with the reason.
    """
    return parse_duration(text + "s" if text.isdigit() else text)


def parse_go_duration(text: str) -> int:
    """Read a duration as Go prints it, in milliseconds, rounded up.

    Signs are refused but for a leading `+`: nobody can wait a negative time.
    Raises Invalid with the reason.
    """
    if len(text) > _TEXT_CHARS_MAX:
        raise Invalid("not a duration")
    position = 1 if text.startswith("+") else 0
    if text[position:] == "0":
        return 0
    span_ns = 0
    while True:
        part = _GO_PART.match(text, position)
        if part is None or not (part[1] or part[2]):
            raise Invalid("not a duration; write numbers with units, like 6m5s")
        unit_ns = _GO_UNIT_NS[part[3]]
        fraction = int((part[2] or "")[:_FRACTION_DIGITS].ljust(_FRACTION_DIGITS, "0"))
        span_ns += int(part[1] or 0) * unit_ns + fraction * unit_ns // 10**_FRACTION_DIGITS
        position = part.end()
        if position == len(text):
            break
    span_ms = -(-span_ns // 1_000_000)
    if span_ms > DURATION_MS_MAX:
        raise Invalid("the duration is too long to be counted")
    return span_ms

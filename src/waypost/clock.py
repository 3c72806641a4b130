"""The home of time: the one place that reads the system's clock.

Everything below the loops is handed `now_ms`, an integer count of UTC
milliseconds.  Several nodes on one database all go by the database's clock.
"""

import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Where `now_ms` comes from."""

    def now_ms(self) -> int:
        """Milliseconds since 1970 (UTC).  Never less than an earlier answer."""
        ...


class SystemClock:
    """The system's wall clock, held still while it is set back."""

    def __init__(self) -> None:
        self._latest_ms = 0

    def now_ms(self) -> int:
        now_ms = time.time_ns() // 1_000_000
        if now_ms > self._latest_ms:
            self._latest_ms = now_ms
        return self._latest_ms


class DatabaseClock:
    """The database's clock: heard now and then, and carried on by this machine's monotonic one.

    What the database said was true at some moment between question and answer, and so
    allows a span of times.  A clock that is within it goes on as it is: a slow answer
    makes it no worse.  One that is not moves into it, forwards at once; set back, it
    stands still until that time has come again.  Before anything was heard it is the
    system's.
    """

    def __init__(
        self,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
        system: Clock | None = None,
    ) -> None:
        self._monotonic_s = monotonic_s
        self._system = system or SystemClock()
        self._ahead_ms: float | None = None  # of the monotonic clock
        self._latest_ms = 0

    def on_time(self, heard_ms: int, asked_s: float) -> None:
        """Hear what the database's clock says, right after the answer came.

        `asked_s` is what the monotonic clock said when it was asked.
        """
        latest, earliest = heard_ms - asked_s * 1000, heard_ms - self._monotonic_s() * 1000
        if self._ahead_ms is None:
            self._ahead_ms = (earliest + latest) / 2
        else:
            self._ahead_ms = min(max(self._ahead_ms, earliest), latest)

    def now_ms(self) -> int:
        if self._ahead_ms is None:
            return self._system.now_ms()
        now_ms = int(self._monotonic_s() * 1000 + self._ahead_ms)
        if now_ms > self._latest_ms:
            self._latest_ms = now_ms
        return self._latest_ms

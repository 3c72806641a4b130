"""The home of time: the one place that reads the system's clock.

Everything below the loops is handed `now_ms`, an integer count of UTC
milliseconds.
"""

import time
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

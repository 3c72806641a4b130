"""The home of readiness: why this process should not be sent requests now.

Being alive is not asked here; a process that answers at all is alive.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from waypost.clock import Clock
from waypost.domain.errors import StoreUnavailable
from waypost.store.protocol import Pulse


class Heart(Protocol):
    """What of a store is needed here."""

    async def pulse(self, *, now_ms: int) -> Pulse: ...


class Health:
    """Asks the store and the `vitals`: each answers None, or what is wrong with a part."""

    def __init__(
        self,
        reader: Heart,
        clock: Clock,
        *,
        oldest_due_ms_max: int,
        vitals: Sequence[Callable[[], str | None]],
    ) -> None:
        self._reader = reader
        self._clock = clock
        self._oldest_due_ms_max = oldest_due_ms_max
        self._vitals = vitals

    async def reasons(self) -> list[str]:
        """Why this process is not ready; empty: it is.

        `refusing` publishes for want of space is no reason: reads, cancels and
        deliveries go on, and they make room.
        """
        reasons = [reason for vital in self._vitals if (reason := vital()) is not None]
        now_ms = self._clock.now_ms()
        try:
            pulse = await self._reader.pulse(now_ms=now_ms)
        except StoreUnavailable:
            return [*reasons, "the store cannot answer"]
        if pulse.oldest_due_ms is not None:
            late_ms = now_ms - pulse.oldest_due_ms
            if late_ms > self._oldest_due_ms_max:
                reasons.append(f"the oldest message that may go has been due for {late_ms} ms")
        return reasons
